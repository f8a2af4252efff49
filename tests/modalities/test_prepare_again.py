"""`prepare` again into the same folder: what a new folder would be, at the cost of what changed."""

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image as Picture

from ditmoe import prepare as command
from ditmoe.checkpoint.alone import alone_in
from ditmoe.config import build
from ditmoe.config.compose import composed
from modalities.image import Pictures
from modalities.latent import PatchPCA
from modalities.pointcloud.data import prepare as clouds
from modalities.pointcloud.data import shape_sampling
from modalities.pointcloud.data.catalogue import list_shapes
from modalities.shared import provenance
from modalities.shared.provenance import Origin, Seen
from modalities.shared.understood import Ignored
from modalities.video import CausalPatches
from modalities.video.data.clip_reader import ClipReader
from tests import subjects

WORDS = {
    "pointcloud": ("modality.preparation.num_points=16", "modality.preparation.workers=1"),
    "image": ("modality.size=[8,8]", "modality.codec.channels=3", "modality.preparation.shard=3"),
    "video": ("modality.size=[8,8]", "modality.frames=5", "modality.codec.channels=2", "modality.codec.width=4",
              "modality.data.workers=0", "modality.preparation.shard=3", "modality.preparation.starts=2"),
}  # fmt: skip
SUFFIX = {"pointcloud": ".npy", "image": ".png", "video": ".npy"}


@dataclass
class Person:
    """Someone who changes his files at random.

    Attributes:
        content: of each file, by a number that no other file ever had.
    """

    name: str
    root: Path
    rng: random.Random
    content: dict[Path, int] = field(default_factory=dict)
    made: int = 0

    def write(self, file: Path, number: int | None = None) -> None:
        if number is None:
            self.made = number = self.made + 1
        file.parent.mkdir(parents=True, exist_ok=True)
        self.content[file] = number
        draws = np.random.default_rng(number)
        if self.name == "pointcloud":
            np.save(file, draws.normal(size=(20, 3)))
        elif self.name == "image":
            Picture.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
        else:
            np.save(file, draws.integers(0, 256, (7, 8, 8, 3), np.uint8))

    def place(self) -> Path:
        folder = self.root / ("" if self.name == "pointcloud" else "train") / self.rng.choice("bcda")
        return folder / f"{self.rng.choice('xyz')}{self.rng.randrange(10**6)}{SUFFIX[self.name]}"

    def move(self, file: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        file.rename(to)
        self.content[to] = self.content.pop(file)

    def change(self) -> None:
        file, other = self.rng.sample(sorted(self.content), 2)
        match self.rng.choice(["edit", "add", "remove", "rename", "move", "touch", "swap"]):
            case "edit":
                self.write(file)
            case "add":
                self.write(self.place())
            case "remove" if len(self.content) > 5:
                file.unlink()
                del self.content[file]
            case "rename":
                self.move(file, file.with_stem(f"n{self.rng.randrange(10**6)}"))
            case "move":
                self.move(file, self.place())
            case "touch":
                self.write(file, self.content[file])
            case "swap":
                self.move(file, there := self.root / f"there{SUFFIX[self.name]}")
                self.move(other, file)
                self.move(there, other)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with a line for each source that is decoded; codecs know all they must, so that no data teach them."""
    log = tmp_path / "read"
    log.touch()

    def logged(owner: Any, name: str) -> None:
        work: Callable = getattr(owner, name)

        def logging(*arguments: Any, **options: Any) -> Any:
            with log.open("a") as stream:
                stream.write(f"{arguments}\n".replace("\n", " ") + "\n")
            return work(*arguments, **options)

        monkeypatch.setattr(owner, name, logging)

    logged(shape_sampling, "_sample")
    logged(Pictures, "_open")
    logged(ClipReader, "_frames")
    for codec in (PatchPCA, CausalPatches):
        monkeypatch.setattr(codec, "fit", lambda *_: None)
    return log


def prepare(name: str, source: Path, out: Path, *words: str) -> None:
    made = subjects.composed("prepare", f"modality={name}", "source=x", "out=y", *WORDS[name], *words)
    build.make(made["modality"]).prepare(source, out)


def content(out: Path) -> dict[str, Any]:
    """All that is in a folder, but for the state of files."""
    found: dict[str, Any] = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    lines = found[provenance.RECORD].splitlines()
    return found | {provenance.RECORD: [{**json.loads(line), "stamp": ""} for line in lines]}


@pytest.mark.parametrize("name", WORDS)
def test_again_gives_what_a_new_folder_would_be_and_reads_only_what_changed(
    name: str, tmp_path: Path, read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person(name, tmp_path / "source", random.Random(1))
    for _ in range(9):
        person.write(person.place())
    prepare(name, person.root, tmp_path / "out")
    each = 2 if name == "video" else 1  # clips of a video
    for turn in range(5):
        before = dict(person.content)
        for _ in range(turn * turn):  # the first time nothing changes
            person.change()
        read.write_text("")
        capsys.readouterr()
        prepare(name, person.root, tmp_path / "out")
        new = set(person.content.values()) - set(before.values())
        assert len(read.read_text().splitlines()) == each * len(new)
        lost = [file for file, number in before.items() if number not in person.content.values()]
        removed = sum(file not in person.content for file in lost)
        words = f"kept {len(person.content) - len(new)}, made {len(new)}, removed {removed}"
        assert words in capsys.readouterr().out
        prepare(name, person.root, tmp_path / f"fresh{turn}")
        assert content(tmp_path / "out") == content(tmp_path / f"fresh{turn}")


@pytest.mark.parametrize("name", WORDS)
def test_other_options_make_all_again_and_others_files_stay(
    name: str, tmp_path: Path, read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person(name, tmp_path / "source", random.Random(2))
    for _ in range(6):
        person.write(person.place())
    prepare(name, person.root, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("not of prepare")
    option, was = {
        "pointcloud": ("modality.preparation.num_points=12", "num_points 16"),
        "image": ("modality.size=[4,8]", "size [8, 8]"),
        "video": ("modality.preparation.starts=1", "starts 2"),
    }[name]
    capsys.readouterr()
    prepare(name, person.root, tmp_path / "out", option)
    told = capsys.readouterr().out
    assert f"was prepared with {was}: all of it is made again" in told
    assert "kept 0, made 6, removed 0" in told
    (tmp_path / "out" / "mine.txt").unlink()
    prepare(name, person.root, tmp_path / "fresh", option)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("name", WORDS)
def test_what_someone_lost_or_damaged_is_made_again(name: str, tmp_path: Path, read: Path) -> None:
    person = Person(name, tmp_path / "source", random.Random(3))
    for _ in range(6):
        person.write(person.place())
    prepare(name, person.root, tmp_path / "out")
    whole = content(tmp_path / "out")
    first, second, *_ = sorted([*(tmp_path / "out").glob("latents-*"), *(tmp_path / "out").rglob("*.npy")])
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    second.unlink()
    prepare(name, person.root, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_what_someone_else_wrote_among_the_shapes_is_left_there(
    tmp_path: Path, read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Person("pointcloud", tmp_path / "source", random.Random(4))
    for _ in range(6):
        person.write(person.place())
    prepare("pointcloud", person.root, tmp_path / "out")
    first, second, *_ = sorted((tmp_path / "out").rglob("*.npy"))
    first.write_bytes(b"edited by hand")
    (first.parent / "mine.npy").write_bytes(b"mine")
    (tmp_path / "elsewhere").mkdir()
    outside = tmp_path / "elsewhere" / second.name
    for file in list(person.content)[:-1]:
        file.unlink()
    prepare("pointcloud", person.root, tmp_path / "out")
    assert first.read_bytes() == b"edited by hand"
    assert "2 files among them were not written by prepare" in capsys.readouterr().out
    record = provenance.read(tmp_path / "out" / provenance.RECORD)
    (path, was), *_ = record.outputs.items()
    (tmp_path / "out" / path).rename(outside)
    (tmp_path / "out" / path).parent.rmdir()
    (tmp_path / "out" / path).parent.symlink_to(outside.parent)
    outside.rename(outside.parent / Path(path).name)
    assert not provenance.whole(tmp_path / "out", {path: was})


@pytest.mark.parametrize("folder", [".notes", ".made", "c0", "c0/train"])
def test_no_link_leads_what_is_written_or_removed_out_of_the_folder(tmp_path: Path, folder: str) -> None:
    for i in range(4):
        (tmp_path / "source" / "c0").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "source" / "c0" / f"{i}.npy", np.eye(3) + i * np.eye(3)[::-1])
    prepare("pointcloud", tmp_path / "source", out := tmp_path / "out")
    (victim := tmp_path / "victim").mkdir()
    for name in ("diary.txt", ".diary.0123abcd.ditmoe-draft"):
        (victim / name).write_text("dear diary")
    shutil.rmtree(out / folder, ignore_errors=True)
    (out / folder).symlink_to(victim)
    with pytest.raises(ValueError, match="but a link leads"):
        prepare("pointcloud", tmp_path / "source", out)
    assert sorted(file.name for file in victim.rglob("*")) == [".diary.0123abcd.ditmoe-draft", "diary.txt"]


def test_a_reader_sees_no_shape_that_is_on_its_way(tmp_path: Path, read: Path) -> None:
    person = Person("pointcloud", tmp_path / "source", random.Random(5))
    for _ in range(8):
        person.write(person.place())
    prepare("pointcloud", person.root, out := tmp_path / "out")
    _, shapes = list_shapes(out, None, ignored := Ignored())
    assert not ignored.counts
    files = [shape.source for split in shapes.values() for shape in split]
    report = json.loads((out / "prepare.json").read_text())
    going = files[0].relative_to(out).as_posix()
    (out / "prepare.json").write_text(json.dumps(report | {"absent": [going, 3]}))
    _, shapes = list_shapes(out, None)
    assert {shape.source for split in shapes.values() for shape in split} == {*files[1:]}


def test_a_gltf_is_made_again_where_its_buffer_changed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i, name in enumerate("ab"):
        files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.creation.box((1, 2 + i, 3))))
        (source / name).mkdir()
        for each, data in files.items():
            (source / name / each).write_bytes(data)
    assert clouds.prepare(source, tmp_path / "out", num_points=16, workers=1)["made"] == 2
    buffers = sorted((source / "a").glob("*.bin"))
    values = np.frombuffer(buffers[-1].read_bytes(), np.float32) * 2
    buffers[-1].write_bytes(values.tobytes())
    report = clouds.prepare(source, tmp_path / "out", num_points=16, workers=1)
    assert (report["made"], report["kept"], report["duplicates"]) == (1, 1, {})


def test_pictures_of_a_tar_are_known_whatever_was_put_before_them(tmp_path: Path, read: Path) -> None:
    person = Person("image", tmp_path / "pictures", random.Random(6))
    for _ in range(7):
        person.write(person.place())

    def pack(files: list[Path]) -> None:
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / "train.tar", "w") as tar:
            for file in files:
                tar.add(file, f"{file.parent.name}/{file.name}")

    first, second, *others = person.content
    pack([first, *others])
    prepare("image", tmp_path / "tars", tmp_path / "out")
    read.write_text("")
    pack([second, *others])
    prepare("image", tmp_path / "tars", tmp_path / "out")
    assert len(read.read_text().splitlines()) == 1
    prepare("image", tmp_path / "tars", tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


# --- the record


def test_a_source_is_read_only_where_its_state_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first = provenance.seen(Origin((file,)), None)
    assert first.stamp == ""  # another change within the moment would not show
    first = provenance.seen(Origin((file,)), None, lately=0)
    with monkeypatch.context() as patch:
        patch.setattr(Origin, "content", lambda _: pytest.fail("it was read"))
        assert provenance.seen(Origin((file,)), first, lately=0) == first
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert provenance.seen(Origin((file,)), first, lately=0).content != first.content


@pytest.mark.parametrize("line", [
    "[1]", "{}", "nonsense", '{"source": 1, "stamp": "", "content": "", "note": ""}', "[" * 20_000,
    '{"output": "../../x", "stamp": "", "content": "", "note": ""}',
    '{"output": "/etc/x", "stamp": "", "content": "", "note": ""}',
    '{"output": "", "stamp": "", "content": "", "note": ""}',
])  # fmt: skip
def test_a_record_of_something_else_is_one_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "sources.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="must be the record of an earlier prepare"):
        provenance.read(tmp_path / "sources.jsonl")


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = provenance.Record({"caf\udce9": Seen("a", "b", "c")}, {"x/y.npy": Seen("", "d")})
    provenance.write(tmp_path / "sources.jsonl", record)
    assert provenance.read(tmp_path / "sources.jsonl") == record
    assert provenance.read(tmp_path / "none") == provenance.Record()


def test_two_processes_do_not_prepare_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((20, 3)))
    config = composed("prepare", [f"source={tmp_path}", f"out={tmp_path / 'out'}"])
    with alone_in(tmp_path / "out"), pytest.raises(ValueError, match="another process is writing"):
        command.prepare(config)
    assert not (tmp_path / "out").exists()
