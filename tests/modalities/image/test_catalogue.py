"""Pictures in the layouts that people have: what is read, what it is called, and what is said of the rest."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditmoe.modality import Report
from modalities.image import Pictures
from modalities.image.adapter import Image as ImageModality
from modalities.image.data.archive_members import LONGEST_NAME
from modalities.image.data.picture_sets import read_set
from modalities.image.data.pictures import open_picture
from modalities.image.metrics.warnings import about_compression

CASES = Path(__file__).parents[2] / "cases" / "frames"
REPORT_SIZE = (8, 8)


def png(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar(file: Path, members: list[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file.parent


def put(root: Path, **files: bytes) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def shown(root: Path) -> tuple[list[str], list[tuple[int, int]], str]:
    """Classes, the red of each training picture with its label, and what is said."""
    data = Pictures(REPORT_SIZE, root)
    pairs = [(int(data.read(p)[0, 0, 0]), p.label) for p in data.split("train")]  # type: ignore[index]
    return data.classes, sorted(pairs), str(data.understood())


TARS = {
    "numbers": ([("cls", b"0"), ("cls", b"1"), ("cls", b"2")], ["0", "1", "2"], [0, 1, 2]),
    "gaps": ([("cls", b"7"), ("cls", b"999999999"), ("cls", b"7")], ["7", "999999999"], [0, 1, 0]),
    "names": ([("cls", b"cat"), ("cls", b"dog\n"), ("cls", b"cow")], ["cat", "cow", "dog"], [0, 2, 1]),
    "zeros": ([("cls", b"000"), ("cls", b"001"), ("cls", b"002")], ["000", "001", "002"], [0, 1, 2]),
    "none is none": ([("cls", b"-1"), ("cls", b"0"), ("cls", b"1")], ["0", "1"], [2, 0, 1]),
    "missing": ([("cls", b"0"), None, ("cls", b"1")], ["0", "1"], [0, 2, 1]),
    "record": ([("json", b'{"label": "cat"}'), ("json", b'{"label": "dog"}'), None], ["cat", "dog"], [0, 1, 2]),
    "other key": ([("json", b'{"class_id": 4}'), ("json", b'{"class_id": 2}'), None], ["2", "4"], [1, 0, 2]),
    "bare": ([("json", b"1"), ("json", b"0"), ("json", b"1")], ["0", "1"], [1, 0, 1]),
    "text": ([("cls.txt", b"1"), ("cls.txt", b"0"), None], ["0", "1"], [1, 0, 2]),
    "other words": ([("label", b"cat"), ("index", b"4\n"), ("label.txt", b"cat")], ["4", "cat"], [1, 0, 1]),
    "a number each": ([("index", b"%d" % i) for i in range(20)], ["picture"], [0] * 20),
    "identity": ([("id", b"0"), ("id", b"1"), ("txt", b"a cat")], ["picture"], [0, 0, 0]),
    "broken record": ([("json", b'{"a": bro'), ("json", b'{"label": 3}'), None], ["3"], [1, 0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_labels_of_tars(name: str, tmp_path: Path) -> None:
    beside, classes, labels = TARS[name]
    members = []
    for i, entry in enumerate(beside):
        members.append((f"{i:04d}.png", png(10 * i)))
        members += [(f"{i:04d}.{entry[0]}", entry[1])] if entry else []
    found = shown(tar(tmp_path / "train-000000.tar", members))
    assert found[:2] == (classes, [(10 * i, label) for i, label in enumerate(labels)])
    bare = sum(label == len(classes) for label in labels)
    assert (f"{bare} without a class" in found[2]) == bool(bare)


KEYS = {
    "dots": ["0.image.png", "0.cls=0", "1.image.png", "1.cls=1"],
    "dots in keys": ["a.0.png", "a.0.cls=0", "a.1.png", "a.1.cls=1"],
    "folders": ["cat/0.png", "dog/1.png"],
    "dots in folders": ["train.v1/0.png", "train.v1/0.cls=0", "train.v1/1.png", "train.v1/1.cls=1"],
    "twice": ["x.png", "x.cls=0", "x.png", "x.cls=1"],
    "two pictures": ["0.jpg", "0.mask.png", "0.cls=0", "1.jpg", "1.mask.png", "1.cls=1"],
    "system": ["./0.png", "./0.cls=0", "._0.png", "1.png", "1.cls=1", "__MACOSX/2.png"],
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_tars(name: str, tmp_path: Path) -> None:
    members = []
    for number, entry in enumerate(KEYS[name]):
        path, _, content = entry.partition("=")
        members.append((path, content.encode() if content else png(number)))
    data = Pictures(REPORT_SIZE, tar(tmp_path / "train" / "0.tar", members).parent)
    assert [p.label for p in data.split("train")] == [0, 1]
    assert len(data.classes) == 2


def test_tars_that_are_cut_or_compressed_are_told(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a" / "train-0.tar", [(f"{i}.png", png(i)) for i in range(6)]) / "train-0.tar"
    content = whole.read_bytes()
    whole.write_bytes(content[: 3 * 1024 + 520])
    _, pairs, said = shown(whole.parent)
    assert len(pairs) == 3
    assert "is cut or damaged" in said
    whole.write_bytes(content[: 6 * 1024])
    assert "has no end: it may be cut" in shown(whole.parent)[2]
    whole.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="it is compressed: unpack it"):
        shown(whole.parent)
    whole.rename(whole.with_suffix(".tar.gz"))
    with pytest.raises(ValueError, match="1 compressed ones: unpack them"):
        shown(whole.parent)


def test_labels_of_lists(tmp_path: Path) -> None:
    """EDM's dataset.json in a folder and in a zip, metadata.jsonl; shard folders are no classes."""
    files = {f"0000{i % 2}/img{i:08d}.png": png(10 * i) for i in range(3)}
    tree = {"labels": [["00000/img00000000.png", 5], ["00001/img00000001.png", 60]]}
    for name in files:
        put(tmp_path / "edm" / "train", **{name: files[name]})
    put(tmp_path / "edm" / "train", **{"dataset.json": json.dumps(tree).encode()})
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        (tmp_path / f"zip{kind}").mkdir()
        with zipfile.ZipFile(tmp_path / f"zip{kind}" / "train.zip", "w", kind) as archive:
            for name, content in {**files, "dataset.json": json.dumps(tree).encode()}.items():
                archive.writestr(name, content)
    lines = [
        {"file_name": name, "label": label} for name, label in zip(files, ("5", "60", None), strict=True)
    ]
    for name in files:
        put(tmp_path / "hub" / "train", **{name: files[name]})
    put(tmp_path / "hub" / "train", **{"metadata.jsonl": "\n".join(map(json.dumps, lines)).encode()})
    roots = [tmp_path / "edm", tmp_path / "hub", *(tmp_path / f"zip{kind}" for kind in (0, 8))]
    for root in (*roots, tmp_path / "zip8" / "train.zip"):
        classes, pairs, said = shown(root)
        assert (classes, pairs) == (["5", "60"], [(0, 0), (10, 1), (20, 2)]), root
        assert "1 without a class" in said
    put(tmp_path / "hub" / "train", **{"metadata.jsonl": b"broken"})
    with pytest.raises(ValueError, match=r"metadata\.jsonl is damaged"):
        shown(tmp_path / "hub")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"file_name": "x\x1b.png", "label": 1}, r"names others, such as x\x1b.png"),
        ({"file_name": "a.png", "label": -1}, "names none"),
    ],
)
def test_a_list_of_labels_that_names_no_picture_is_told(line: dict, told: str, tmp_path: Path) -> None:
    put(tmp_path, **{"a.png": png(), "b.png": png(9), "metadata.jsonl": json.dumps(line).encode()})
    assert f"no picture has a class: the list of labels {told}" in shown(tmp_path)[2]


def test_folders_in_archives_say_splits_and_classes_as_folders_do(tmp_path: Path) -> None:
    names = [
        f"wrap/{place}/{i}.png" for place in ("train/cat", "train/dog", "test/cat", "other") for i in (0, 1)
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i))
    classes, pairs, said = shown(tmp_path)
    assert (classes, pairs) == (["cat", "dog"], [(0, 0), (1, 0), (2, 1), (3, 1)])
    assert "test 2; from the folders test, train in the archives" in said
    assert "outside of the splits: wrap/other 2" in said


class Named(zipfile.ZipInfo):
    """A member whose name is written in some letters, and whether it says that they are UTF-8."""

    def __init__(self, name: str, letters: str, said: bool) -> None:
        super().__init__(name)
        self.letters, self.said = letters, said

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's)
        return self.filename.encode(self.letters), self.flag_bits | 0x800 * self.said


@pytest.mark.parametrize(
    ("letters", "said", "sep"),
    [("utf-8", True, "/"), ("utf-8", False, "/"), ("cp437", False, "\\"), ("cp437", False, "/")],
    ids=["linux", "macos", "windows", "dos"],
)
def test_a_zip_says_the_same_whoever_packed_it(letters: str, said: bool, sep: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, category in enumerate(("café", "naïve")):
            archive.writestr(Named(f"set{sep}{category}{sep}", letters, said), b"")
            for number in range(4):
                of_it = f"{category}{sep}{number}.png"
                archive.writestr(Named(f"set{sep}{of_it}", letters, said), png(10 * i))
                archive.writestr(
                    Named(f"__MACOSX{sep}set{sep}{of_it.replace(sep, sep + '._')}", letters, said), b"x"
                )
    data = Pictures(REPORT_SIZE, tmp_path)
    assert data.classes == ["café", "naïve"]
    assert sum(data.count(split) for split in ("train", "val", "test")) == 8
    assert [line for line in str(data.understood()).splitlines() if line.startswith("ignored")] == [
        "ignored  8 hidden or of a system: __MACOSX 8"
    ]


@pytest.mark.parametrize(
    ("letters", "names"),
    [
        ("cp932", ["椅子", "表", "ソファ"]),
        ("cp936", ["椅子", "桌子", "沙发"]),
        ("cp949", ["의자", "책상", "소파"]),
    ],
)
def test_names_of_a_zip_without_an_encoding_stay_apart_and_are_told_once(
    letters: str, names: list[str], tmp_path: Path
) -> None:
    """Also where the second byte of a letter is a backslash, as in 表 and ソ of Shift JIS."""
    for shard in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / shard, "w") as archive:
            for i, name in enumerate(f"{category}/{n}{category}.png" for category in names for n in range(4)):
                archive.writestr(Named(name, letters, False), png(i))
    data = Pictures(REPORT_SIZE, tmp_path)
    assert data.classes == sorted(name.encode(letters).decode("cp437") for name in names)
    assert all(name.isprintable() for name in data.classes)
    assert sum(data.count(split) for split in ("train", "val", "test")) == 24
    (note,) = [line for line in str(data.understood()).splitlines() if "encoding" in line]
    assert note.startswith(
        "note     12 names in a.zip say no encoding and are shown in letters of DOS (cp437); "
    )
    assert "unzip -O cp932" in note


@pytest.mark.parametrize("kept", [True, False], ids=["its own", "of another name"])
def test_a_zip_may_have_its_names_in_unicode_beside_others(kept: bool, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (f"{category}/{n}.png" for category in ("表", "椅子") for n in range(4)):
            member = Named(name, "cp932", False)
            of = zlib.crc32(name.encode("cp932")) ^ (not kept)
            told = struct.pack("<BI", 1, of) + name.encode()
            member.extra = struct.pack("<HHHHH", 1, 0, 2, 2, 7) + struct.pack("<HH", 0x7075, len(told)) + told
            archive.writestr(member, png(0))
    data = Pictures(REPORT_SIZE, tmp_path)
    assert (set(data.classes) == {"表", "椅子"}) == kept
    assert ("encoding" in str(data.understood())) != kept


def test_members_with_names_of_any_length_are_left_out_and_counted(tmp_path: Path) -> None:
    longest = f"cat/{'a' * (LONGEST_NAME - 8)}.png"
    names = [longest, "cat/b.png", f"{longest[:-4]}a.png", f"dog/{'-' * 7000}.png"]
    tar(tmp_path / "t" / "train.tar", [(name, png(1)) for name in names])
    (tmp_path / "z").mkdir()
    with zipfile.ZipFile(tmp_path / "z" / "train.zip", "w") as archive:
        for name in [*names, f"{'x' * 65_000}.txt"]:
            archive.writestr(name, png(1))
    for kind, count in (("t", 2), ("z", 3)):
        _, pictures, said = shown(tmp_path / kind)
        assert len(pictures) == 2
        assert f"{count} in archives, with names of more than {LONGEST_NAME} letters: cat/aaaa" in said


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,x"},
        {"GNU.sparse.size": "many"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "²"},
    ],
)
def test_links_are_counted_and_sparse_members_cost_no_others(headers: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.PAX_FORMAT) as out:
        for name, kind, pax in (
            ("a.png", tarfile.REGTYPE, {}), ("sparse.png", tarfile.REGTYPE, headers), ("b.png", tarfile.REGTYPE, {}),
            ("hard.png", tarfile.LNKTYPE, {}), ("soft.png", tarfile.SYMTYPE, {}), ("pipe", tarfile.FIFOTYPE, {}),
            ("folder", tarfile.DIRTYPE, {}),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = kind, "a.png", pax
            info.size = len(png()) if kind == tarfile.REGTYPE else 0
            out.addfile(info, io.BytesIO(png()))
    data = Pictures(REPORT_SIZE, tmp_path)
    assert {p.name for p in data.split("train")} >= {"train.tar/a", "train.tar/b"}  # type: ignore[union-attr]
    told = "ignored  3 in archives, links or devices instead of files: .png 2, without a suffix 1"
    assert told in str(data.understood())


@pytest.mark.parametrize(("method", "told"), [(zipfile.ZIP_LZMA, "LZMA"), (zipfile.ZIP_BZIP2, "bzip2")])
def test_a_compression_of_zips_that_is_not_read_is_named(method: int, told: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("b.png", png(), compress_type=method)
    line = f"ignored  1 in archives, compressed by {told}, where stored or deflated ones are read: .png 1"
    assert line in shown(tmp_path)[2]


def test_a_zip_that_inflates_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**28))
        archive.writestr("b.png", png())
    data = Pictures(REPORT_SIZE, tmp_path)
    assert [data.read(p) is not None for p in data.split("train")] == [False, True]
    assert "must not become" in next(iter(data.unreadable.values()))


LAYOUTS = {
    "splits": (["Train/cat/1.png", "Train/dog/2.png", "Testing/cat/3.png", "Valid/dog/4.png"], ["cat", "dog"], 2, 1, 1),
    "in each class": (["a/train/1.png", "a/test/2.png", "b/train/3.png", "b/test/4.png"], ["a", "b"], 2, 0, 2),
    "flat": ([f"{i}.png" for i in range(10)], ["picture"], 7, 1, 2),
    "beside": (["x.png", *(f"cat/{i}.png" for i in range(4))], ["cat"], 2, 0, 2),
    "system": (["__MACOSX/1.png", ".thumbnails/2.png", ".ipynb_checkpoints/3.png", *(f"cat/{i}.png" for i in range(4))],
               ["cat"], 2, 0, 2),
    "class called test": (["test/1.png", *(f"cat/{i}.png" for i in range(7))], ["cat", "test"], None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_folders(name: str, tmp_path: Path) -> None:
    files, classes, *counts = LAYOUTS[name]
    put(tmp_path, **{file: png(i) for i, file in enumerate(files)})
    data = Pictures(REPORT_SIZE, tmp_path)
    assert data.classes == classes
    if counts[0] is not None:
        assert [data.count(split) for split in ("train", "val", "test")] == counts
    else:
        assert "named as a split, but taken for a class" in str(data.understood())


@pytest.mark.parametrize("name", ["x.tga", "x.avif", "x.jp2"])
def test_every_kind_that_is_listed_is_read(name: str) -> None:
    mean = np.asarray(open_picture(CASES / name)).reshape(-1, 3).mean(0)
    assert np.abs(mean - (110.6, 131.6, 115.9)).max() < 1


def test_a_range_that_no_one_says_is_refused(tmp_path: Path) -> None:
    assert abs(np.asarray(open_picture(CASES / "float255.tif")).mean() - 110.6) < 0.5
    assert np.asarray(open_picture(CASES / "gray16_trns.png")).max() == 255
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "a.tif")
    assert np.asarray(open_picture(tmp_path / "a.tif")).max() == 200
    for number, values in enumerate((np.linspace(0, 1, 64), np.linspace(-3, 9, 64), np.full(64, 70000))):
        kind = np.float32 if number < 2 else np.int32
        Image.fromarray(values.reshape(8, 8).astype(kind)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match="values of a"):
            open_picture(tmp_path / "a.tif")


def test_a_messy_folder_tells_the_truth(tmp_path: Path) -> None:
    root = tmp_path / "Мебель, 'a=b' [x]"
    for i in range(8):
        put(root, **{f"кот/ä {i}.png": png(20 * i), f"dog/sub/{i}.JPEG": png(20 * i + 5)})
    put(root, **{"кот/zero.png": b"", "кот/text.png": b"hello", "кот/notes.txt": b"x", "кот/raw.heic": b"x"})
    put(
        root, **{".DS_Store": b"x", "__MACOSX/кот/._1.png": png(), "кот/Thumbs.db": b"x", "beside.png": png()}
    )
    (root / "dog" / "up").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.makedirs(os.fsencode(root) + b"/caf\xe9")
    (root / os.fsdecode(b"caf\xe9") / "1.png").write_bytes(png(3))
    data = Pictures(REPORT_SIZE, root)
    said = str(data.understood())
    assert data.classes == sorted(["кот", "dog", r"caf\xe9"])
    assert sum(len(data.split(split)) for split in ("train", "val", "test")) == 8 + 8 + 2 + 1
    for words in (".txt 1", ".heic 1", "3 hidden", "2 beside the class folders: .png 2", "drawn by name"):
        assert words in said
    assert said.isprintable() or set(said) - {"\n"} <= {c for c in said if c.isprintable()}
    assert data.batch(16, 0, 0)[0].shape == (16, 8, 8, 3)
    assert len(data.reference("test")) >= 1


def test_compression_on_one_side_is_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        for kind in ("png", "jpg"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / kind / f"{i}.{kind}")
    lossless, lossy = read_set(tmp_path / "png"), read_set(tmp_path / "jpg")
    report = about_compression(Report({"fd": 0.0}, {}), lossless, lossy)
    assert report.protocol["from lossy files"] == "0 of 3 generated images, 3 of 3 reference images"
    assert "compression on one side alone" in report.notes[0]
    assert about_compression(Report({"fd": 0.0}, {}), lossy, lossy).notes == ()
    assert about_compression(Report({"fd": 0.0}, {}), lossless, lossless).protocol == {}
    assert ".avif" in ImageModality.suffixes


def test_one_tar_per_class_of_imagenet(tmp_path: Path) -> None:
    """Each is named as its class, and its members lie at its top."""
    for at, stem in enumerate(("n01440764", "n01443537")):
        members = [(f"{stem}_{i}.JPEG", png(100 * at + i)) for i in range(2)]
        tar(tmp_path / "several" / "train" / f"{stem}.tar", members)
        tar(tmp_path / "one" / str(at) / "train" / f"{stem}.tar", members)
    classes, pairs, _ = shown(tmp_path / "several")
    assert classes == ["n01440764", "n01443537"]
    assert [label for _, label in pairs] == [0, 0, 1, 1]
    assert shown(tmp_path / "one" / "0")[0] == ["picture"]
    tar(tmp_path / "several" / "train" / "more.tar", [("a.png", png())])
    assert shown(tmp_path / "several")[0] == ["picture"]
