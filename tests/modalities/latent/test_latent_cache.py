"""Latents on disk: the batches that encoding on the way gives, from folders that are whole or refused."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ditmoe.checkpoint import atomic
from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.prepare import prepare
from modalities.image import Pictures
from modalities.image.data.dataset import turn
from modalities.latent import Identity, PatchPCA, latent_cache, latent_writer
from modalities.latent.codec import to_pixels
from modalities.latent.latent_shards import Source

SIZE = (9, 9)
LABELS = "asked.label"
TEXT = "asked.text"


def pictures(root: Path, each: int = 9, mirror: bool = False) -> Pictures:
    """Two classes of pictures, none like another."""
    rng = np.random.default_rng(0)
    for label in range(0 if root.exists() else 2):
        (place := root / "train" / f"class{label}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(place / f"{i}.png")
    return Pictures(SIZE, root, mirror=mirror)


def source(data: Pictures) -> Source:
    chosen = data.split("train")

    def read(numbers: Sequence[int]) -> list:
        return data.views([chosen[i] for i in numbers])

    names, labels = [p.name for p in chosen], [p.label for p in chosen]
    return Source(
        "picture",
        names,
        Condition.of_labels(torch.tensor(labels), 10),
        data.classes,
        read,
        data.unreadable,
        lambda i: chosen[i].origin(),
    )


def encode(images: np.ndarray) -> torch.Tensor:
    return to_pixels(images)[:, :, ::3, ::3]


def make(tmp_path: Path, encode=encode, codec=None, setting=None, **options) -> tuple[Pictures, Path, dict]:
    data = pictures(tmp_path / "pictures", mirror=options.pop("mirror", False))
    options = {"dtype": "float32", "batch": 4, **options}
    report = latent_writer.prepare(
        source(data),
        encode,
        tmp_path / "latents",
        setting or {"size": [9, 9]},
        codec or Identity(),
        **options,
    )
    return data, tmp_path / "latents", report


def stored(folder: Path, mirror: bool = False) -> latent_cache.Latents:
    return latent_cache.Latents(folder, partial(turn, mirror=mirror))


def test_latents_that_are_cut_off_while_they_are_used_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment, after the last look at the file too: what is mapped and no longer there ends a process."""
    _, folder, report = make(tmp_path)
    found = stored(folder)
    found.batch(2, 0, 0)
    look = os.fstat

    def cut(handle: int) -> os.stat_result:
        about = look(handle)
        os.truncate(folder / report["shards"][0], 100)
        return about

    monkeypatch.setattr(os, "fstat", cut)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^[^\n]* is damaged, prepare it again: [^\n]* ends too early$"):
            found.batch(2, 0, 1)


def test_latents_may_lie_in_a_folder_of_any_name(tmp_path: Path) -> None:
    _, folder, _ = make(tmp_path)
    found = stored(folder.rename(folder.with_name(os.fsdecode(b"caf\xe9"))))
    assert torch.equal(found.batch(2, 0, 0)[0], stored(found.folder).batch(2, 0, 0)[0])


def test_whatever_is_asked_lies_beside_the_latents(tmp_path: Path) -> None:
    data, g = pictures(tmp_path / "pictures"), torch.Generator().manual_seed(0)
    parts = [
        Condition(
            {"label": torch.tensor([i % 2]), "words": torch.randn(1, 1 + i % 3, 2, generator=g)},
            torch.tensor([i == 4]),
        )
        for i in range(18)
    ]
    asked = Condition.cat(parts)
    latent_writer.prepare(
        replace(source(data), asked=asked),
        encode,
        tmp_path / "out",
        {"size": [9, 9]},
        Identity(),
        shard=5,
        dtype="float32",
    )
    z, found = stored(tmp_path / "out").batch(12, 5, 0)
    images, _ = data.batch(12, 5, 0)
    every = encode(np.concatenate(data.views(data.split("train"))))
    rows = [int((every == one).flatten(1).all(1).nonzero()) for one in encode(images)]
    assert torch.equal(z, every[rows])
    for name, value in asked.take(rows).tensors().items():
        assert torch.equal(found.tensors()[name], value)


@pytest.mark.parametrize("mirror", [False, True])
def test_latents_on_disk_are_the_batches_that_encoding_on_the_fly_gives(tmp_path: Path, mirror: bool) -> None:
    data, out, report = make(tmp_path, mirror=mirror, shard=5)
    assert len(report["shards"]) == 4
    found = stored(out, mirror)
    assert len(found) == 18
    assert found.shape == (3, 3, 3)
    for step in range(4):
        z, y = found.batch(7, 5, step)
        images, labels = data.batch(7, 5, step)
        assert torch.equal(z, encode(images))
        assert np.array_equal(y.labels(10).numpy(), labels)
    halves = [found.batch(3, 1, 1, rank, 2)[0] for rank in range(2)]
    assert torch.equal(torch.cat(halves), found.batch(6, 1, 1)[0])


def test_an_interrupted_preparation_goes_on_and_another_folder_is_refused(tmp_path: Path) -> None:
    calls = []

    def failing(images: np.ndarray) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return encode(images)

    out = tmp_path / "latents"
    out.mkdir()
    (out / ".latents.json.01234567.ditmoe-draft").write_bytes(b"left by a kill")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, failing, shard=8)
    with pytest.raises(ValueError, match="is not complete: run the same prepare again"):
        stored(out)
    assert not list(out.glob(".*"))
    (out / ".latents.json.01234567.ditmoe-draft").write_bytes(b"left by a kill")
    atomic.clear(out)
    assert make(tmp_path, shard=8)[2]["made"] == 10
    assert not list(out.glob(".*"))
    assert len(stored(out)) == 18
    before = {file.name: file.read_bytes() for file in out.glob("latents-*")}
    assert make(tmp_path, failing, shard=8)[2]["made"] == 0
    assert before == {file.name: file.read_bytes() for file in out.glob("latents-*")}
    with pytest.raises(ValueError, match="holds something else"):
        latent_writer.prepare(
            source(pictures(tmp_path / "pictures")), encode, tmp_path / "pictures", {}, Identity()
        )


def test_a_codec_comes_back_or_another_one_is_refused(tmp_path: Path) -> None:
    codec = PatchPCA([3, 3], 4)
    codec.fit([torch.randn(64, 3, 9, 9)])
    _, out, _ = make(tmp_path, codec=codec)
    found, other = stored(out), PatchPCA([3, 3], 4)
    found.restore(other)
    assert torch.equal(other.basis, codec.basis)
    with pytest.raises(ValueError, match=r"modality.codec must be the one of .*, PatchPCA, got Identity"):
        found.restore(Identity())
    with pytest.raises(ValueError, match=r"basis was \(27, 4\), is \(27, 5\)"):
        found.restore(PatchPCA([3, 3], 5))
    record = json.loads((out / latent_cache.RECORD).read_text())
    other_record = record | {"fingerprint": 64 * "0"}
    (out / latent_cache.RECORD).write_text(json.dumps(other_record))
    latent_cache.codec_file(out, record).rename(latent_cache.codec_file(out, other_record))
    with pytest.raises(ValueError, match="got PatchPCA with other weights or options"):
        stored(out).restore(other)
    (out / latent_cache.RECORD).write_text(json.dumps(record | {"format": "ditmoe-latents-1"}))
    with pytest.raises(ValueError, match="was not written by this version's prepare"):
        stored(out)


def test_unreadable_pictures_are_left_out_of_latents_and_named(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "pictures/train/class0/4.png").write_bytes(b"broken")
    _, out, report = make(tmp_path, shard=5)
    assert list(report["unreadable"]) == ["train/class0/4.png"]
    assert len(stored(out)) == 17
    (out / report["shards"][1]).write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"latents-\w+.safetensors is damaged"):
        stored(out).batch(2, 0, 0)
    for file in (tmp_path / "pictures").rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="source must hold readable pictures, got 18 others"):
        latent_writer.prepare(
            source(pictures(tmp_path / "pictures")), encode, tmp_path / "none", {}, Identity()
        )


@pytest.mark.parametrize("at_once", [1, 4])
def test_always_as_many_views_are_encoded_at_once(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on a CPU, a batch on a GPU: rounding does not depend on how many there are."""
    sizes: list[int] = []

    def counting(images: np.ndarray) -> torch.Tensor:
        sizes.append(len(images))
        return encode(images)

    if at_once > 1:
        monkeypatch.setattr(latent_writer, "_at_once", lambda codec, batch: batch)
    data, out, _ = make(tmp_path, counting, mirror=True, batch=4, shard=7)
    assert set(sizes) == {at_once}
    assert torch.equal(stored(out, True).batch(7, 5, 0)[0], encode(data.batch(7, 5, 0)[0]))
    with pytest.raises(ValueError, match="shard and batch must be at least 1"):
        make(tmp_path, batch=0)


def test_shards_whose_parts_do_not_fit_are_one_line_that_names_them(tmp_path: Path) -> None:
    _, out, _ = make(tmp_path)
    shard = next(out.glob("latents-*.safetensors"))
    whole = load_file(shard)
    label = next(name for name in whole if name.endswith("label"))
    save_file(whole | {label: whole[label][:-1].clone()}, shard)
    for use in (len, lambda latents: latents.shape, lambda latents: latents.batch(2, 0, 0)):
        with pytest.raises(
            ValueError, match=rf"^[^\n]*{shard.name} is damaged[^\n]*as many of everything[^\n]*$"
        ):
            use(stored(out))
    save_file(whole | {label: whole[label] + 99}, shard)
    with pytest.raises(
        ValueError, match=rf"^{shard} is damaged: its labels must be whole numbers up to 2, got 99 to 100$"
    ):
        stored(out).captions_of_split("train")


@pytest.mark.parametrize("twice", ["latents", LABELS])
def test_tensors_that_are_there_twice_are_one_line(twice: str, tmp_path: Path) -> None:
    """Which of them counts would be up to the reader."""
    _, out, report = make(tmp_path)
    content = (shard := out / report["shards"][0]).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip()
    more = json.dumps({twice: json.loads(header)[twice]}).encode()
    header = header[:-1] + b", " + more[1:]
    shard.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    with pytest.raises(ValueError, match=rf"^{shard} is damaged: prepare again$"):
        len(stored(out))


@pytest.mark.parametrize("place", [0, 1])
def test_files_that_are_missing_or_no_files_are_one_line(place: int, tmp_path: Path) -> None:
    _, out, report = make(tmp_path, shard=7)
    shard = out / report["shards"][place]
    shard.unlink()
    for put in (lambda: None, lambda: shard.symlink_to("/dev/zero"), lambda: os.mkfifo(shard)):
        put()
        with pytest.raises(ValueError, match=rf"^{shard} is damaged: prepare again$"):
            len(stored(out))
        shard.unlink(missing_ok=True)


def test_files_that_the_record_does_not_count_are_told(tmp_path: Path) -> None:
    _, out, report = make(tmp_path, shard=7)
    num, shards = report["num"], report["shards"]
    whole = json.loads((out / "latents.json").read_text())
    changes: list[dict] = [{"shards": shards[1:]}, {"shards": [*shards, shards[0]]}, {"num": num + 1}]
    for change in [*changes, {"unreadable": {"a.png": "empty"}}]:
        (out / "latents.json").write_text(json.dumps(whole | change))
        with pytest.raises(
            ValueError, match=r"must hold the \d+ latents that latents\.json counts, got \d+$"
        ):
            len(stored(out))
    (out / "latents.json").write_text(json.dumps(whole | {"num": "many"}))
    with pytest.raises(ValueError, match=r"is not complete: run the same prepare again$"):
        stored(out)


def test_classes_that_are_no_names_are_refused(tmp_path: Path) -> None:
    _, out, _ = make(tmp_path)
    record = out / "latents.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"classes": ["a", {"b": 1}]}))
    with pytest.raises(ValueError, match=r"is not complete: run the same prepare again$"):
        len(stored(out))


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    return lambda whole: whole | {name: change(whole[name])}


WRONG = {
    "labels that are no whole numbers": (changed(LABELS, torch.Tensor.float), "its asked.label must be .n,. whole"),
    "labels of another type": (changed(LABELS, torch.Tensor.int), "whole numbers in I64, got I32 of .7.$"),
    "labels in a column": (changed(LABELS, lambda x: x[:, None]), r"got I64 of .7, 1.$"),
    "a label": (changed(LABELS, lambda x: x[0]), "as many of everything as of latents, got .*'one number'"),
    "labels below none": (changed(LABELS, lambda x: -1 - x), "must be whole numbers up to 2, got -. to -1$"),
    "captions that are no letters": (lambda whole: whole | {TEXT: torch.zeros(7, 2)}, "in U8, got F32 of .7, 2.$"),
    "captions in a row": (lambda whole: whole | {TEXT: torch.zeros(7, dtype=torch.uint8)}, "in U8, got U8 of .7.$"),
    "nothing that says what they are": (lambda whole: {"latents": whole["latents"]}, "must have null"),
    "flat latents": (changed("latents", lambda x: x[:, 0, 0, 0, 0]), r"views, channels, .*, got F32 of .7.$"),
    "a flat array of two": (
        lambda whole: {"latents": torch.zeros(2), **{name: x[:2] for name, x in whole.items() if name != "latents"}},
        r"must be .n, views, channels, .*, got F32 of .2.$",
    ),
    "one number": (lambda whole: {name: x.flatten()[0] for name, x in whole.items()}, "as many of everything as of"),
    "latents without views": (changed("latents", lambda x: x[:, :0]), r"got F32 of .7, 0, 3, 3, 3.$"),
    "latents that are whole": (changed("latents", torch.Tensor.long), "in float32, float16 or bfloat16, got I64"),
    "complex latents": (changed("latents", lambda x: x + 0j), "in float32, float16 or bfloat16, got C64"),
    "latents of another size": (changed("latents", lambda x: x[..., :2]), "as the first file, got F32 of .7, 1, 3, "),
    "latents that are not finite": (changed("latents", lambda x: x / 0), "must hold finite numbers, got others in lat"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_latents_is_one_line_that_names_the_file(name: str, place: int, tmp_path: Path) -> None:
    _, out, report = make(tmp_path, shard=7)
    change, said = WRONG[name]
    shard = out / report["shards"][place]
    whole = load_file(shard)
    shard.unlink()
    save_file({name: x.clone().contiguous() for name, x in change(whole).items()}, shard)
    other = out / report["shards"][1 if name == "latents of another size" else place]
    with pytest.raises(ValueError, match=rf"^[^\n]*{other.name}[^\n]*{said}[^\n]*$") as told:
        stored(out).batch(18, 0, 0)
    assert str(told.value).count("damaged") == 1


def test_latents_of_another_shape_than_the_codec_makes_are_refused(tmp_path: Path) -> None:
    _, out, report = make(tmp_path)
    stored(out).check_shape([3, 3, 3])
    shape = r"must hold latents of \[4, 3, 3\], as the codec makes them, got \[3, 3, 3\]$"
    with pytest.raises(ValueError, match=rf"^[^\n]*{report['shards'][0]} is damaged: it {shape}"):
        stored(out).check_shape([4, 3, 3])


def test_latents_that_overflow_are_told_while_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the latents of train/class0/0.* and are not in float16: try .*float32$"
    ):
        make(tmp_path, lambda images: 1e5 + encode(images), dtype="float16")


@pytest.mark.parametrize("known", [False, True], ids=["a new run", "a run that goes on"])
def test_no_run_begins_on_latents_of_another_shape_than_its_codec_makes(known: bool, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "pictures"), tmp_path / "out"
    words = ["modality=image", "modality.size=[9,9]", "codec@modality.codec=identity"]
    prepare(composed("prepare", [f"source={tmp_path / 'pictures'}", f"out={out}", *words]))
    adapter = build.make_whole(composed("train", [*words, f"modality.latents={out}"])["modality"])
    if known:
        adapter.restore_facts({"codec": adapter.codec.fitted_state(), "classes": data.classes})
        del adapter.codec, adapter.cached
    (shard,) = out.glob("latents-*")
    whole = load_file(shard)
    shard.unlink()
    save_file(whole | {"latents": whole["latents"][:, :, :2].clone()}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged: it must hold latents of \[3, 9, 9\]"):
        _ = adapter.codec
