"""What names say: splits, classes, sources and labels, in the spellings that people use."""

from pathlib import Path

import pytest

from modalities.shared.datasets import SPLITS
from modalities.shared.hash_split import draw, places_of, splits_at
from modalities.shared.labels import label_name, named_by, ordered, parse_labels, parse_told
from modalities.shared.layout import arrange, arrange_folders, only_class, split_within, split_word
from modalities.shared.sources import sources
from modalities.shared.understood import Ignored


def placed(*paths: str) -> list[tuple[str | None, str | None] | None]:
    """Split and class of each path."""
    places = arrange([tuple(path.split("/")) for path in paths]).places
    return [None if place is None else (place.split, place.category) for place in places]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Train", "train"), ("TRAINING", "train"), ("training_set", "train"), ("val", "val"),
     ("valid", "val"), ("Validation", "val"), ("validate", "val"), ("eval", "val"),
     ("dev", "val"), ("test", "test"), ("Testing", "test"),
     ("testset", "test"), ("trains", None), ("station", None), ("validity", None)],
)  # fmt: skip
def test_split_names(name: str, split: str | None) -> None:
    assert split_word(name) == split


@pytest.mark.parametrize(
    ("name", "found"),
    [("sky_train", ("train", "sky_*")), ("val2017", ("val", "*")), ("imagenet-test-000017", ("test", "imagenet-*")),
     ("train_test", None), ("constraint", None), ("train_station", ("train", "*_station"))],
)  # fmt: skip
def test_splits_within_names(name: str, found: tuple[str, str] | None) -> None:
    assert split_within(name) == found


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["Train/cat/1", "Test/dog/1"], [("train", "cat"), ("test", "dog")]),
        (["train/1", "valid/1"], [("train", None), ("val", None)]),
        (["sky_train/a/1", "sky_test/b/1"], [("train", "a"), ("test", "b")]),
        (["train2017/a/1", "val2017/a/1"], [("train", "a"), ("val", "a")]),
        (["images/train/a/1", "images/test/a/1"], [("train", "a"), ("test", "a")]),
        (["airplane/train/1", "airplane/test/2", "car/train/3"], [("train", "airplane"), ("test", "airplane"),
         ("train", "car")]),
        (["M10/bed/train/1", "M10/bed/test/2", "M10/sofa/test/3"], [("train", "bed"), ("test", "bed"),
         ("test", "sofa")]),
        (["train/a/1", "val/a/1", "other/c/1", "read.png"], [("train", "a"), ("val", "a"), None, None]),
        (["tr/a/1", "te/a/2", "val/b/3"], [("train", "a"), ("test", "a"), ("val", "b")]),
        (["a/tr/1", "a/te/2", "b/tr/3"], [("train", "a"), ("test", "a"), ("train", "b")]),
        (["trainA/1", "testA/2"], [("train", None), ("test", None)]),
        (["x/trainA/1", "x/trainB/2", "x/testB/3"], [("train", "A"), ("train", "B"), ("test", "B")]),
        # a class that is named as a split is one
        (["tr/1", "te/1", "en/1"], [(None, "tr"), (None, "te"), (None, "en")]),
        (["trainA/1", "trainB/1"], [(None, "trainA"), (None, "trainB")]),
        (["train/1", "car/1", "ship/1"], [(None, "train"), (None, "car"), (None, "ship")]),
        (["cat/1", "test/1"], [(None, "cat"), (None, "test")]),
        (["train_station/1", "test_tube/1"], [(None, "train_station"), (None, "test_tube")]),
        (["train/train/1", "train/test/2", "car/train/3", "car/test/4"], [("train", "train"), ("test", "train"),
         ("train", "car"), ("test", "car")]),
        (["cat/1", "2"], [(None, "cat"), (None, None)]),
    ],
)  # fmt: skip
def test_folders_say_splits_and_classes(paths: list[str], found: list) -> None:
    assert placed(*paths) == found


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        (["a/abc_000010_000020.mp4", "a/abc_000030_000040.mp4", "a/xyz_000001_000002.mp4"], [[0, 1], [2]]),
        (["a/one_1.mp4", "a/one_2.mp4", "a/two_1.mp4", "a/two_2.mp4"], [[0, 1], [2, 3]]),
        (["a/v_X_g01_c01.avi", "a/v_X_g01_c02.avi", "a/v_X_g02_c01.avi"], [[0, 1], [2]]),
        (["a/p_frame_001.png", "a/p_frame_002.png", "a/q_frame_001.png"], [[0, 1], [2]]),
        (["a/p_view1.ply", "a/p_view2.ply", "a/q_view1.ply"], [[0, 1], [2]]),
        (["a/v1/001.png", "a/v1/002.png", "a/v2/001.png", "a/v2/002.png"], [[0, 1], [2, 3]]),
        # numbers alone say nothing
        (["a/img_1.png", "a/img_2.png", "b/img_1.png"], [[0], [1], [2]]),
        (["a/001.png", "a/002.png"], [[0], [1]]),
        ([f"a/{kind}_{i:03}.png" for kind in ("cat", "dog") for i in range(40)], [[i] for i in range(80)]),
    ],
)
def test_pieces_are_known_by_their_names(files: list[str], groups: list[list[int]]) -> None:
    found = sources([tuple(file.split("/")) for file in files], dense=4)
    assert [[i for i, key in enumerate(found) if key == one] for one in dict.fromkeys(found)] == groups


@pytest.mark.parametrize("num", [*range(4, 25), 40])
@pytest.mark.parametrize("shares", [(0.9, 0.05), (0.8, 0.1, 0.1), (0.7, 0.15, 0.15)])
def test_small_sets_have_something_in_each_split(num: int, shares: tuple[float, ...]) -> None:
    for seed in range(20):
        splits, _ = draw([f"{seed}-{i}" for i in range(num)], shares)
        assert splits.count("test") >= 2
        assert splits.count("val") >= (num >= 6)
        assert splits.count("train") >= num // 3


@pytest.mark.parametrize("num", [5, 8, 300])
def test_every_class_has_something_to_train_on(num: int) -> None:
    for seed in range(20):
        keys, classes = [f"{seed}-{i // 2}" for i in range(2 * num)], [i // 4 for i in range(2 * num)]
        splits, _ = draw(keys, (0.4, 0.2), classes)
        assert {c for c, split in zip(classes, splits, strict=True) if split == "train"} == {*classes}
        assert splits.count("test") >= 2
        assert all(splits[i] == splits[i + 1] for i in range(0, 2 * num, 2))


def test_large_sets_are_drawn_by_each_name_alone_and_pieces_stay_together() -> None:
    keys = [f"{i // 2}" for i in range(4000)]
    splits, moved = draw(keys, (0.8, 0.1, 0.1))
    assert moved == 0
    assert splits == [SPLITS[i] for i in splits_at(places_of(keys), (0.8, 0.1, 0.1))]
    small, moved = draw(["a", "a", "a", "b", "c", "c"], (0.8, 0.1, 0.1))
    assert len(set(small[:3])) == len(set(small[4:])) == 1
    assert set(draw(["a", "b", "c", "d"], (1.0, 0.0, 0.0))[0]) == {"train"}


@pytest.mark.parametrize(
    ("value", "name"),
    [(3, "3"), (-1, None), ("-1", None), (True, "true"), (2.0, "2"), (2.5, None), (float("nan"), None), ("001", "001"),
     (" cat\n", "cat"), ("", None), (None, None), ([1], None), (999999999, "999999999"), (10**30, None)],
)  # fmt: skip
def test_labels_are_names(value: object, name: str | None) -> None:
    assert label_name(value) == name


def test_labels_in_files() -> None:
    assert ordered(["10", "9", "001"]) == ["001", "9", "10"]
    assert ordered(["b", "a", "10"]) == ["10", "a", "b"]
    assert parse_labels("dataset.json", b'{"labels": [["0/a.png", 5], ["./0/b.png", [0, 1, 0]]]}') == {
        "0/a.png": "5",
        "0/b.png": "1",
    }
    assert parse_labels("dataset.json", b'{"labels": null}') is None
    lines = b'{"file_name": "a.png", "label": "cat"}\n\n{"file_name": "b.png"}\n'
    assert parse_labels("metadata.jsonl", lines) == {"a.png": "cat"}
    assert parse_labels("metadata.jsonl", b'{"file_name": "a.png", "text": "a cat"}') is None
    assert parse_labels("metadata.csv", b"file_name,label\na.png,cat\n") == {"a.png": "cat"}
    quoted = b'file_name,label\na.png,"cat\n5""",\nb.png,5" nail'
    assert parse_labels("metadata.csv", quoted) == {"a.png": 'cat\\x0a5"', "b.png": '5" nail'}
    floats = b"image;label;text\na.png;0.0;x,y\nb.png;12.0;z\n"
    assert parse_labels("metadata.csv", floats) == {"a.png": "0", "b.png": "12"}
    assert parse_labels("metadata.csv", b"file_name,label\na.png,1.0\nb.png,1.5\n") == {
        "a.png": "1.0",
        "b.png": "1.5",
    }
    assert parse_labels("metadata.jsonl", b'{"image": "a.png", "label": 3}') == {"a.png": "3"}
    for lines, names in ((["0 a", "1 b c"], ["b c", "0"]), (["2 b c", "1 a"], ["b c", "1"])):
        assert named_by(lines, names, "classes.txt") == (["a", "b c"], {names[0]: 1, names[1]: 0})
    assert named_by(["0 a", "1 b"], ["1 b"], "classes.txt")[0] == ["0 a", "1 b"]
    assert named_by(["cat", "dog", "cow"], ["2", "dog"], "classes.txt")[1] == {"2": 2, "dog": 1}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "dataset.json",
            '{"labels": [["a.png", 0], ["./a.png", 1]]}',
            "it says of ./a.png that it is 0 and 1",
        ),
        ("dataset.json", '{"labels": {"a.png": 0, "a.png": 1}}', "it has the name a.png twice"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 0, "label": 1}', "it has the name label twice"),
        (
            "metadata.csv",
            "file_name,label\na.png,cat\na.png,dog\n",
            "it says of a.png that it is cat and dog",
        ),
        (
            "metadata.csv",
            "file_name,label,text,label\na.png,cat,a cat,dog\n",
            "it has the column label twice",
        ),
        (
            "metadata.csv",
            "file_name;label; file_name\na.png;cat;b.png\n",
            "it has the column file_name twice",
        ),
        (
            "metadata.csv",
            'file_name,label\na.png,"cat\nb.png,dog\n',
            "it has a quotation mark that is never closed",
        ),
    ],
)
def test_a_file_that_can_be_read_in_two_ways_is_refused(name: str, text: str, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        parse_labels(name, text.encode())


def test_what_is_said_again_or_in_utf_16_is_read() -> None:
    table = "file_name,label,text\na.png,Käse,one\na.png,Käse,two\n"
    for encoding in ("utf-8", "utf-16"):
        assert parse_labels("metadata.csv", table.encode(encoding)) == {"a.png": "Käse"}
        assert parse_told("metadata.csv", table.encode(encoding)) == {"a.png": ["one", "two"]}


def test_what_is_ignored_is_counted() -> None:
    ignored = Ignored()
    assert [
        name for name in ("a.png", ".DS_Store", "__MACOSX", "Thumbs.db", "._x") if not ignored.is_hidden(name)
    ] == ["a.png"]
    ignored.add("of a kind", "x.HEIC")
    ignored.add("of a kind", "y.heic")
    assert ignored.lines()[1] == "2 of a kind: .heic 2"
    assert ignored.lines()[0].startswith("4 hidden or of a system: ")


ONE = "all is of the class data; for its own folders as classes"


@pytest.mark.parametrize(
    ("folders", "num", "note"),
    [(["data/cat", "data/dog"], 5, f"{ONE} give root=/x/data"),
     (["train/data/cat", "train/data/dog", "test/data/cat"], 5, f"{ONE}, put them into those of the splits"),
     (["train/data", "test/data"], 5, None), (["cat", "dog"], 5, None), (["data"], 5, None), (["data/cat"], 5, None),
     (["cat/a", "dog/b"], 5, None), (["data/a", "data/b", "data/c"], 1, None)],
)  # fmt: skip
def test_a_root_that_is_one_folder_too_high_is_told(folders: list[str], num: int, note: str | None) -> None:
    """By a root that exists; folders of one sample each are no classes."""
    parts = [tuple(folder.split("/")) for folder in folders]
    places = arrange_folders(parts).places
    found = only_class(Path("/x"), zip(parts, places, [num] * len(parts), strict=True))
    assert found == ([] if note is None else [note])
