"""Captions: true of what they describe, the same whoever reads the batch, and none where nobody asks."""

import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe.conditioning import TEXT, ClassLabel, Condition, captions_of, class_caption
from ditmoe.config import build
from modalities.pointcloud.data import Clouds
from modalities.pointcloud.data.described import count_legs
from modalities.shared.captions import (
    Captioner,
    Described,
    WrittenCaptions,
    captions_beside,
    mirrored,
    words_of,
)
from modalities.shared.digits import NUMERALS
from modalities.video.data.described_digits import WAYS, is_held_out, place_of
from modalities.video.data.moving_digits import MovingDigits
from tests.subjects import composed

SAID = re.compile(r"an? (?P<name>\w+)(?: (?P<where>(?:in|at|on) the [a-z ]+?))? moving (?P<way>\w+)")


def made(modality: str, *words: str) -> Any:
    return build.make(composed("train", f"modality={modality}", *words)["modality"])


@pytest.mark.parametrize("modality", ["image", "pointcloud"])
def test_samples_are_the_same_with_captions(modality: str) -> None:
    told, plain = made(modality, "modality.captions=true"), made(modality)
    (x, asked), (y, labels) = told.batch(4, 0, 2), plain.batch(4, 0, 2)
    assert torch.equal(x, y)
    assert isinstance(asked, Condition)
    assert torch.equal(asked.values["label"], labels)
    assert not asked.null.any()
    assert all(captions_of(asked) or [""])
    words = set(told.caption_words)
    assert {word for caption in captions_of(asked) or [] for word in re.findall(r"\w+", caption)} <= words
    assert captions_of(told.reference("test").asked) is not None


@pytest.mark.parametrize("modality", ["image", "pointcloud", "video"])
def test_a_caption_is_of_its_address_however_a_batch_is_shared(modality: str) -> None:
    data = made(modality, "modality.captions=true").data
    whole = list(data.batch(4, 3, 1)[1].captions)
    parts = [list(data.batch(2, 3, 1, rank, 2)[1].captions) for rank in range(2)]
    assert parts[0] + parts[1] == whole  # type: ignore[operator]


@pytest.mark.parametrize("modality", ["image", "pointcloud"])
def test_what_reads_captions_can_be_sent_to_other_processes(modality: str) -> None:
    one = made(modality, "modality.captions=true")
    assert "captions" in one.understood()
    sent = pickle.loads(pickle.dumps(one.reader().read))
    assert captions_of(one.reader().finish(sent(2, 0, 0))[1]) == captions_of(one.batch(2, 0, 0)[1])


def test_data_without_captions_say_so() -> None:
    with pytest.raises(ValueError, match=r"modality\.captions must be true"):
        made("video").captions_of_split("train")


def test_what_has_a_caption_and_no_class_asks_a_model_of_classes_for_nothing() -> None:
    asked = Described(np.array([0, 2]), ["a cat", "a thing"]).asked
    assert ClassLabel(4, 2).read(asked).null.tolist() == [False, True]
    assert class_caption("oak_tree") == Captioner[str](lambda _: [], str).first("oak_tree") == "an oak tree"


def test_clips_are_what_their_captions_say() -> None:
    clips, pairs = MovingDigits((32, 32), 9, captions=True), set()
    for number in range(40):
        scene, caption = clips.scene("train", 0, number), clips.caption("train", 0, number)
        pairs.add(tuple(sorted(scene.classes.tolist())))
        said = [match.groupdict() for match in SAID.finditer(caption)]
        moves = scene.places[4] - scene.places[0]
        true = set()
        for i, (row, column) in enumerate(moves):
            way = (
                ("right" if column > 0 else "left") if abs(column) > abs(row) else "down" if row > 0 else "up"
            )
            true.add((NUMERALS[scene.classes[i]], way))
        assert {(one["name"], one["way"]) for one in said} == true
        assert {way for _, way in true} <= WAYS.keys()
        starts = {
            (NUMERALS[k], place_of(p, scene.room))
            for k, p in zip(scene.classes, scene.places[0], strict=True)
        }
        assert {(one["name"], one["where"]) for one in said if one["where"]} <= starts
    assert len(pairs) > 20
    assert not any(is_held_out(*pair) for pair in pairs)
    held_out = [clips.scene("val", 0, number).classes.tolist() for number in range(5)]
    assert all(is_held_out(*pair) for pair in held_out)


def test_clips_without_captions_are_two_of_one_class() -> None:
    clip, label = MovingDigits((16, 16), 2).clip("train", 0, 0)
    assert clip.shape == (2, 16, 16, 3)
    assert 0 <= label < 10
    assert isinstance(MovingDigits((16, 16), 2).batch(1, 0, 0)[1], np.ndarray)


@pytest.mark.parametrize("legs", [1, 2, 3, 4, 6])
def test_legs_are_counted_at_any_size_and_turn(legs: int) -> None:
    rng, angle = np.random.default_rng(legs), np.arange(legs) * 2 * np.pi / legs
    feet = 0.4 * np.stack([np.cos(angle), np.sin(angle)], 1) * (legs > 1)
    leg = np.repeat(feet, 150, axis=0) + rng.uniform(-0.03, 0.03, (150 * legs, 2))
    top = rng.uniform(-0.5, 0.5, (1000, 2))
    stool = np.concatenate([np.insert(leg, 1, rng.random(len(leg)), 1), np.insert(top, 1, 1.0, 1)])
    turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    assert count_legs(stool) == legs == count_legs(7 * stool @ turn + 3)
    box = rng.random((2000, 3))
    assert count_legs(box) is None is count_legs(box, on_feet=True)
    assert count_legs(np.zeros((20, 3))) is None


def test_noise_on_a_foot_plate_hides_no_leg() -> None:
    """Generated legs are counted in shapes that are rougher than those whose captions told of legs."""
    rng, shapes = np.random.default_rng(0), Clouds().reference("train").data.astype(np.float64)
    told = np.array([count_legs(points) or 0 for points in shapes])
    rough = [p + rng.normal(scale=0.01 * np.linalg.norm(np.ptp(p, axis=0)), size=p.shape) for p in shapes]
    seen = np.array([count_legs(points, on_feet=True) or 0 for points in rough])
    assert (seen[told == 4] == 4).mean() > 0.85
    assert (seen[told == 1] == 1).mean() > 0.7
    assert (seen[told == 0] == 0).mean() > 0.85


def test_captions_of_files_are_the_lines_beside_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / "cat" / f"{name}.png")
    (tmp_path / "cat" / "a.txt").write_bytes("\ufeffa red\x1b[31m cat\n\nune chatte à gauche\n".encode())
    root = [f"modality.data.root={tmp_path}", "modality.size=[8,8]", "modality.captions=true"]
    data = made("image", *root).data
    assert "ignored" not in str(data.understood())
    drawn = {one for step in range(12) for one in data.batch(2, 0, step)[1].captions}
    assert drawn == {"a red\\x1b[31m cat", "une chatte à gauche", "a cat"}  # the last by its class
    (tmp_path / "cat" / "a.txt").write_bytes(b"x" * 2**19)
    with pytest.raises((OSError, ValueError), match=r"a\.txt"):
        captions_beside(tmp_path / "cat" / "a.png")


@pytest.mark.parametrize(
    "name", ["cat/a.txt", "metadata.jsonl", "metadata.csv", "dataset.json", "classes.txt"]
)
def test_what_describes_data_is_no_link_to_other_files(name: str, tmp_path: Path) -> None:
    """A checkpoint keeps captions and class names, and is published."""
    private = tmp_path / "private"
    private.write_text(json.dumps({"file_name": "cat/a.png", "text": "a secret", "label": "secret"}))
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / "data" / "cat" / "a.png")
    (tmp_path / "data" / name).symlink_to(private)
    root = [f"modality.data.root={tmp_path / 'data'}", "modality.size=[8,8]", "modality.captions=true"]
    with pytest.raises(ValueError, match="must be a file, got a link out of its folder"):
        made("image", *root).data.batch(1, 0, 0)


def test_captions_from_outside_of_the_data_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in (tmp_path / "data" / "own", tmp_path / "mine"):
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png", "a.txt", "b.txt"):
            (folder / name).write_text(folder.name)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "mine")
    (tmp_path / "data" / "dog").symlink_to("own")
    written = WrittenCaptions(tmp_path / "data")
    for kind in ("own", "cat", "dog"):
        assert {*written(tmp_path / "data" / kind / "a.png")} == {"mine" if kind == "cat" else "own"}
        written(tmp_path / "data" / kind / "b.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"captions from outside of the data, folder 1: {tmp_path / 'data' / 'cat'} is a link to"
    )


def test_mirror_images_are_described_as_they_are() -> None:
    assert (
        mirrored("a cup left of a hat, Right there, leftover") == "a cup right of a hat, Left there, leftover"
    )
    assert mirrored(mirrored("on the left")) == "on the left"


def test_one_of_several_captions_is_drawn_at_its_address() -> None:
    captioner = Captioner[int](
        lambda item: [f"{item} a", f"{item} b"] if item else [], lambda item: "hot_dog"
    )
    drawn = [captioner.drawn(1, 0, number) for number in range(30)]
    assert set(drawn) == {"1 a", "1 b"}
    assert drawn == [captioner.drawn(1, 0, n) for n in range(30)]
    assert captioner.drawn(0, 0, 5) == "a hot dog"
    assert captioner.first(1) == "1 a"
    assert list(captioner.distinct([1, 1, 0])) == ["1 a", "1 b", "a hot dog"]
    assert words_of(["b a", "b, c"]) == ["b", ",", "a", "c"]
    assert TEXT == "text"


def test_captions_lie_in_metadata_and_archives_too(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(pixels, "PNG")
    rows = [
        {"file_name": "cat/a.png", "text": "a cat\nthat\u2028sits"},
        {"file_name": "cat/b.png", "captions": ["one", "two"]},
    ]
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    (plain / "cat").mkdir(parents=True)
    packed.mkdir()
    with tarfile.open(packed / "0.tar", "w") as tar:
        for name in ("a", "b"):
            (plain / "cat" / f"{name}.png").write_bytes(pixels.getvalue())
            for file, content in {
                f"{name}.png": pixels.getvalue(),
                f"{name}.txt": f"said of {name}".encode(),
            }.items():
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (plain / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    for root, wanted in ((plain, {"a cat that sits", "one", "two"}), (packed, {"said of a", "said of b"})):
        data = made(
            "image", f"modality.data.root={root}", "modality.size=[8,8]", "modality.captions=true"
        ).data
        told = {one for split in ("train", "val", "test") for one in data.captions_of_split(split)}
        assert told == wanted, root
        assert made("image", f"modality.data.root={root}", "modality.size=[8,8]").batch(1, 0, 0)[1].ndim == 1


def test_captions_lie_in_archives_as_texts_records_and_metadata(tmp_path: Path) -> None:
    """As texts beside pictures, in the record of a sample, and in the metadata of a zip, which may be deflated."""
    pixels = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(pixels, "png")
    record = {"cls": "cat", "caption": ["one\n line", "two\x1b[31m"]}
    tar = {"a.png": pixels.getvalue(), "a.json": json.dumps(record).encode(), "b.png": pixels.getvalue(),
           "b.json": b'{"text": "from the record"}', "b.txt": b"from the text", "c.png": pixels.getvalue(),
           "c.json": b'{"text": 3}', "d.png": pixels.getvalue(), "d.json": b"[" * 99_999}  # fmt: skip
    with tarfile.open(made_folder(tmp_path / "tar") / "0.tar", "w") as archive:
        for name, content in tar.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    lines = [{"file_name": "cat/a.png", "text": "told of a"}, {"file_name": "cat/b.png", "text": "not this"}]
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(made_folder(tmp_path / f"zip{kind}") / "0.zip", "w", kind) as archive:
            for name in "abc":
                archive.writestr(f"cat/{name}.png", pixels.getvalue())
            archive.writestr("cat/b.txt", "written beside b")
            archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, lines)))
    wanted = {"tar": {"one line", "two\\x1b[31m", "from the text", ""}}
    wanted |= {f"zip{kind}": {"told of a", "written beside b", "a picture"} for kind in (0, 8)}
    for folder, captions in wanted.items():
        root = [f"modality.data.root={tmp_path / folder}", "modality.size=[8,8]"]
        data = made("image", *root, "modality.captions=true").data
        assert {
            one for split in ("train", "val", "test") for one in data.captions_of_split(split)
        } == captions
        assert made("image", *root).batch(1, 0, 0)[1].ndim == 1


def made_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_latents_keep_all_captions_and_draw_one(tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), ord(name), np.uint8)).save(folder / "x.png")
    (tmp_path / "pictures" / "train" / "a" / "x.txt").write_text("first\nsecond")
    words = ["modality.size=[8,8]", "modality.captions=true", "codec@modality.codec=identity"]
    made("image", f"modality.data.root={tmp_path}/pictures", *words).prepare(
        tmp_path / "pictures", tmp_path / "out"
    )
    latents = made("image", f"modality.latents={tmp_path}/out", *words)
    seen = {one for step in range(12) for one in captions_of(latents.batch(2, 0, step)[1]) or []}
    assert seen == {"first", "second", "a b"} == set(latents.captions_of_split("train"))
    assert set(latents.caption_words) == {"first", "second", "a", "b"}


def test_captions_of_mirrored_latents_are_true_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), np.arange(8)[:, None], np.uint8)).save(folder / "x.png")
    (folder / "x.txt").write_text("dark on the left")
    words = ["modality.size=[8,8]", "modality.captions=true", "codec@modality.codec=identity"]
    source = f"modality.data.root={tmp_path}/pictures"
    made("image", source, "modality.data.mirror=true", *words).prepare(
        tmp_path / "pictures", tmp_path / "out"
    )
    latents = made("image", f"modality.latents={tmp_path}/out", *words)
    x, asked = latents.batch(12, 0, 0)
    sides = ["left" if one[0, 0, 0] < one[0, 0, -1] else "right" for one in x]
    assert [f"dark on the {side}" for side in sides] == captions_of(asked)
    assert {"left", "right"} == {*sides} <= {*latents.caption_words}


def test_captions_go_along_when_shapes_are_prepared(tmp_path: Path) -> None:
    rng, source = np.random.default_rng(0), tmp_path / "source" / "chair"
    source.mkdir(parents=True)
    for name in ("a", "b", "c"):
        np.save(source / f"{name}.npy", rng.random((64, 3)))
    (source / "a.txt").write_text("a red chair\nein Stuhl")
    words = ["modality.num_points=64", "modality.preparation.workers=0", "modality.preparation.split=[1,0,0]"]
    told = made("pointcloud", "modality.captions=true", *words)
    for _ in range(2):
        told.prepare(tmp_path / "source", tmp_path / "out")
        data = made("pointcloud", "modality.captions=true", f"modality.data.root={tmp_path}/out", *words)
        assert {*data.captions_of_split("train")} == {"a red chair", "ein Stuhl", "a chair"}
    made("pointcloud", *words).prepare(tmp_path / "source", tmp_path / "out")
    (tmp_path / "out" / "metadata.jsonl").write_text("")  # which the last one took away
    with pytest.raises(ValueError, match="somebody else"):
        told.prepare(tmp_path / "source", tmp_path / "out")
