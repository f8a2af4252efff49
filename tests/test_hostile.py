"""What strangers' names, links and files must not lead to; `test_fuzz` reads what is in `hostile`."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe.checkpoint import in_memory, open_file
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.inference.writing import short_name
from ditmoe.modality import Samples
from ditmoe.outside import Arrays, file_name, file_names, files_below, is_regular, open_regular
from modalities.image import Pictures
from modalities.image.data.pictures import open_picture
from modalities.pointcloud import Clouds
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.tokens.voxel import grid_coordinates
from modalities.video.data.catalogue import list_all
from tests.hostile import archives, places

CLASSES = ["/tmp/X", "../X", "a/b", "", "..", "é" * 300, "é" * 299, "a\nb", "\x1b[2J", "a\nB"]


def modality(name: str, *words: str, data_facts: dict | None = None):
    return build.make_modality(composed("train", [f"modality={name}", "model=debug", *words]), data_facts)


def test_links_multiply_nothing(tmp_path: Path) -> None:
    root = places.loop(tmp_path)
    (root / "a" / "nowhere.png").unlink()
    (root / "b" / "nowhere.png").unlink()
    data = Pictures((8, 8), root=root)
    assert data.classes == ["a", "b"]
    listed = [p for pictures in data._listing.pictures.values() for p in pictures]
    assert len({id(p) for p in listed}) == 24
    assert sum(file.suffix == ".npy" for file in files_below(root)) == 24
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / "a").rename(root / split / "a") if split == "train" else (root / "b").rename(
            root / split / "b"
        )
    data = Pictures((8, 8), root=root)
    assert {split: len(pictures) for split, pictures in data._listing.pictures.items()} == {
        "train": 12,
        "val": 12,
        "test": 12,
    }


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    places.loop(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "root" / "a")
    # `a` has a link to the folder above, with `b` in it.
    assert len(list(files_below(tmp_path / "data"))) == 24 * 2


def test_names_that_are_no_letters_are_read_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    root = places.named(tmp_path)
    (root / os.fsdecode(b"caf\xe9") / "broken.png").write_bytes(b"x")
    data = Pictures((8, 8), root=root)
    data.reference("train")
    shown = (
        data.classes
        + [p.name for p in data.split("train")]
        + [clip.category for clip in list_all(root).clips]
    )
    assert r"caf\xe9" in data.classes
    assert r"a\x0ab" in data.classes
    out = root.parent / "out"
    report = prepare(root, out, num_points=3, workers=1)
    assert r"caf\xe9" in report["counts"]
    assert (out / "prepare.json").read_bytes().decode()
    clouds = Clouds(out, num_points=3)
    shown += [*clouds.classes, *(shape.name for shape in clouds.split("train"))]
    adapter = modality(
        "image", "modality.size=[8,8]", "modality.codec.channels=3", f"modality.data.root={root}"
    )
    adapter.prepare(root, tmp_path / "latents")
    record = json.loads((tmp_path / "latents" / "latents.json").read_bytes().decode())
    shown += record["classes"]
    for name in shown:
        assert name.isprintable(), name
        name.encode()
    streams = capfd.readouterr()
    assert not {"\x1b", "\u202e"} & set(streams.out + streams.err)


def test_classes_of_tars_are_shown(tmp_path: Path) -> None:
    with archives.tarred(tmp_path):
        pass
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\x1b[2J\n")
    assert Pictures((8, 8), root=tmp_path).classes == [r"caf\xe9\x1b[2J"]


@pytest.mark.parametrize("name", ["pointcloud", "image", "video"])
def test_class_names_are_no_paths(name: str, tmp_path: Path) -> None:
    shape = {"pointcloud": (9, 3), "image": (8, 8, 3), "video": (2, 8, 8, 3)}[name]
    data_facts: dict = {
        "classes": CLASSES,
        "mean": [0, 0, 0],
        "scale": 1.0,
        "shape": [1],
        "stride": [1],
        "codec": {},
    }
    adapter = modality(name, data_facts=data_facts)
    labels = np.arange(len(CLASSES))
    data = np.zeros((len(CLASSES), *shape), np.float32 if name == "pointcloud" else np.uint8)
    data[:, 0] = 1
    out = tmp_path / "deep" / "out"
    for number, names in enumerate((adapter.sample_names(labels.tolist()), CLASSES)):
        paths = adapter.write(Samples(data, labels, names), out / str(number))
        assert len({p.name.casefold() for p in paths}) == len(paths)
        for path in paths:
            assert path.parent == out / str(number)
            assert path.is_file()
            assert path.name.isprintable()
    assert {p.name for p in tmp_path.iterdir()} == {"deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    assert all(shown.isprintable() for shown in adapter.classes)


def test_file_names_differ() -> None:
    names = file_names(["a", "A", "a", "a-2", "..", "__", "é" * 300, "é" * 301], taken=["samples"])
    assert len({name.casefold() for name in names}) == 8
    assert file_names(["samples"], taken=["samples"]) == ["samples-2"]


def test_what_was_asked_for_differs_in_the_names_of_folders() -> None:
    asked = ["a/b", "a_b", "a:b", "a*b", "..", "__", "x\u202ey", "x_y", " a", "é" * 80, "é" * 81]
    names = [short_name(value) for value in asked]
    assert len(set(names)) == len(names)
    assert all(file_name(name) == name for name in names)
    assert [short_name(value) for value in ("a_b", "Стул", "a small chair", 7)] == [
        "a_b",
        "Стул",
        "a small chair",
        "7",
    ]


def test_a_stranger_s_record_names_no_folder_to_be_read(tmp_path: Path) -> None:
    words = ["modality.size=[8,8]", "modality.codec.channels=3"]
    places.loop(tmp_path)
    modality("image", *words).prepare(tmp_path / "root", tmp_path / "latents")
    with pytest.raises(ValueError, match=r"modality.data.root must be given .*root"):
        modality("image", *words, f"modality.latents={tmp_path / 'latents'}").reference("test")


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_saves_is_read_as_torch_reads_it(old: bool, tmp_path: Path) -> None:
    """By a machine that calls nothing: views, shared storages, parameters, module states, options."""
    big = torch.randn(6, 7)
    layer = torch.nn.Linear(3, 4).double()
    content = {"ema": layer.state_dict(), "list": [big.T, (big[2], 1.5, None, True, 2**40)], "text": "é",
               "weight": torch.nn.Parameter(big[:, ::2]), "half": big.bfloat16(), "flags": big > 0,
               "empty": torch.zeros(0, 3)}  # fmt: skip
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = open_file(tmp_path / "a.pt")
    wanted = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["text"] == "é"
    assert found["list"][1][1:] == (1.5, None, True, 2**40)
    pairs = [(found["list"][0], wanted["list"][0]), (found["list"][1][0], wanted["list"][1][0])]
    pairs += [(found[name], wanted[name]) for name in ("weight", "half", "flags", "empty")]
    pairs += [(found["ema"][name], value) for name, value in wanted["ema"].items()]
    for mine, theirs in pairs:
        assert torch.equal(in_memory(mine), theirs.detach())
        assert mine.dtype == theirs.dtype


def test_arrays_are_numpy_s(tmp_path: Path) -> None:
    made = {
        "a": np.arange(12.0).reshape(3, 4),
        "f": np.asfortranarray(np.eye(3, dtype=np.int8)),
        "n": np.array(3),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **made)
        with Arrays(tmp_path / "a.npz") as found:
            assert list(found) == list(made)
            assert all(np.array_equal(found[name], value) for name, value in made.items())
    np.savez(tmp_path / "b.npz", o=np.array([{}], object))
    with Arrays(tmp_path / "b.npz") as found, pytest.raises(ValueError, match="the array o is damaged"):
        found["o"]
    with (
        zipfile.ZipFile(tmp_path / "a.npz") as old,
        zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_BZIP2) as new,
    ):
        new.writestr("a.npy", old.read("a.npy"))
    with Arrays(tmp_path / "c.npz") as found, pytest.raises(ValueError, match="stored or deflated"):
        found["a"]


def test_deep_pictures_become_what_they_were(tmp_path: Path) -> None:
    """In strips, to the numbers of the whole."""
    values = np.random.default_rng(0).integers(0, 65536, (2000, 1300), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    wanted = (values / 257.0).round().astype(np.uint8)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png"))[..., 0], wanted)
    with pytest.raises(ValueError, match="at most 1000 pixels, got 1300 x 2000"):
        open_picture(tmp_path / "a.png", max_pixels=1000)


def test_points_that_are_no_numbers_are_no_indices() -> None:
    points = torch.tensor([[[float("nan")] * 3, [1e38] * 3, [-1e38, 0, float("inf")], [1e-40] * 3]])
    for extent in (None, 3.0):
        index = grid_coordinates(points, 8, extent).round().long()
        assert 0 <= int(index.min()) <= int(index.max()) < 8


def test_shapes_whose_names_print_alike_are_two(tmp_path: Path) -> None:
    """A byte that is no text, the letter of its number, and that number as somebody writes it."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(
        (b"a\xad", "a\xad".encode(), rb"a\xad", rb"a\u00ad", b"a\x85", "a\x85".encode())
    ):
        with open(os.fsencode(tmp_path / "in") + b"/" + name + b".npy", "wb") as stream:
            stream.write(places.npy(number) if number % 2 else bytes([number]) * (1 + number))
    report = prepare(tmp_path / "in", tmp_path / "out", num_points=3, workers=1)
    assert len(report["unreadable"]) == 3
    assert sum(report["counts"]["shape"].values()) == 3
    assert prepare(tmp_path / "in", tmp_path / "out", num_points=3, workers=1)["kept"] == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc here")
def test_files_of_the_kernel_are_no_data() -> None:
    for name in ("/proc/self/maps", "/proc/cpuinfo", "/proc/self/pagemap"):
        assert not is_regular(Path(name))
        with pytest.raises(ValueError, match=r"^[^\n]* got one of the kernel \(/proc, /sys\)$"):
            open_regular(Path(name))
