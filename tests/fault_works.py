"""What `tests.faults` disturbs: commands on tiny inputs, what must be whole of them at any time, and at the end."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditmoe import checkpoint
from ditmoe.analysis import analyze_checkpoint
from ditmoe.checkpoint import atomic
from ditmoe.config.compose import composed
from ditmoe.convert import convert
from ditmoe.distill import distill
from ditmoe.evaluate import evaluate
from ditmoe.export import command as export
from ditmoe.inference import sample_checkpoint
from ditmoe.mesh import mesh
from ditmoe.prepare import prepare
from ditmoe.reporting import write_report
from ditmoe.train_codec import train_codec
from ditmoe.training.resume import resume
from ditmoe.view import view
from modalities.video.codec import training
from modalities.video.data import MovingDigits
from tests import fuzz_seeds
from tests.training.test_trainer import trainer

CLOCKS = ("seconds", "samples_per_second", "kept", "source", "stamp")
"""Entries of records that tell when and how something was made."""


@dataclass(frozen=True)
class Work:
    """A command that writes below a place.

    Attributes:
        run: does it, or goes on with it.
        begin: makes what is there before.
        whole: whether what is there is whole after an attempt; from what is below the place at the beginning and at
            the end, and from what this gave after the attempt before.
    """

    name: str
    run: Callable[[Path], object]
    begin: Callable[[Path], object]
    whole: Callable[[Path, Any, Any, Any], Any]


def contents(place: Path) -> dict[str, Any]:
    """Files below a place, but for hidden ones; of records what does not tell the time."""
    return {
        str(path.relative_to(place)): _content(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
        and not path.name.startswith("events.") and path.name != "report.html"  # with curves of speed
    }  # fmt: skip


def _content(path: Path) -> Any:
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    records = map(
        json.loads, path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    )
    return [_untimed({k: v for k, v in record.items() if k not in CLOCKS}) for record in records]


def _untimed(node: Any) -> Any:
    """Without seconds, wherever they are."""
    if isinstance(node, dict):
        return {key: _untimed(value) for key, value in node.items() if key != "seconds"}
    return list(map(_untimed, node)) if isinstance(node, list) else node


def swapped(folder: str) -> Callable[..., bool]:
    """The folder is the old one or the new one, which never becomes the old one again."""

    def whole(place: Path, mark: bool | None, old: dict, new: dict) -> bool:
        atomic.recover(place / folder)  # as whoever opens it does
        found = contents(place)
        assert found == new or (found == old and not mark), f"{place} holds {list(found)}"
        return found == new

    return whole


def piecewise(place: Path, mark: Any, old: dict, new: dict) -> None:
    """Each file is the old one or the new one; records may be on their way."""
    for name, content in contents(place).items():
        known = content in (old.get(name), new.get(name))
        assert known or (name.endswith((".json", ".jsonl")) and content[0]), f"{place / name} is another"


def readable(files: dict[str, Any]) -> dict[str, Any]:
    """Of the files of a prepared folder, those that training reads."""
    report = next(
        (content[0] for name, content in files.items() if name.endswith(("latents.json", "prepare.json"))), {}
    )
    named = {f"out/{name}" for name in report.get("shards", ())}
    absent = {f"out/{path}" for path in report.get("absent", ())}
    return {
        name: of
        for name, of in files.items()
        if name in named or (name.endswith(".npy") and name not in absent)
    }


def at_once(place: Path, mark: bool | None, old: dict, new: dict) -> bool:
    """What training reads is all old or all new, which never becomes the old one again."""
    found = readable(contents(place))
    assert found == readable(new) or (found == readable(old) and not mark), f"{place} holds {list(found)}"
    return found == readable(new)


def no_step_is_lost(place: Path, mark: int | None, old: dict, new: dict) -> int:
    """The newest whole checkpoint is not older than it was, and loads."""
    if not checkpoint.exists(place / "out"):
        assert not mark, f"{place}: step {mark} is lost"
        return 0
    step = checkpoint.load(place / "out")["step"]
    assert step >= (mark or 0), f"{place}: step {mark} is lost, {step} is left"
    return step


def config(command: str, *words: str) -> dict[str, Any]:
    return composed(command, ["hydra.run.dir=.", *words])


def made(place: Path) -> Path:
    place.mkdir()
    return place


def two_runs(home: Path) -> None:
    """run0 and run1, of which a command makes what was there before, and what is new."""
    for seed in "01":
        trainer(home / f"run{seed}", "trainer.steps=1", f"seed={seed}")[0].run()


def of_train(home: Path) -> Work:
    words = ["trainer.steps=8", "trainer.save_every=2", "trainer.log_every=3", "trainer.accumulate=2"]

    def run(place: Path) -> None:
        one, settings = trainer(place / "out", *words)
        with one.exclusive_lock():
            if checkpoint.exists(one.folder):
                resume(one, settings)
            if not one.run():
                raise KeyboardInterrupt

    return Work("train", run, made, no_step_is_lost)


def of_convert(home: Path, name: str = "convert") -> Work:
    sources = fuzz_seeds.dit(made(home / "sources"))
    settings = config("convert", "source=x", "out=y", "size=4", "num_heads=2", "max_shard_gb=1e-4")

    def run(place: Path, source: Path = sources[0]) -> None:
        if name != "convert":
            atomic._exchange = lambda *_: False
        convert(settings | {"source": str(source), "out": str(place / "out")})

    return Work(name, run, lambda place: run(made(place), sources[2]), swapped("out"))


def of_convert_without_exchange(home: Path) -> Work:
    return of_convert(home, "convert-moved")


def of_export(home: Path) -> Work:
    two_runs(home)

    def run(place: Path, source: str = "run1") -> None:
        export({"checkpoint": str(home / source), "out": str(place / "out")})

    return Work("export", run, lambda place: run(made(place), "run0"), swapped("out"))


def of_clouds(home: Path) -> Work:
    rng = np.random.default_rng(0)
    for name in "abcdef":
        (folder := home / "source" / f"class{name}").mkdir(parents=True)
        np.save(folder / f"{name}.npy", rng.normal(size=(90, 3)))
    return _prepared("clouds", home, "modality=pointcloud", *CLOUDS)


def of_images(home: Path) -> Work:
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder := home / "source" / "train" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return _prepared("images", home, "modality=image", *IMAGES)


def of_videos(home: Path) -> Work:
    for number, clip in enumerate(MovingDigits((16, 16), 8).batch(8, 0, 0)[0]):
        (folder := home / "source" / "train" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number}.npy", clip)
    words = ["modality.codec.channels=6", "modality.codec.steps=2", "modality.codec.width=8"]
    return _prepared("videos", home, *VIDEO, *words, "modality.preparation.shard=2")


CLOUDS = ["modality.preparation.num_points=64", "modality.preparation.workers=2"]
IMAGES = ["modality.preparation.shard=3"]
VIDEO = ["modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.data.workers=0"]


def _prepared(name: str, home: Path, *words: str) -> Work:
    settings = config("prepare", f"source={home / 'source'}", "out=y", *words)
    return Work(name, lambda place: prepare(settings | {"out": str(place / "out")}), made, piecewise)


def of_clouds_again(home: Path) -> Work:
    of_clouds(home)
    return _again("clouds-again", home, "modality=pointcloud", *CLOUDS)


def of_images_again(home: Path) -> Work:
    of_images(home)
    return _again("images-again", home, "modality=image", *IMAGES)


def _again(name: str, home: Path, *words: str) -> Work:
    """Prepare a copy of the sources, of which some are edited, added, moved and removed, where they were prepared."""
    shutil.copytree(home / "source", home / "edited")
    files = sorted(path for path in (home / "edited").rglob("*") if path.is_file())
    edited, moved, removed, last = files[0], files[1], files[2], files[-1]
    removed.rename(edited)  # as if edited to that
    moved.rename(last.with_stem(f"{moved.stem}-moved"))
    new = np.random.default_rng(1).integers(
        0, 256, (90, 3) if edited.suffix == ".npy" else (32, 32, 3), np.uint8
    )
    if edited.suffix == ".npy":
        np.save(edited.with_name("new.npy"), new)
    else:
        Image.fromarray(new).save(edited.with_name("new.png"))
    first = config("prepare", f"source={home / 'source'}", "out=y", *words)
    then = config("prepare", f"source={home / 'edited'}", "out=y", *words)

    def begin(place: Path) -> None:
        prepare(first | {"out": str(made(place) / "out")})

    return Work(name, lambda place: prepare(then | {"out": str(place / "out")}), begin, at_once)


def of_train_codec(home: Path) -> Work:
    words = ["modality.codec.channels=6", "modality.codec.steps=6", "modality.codec.width=8"]
    settings = config("train_codec", "out=y", *VIDEO, *words)

    def run(place: Path) -> None:
        training.SAVE_EVERY = 0.0  # as if each step took long
        train_codec(settings | {"out": str(place / "out")})

    return Work("train_codec", run, made, no_step_is_lost)


def of_evaluate(home: Path) -> Work:
    rng = np.random.default_rng(0)
    for name in ("old", "new", "reference"):
        np.savez(home / f"{name}.npz", points=rng.normal(size=(4, 64, 3)))

    def run(place: Path, generated: str = "new") -> None:
        words = [f"generated={home / generated}.npz", f"reference={home / 'reference.npz'}", f"out={place / 'out'}",
                 f"modality.evaluation.cache={place / 'cache'}", "modality.evaluation.emd_points=32"]  # fmt: skip
        evaluate(config("evaluate", "modality=pointcloud", *words))

    return Work("evaluate", run, lambda place: run(made(place), "old"), piecewise)


def of_distill(home: Path) -> Work:
    trainer(home / "teacher", "trainer.steps=1")[0].run()
    words = [f"checkpoint={home / 'teacher'}", "out=y", "guidance=[1,2]", "trainer.precision=fp32"]
    words += ["trainer.steps=6", "trainer.save_every=2", "trainer.preview_every=0"]
    words += ["finish.evaluate=false", "finish.num=0"]
    settings = config("distill", *words)

    def run(place: Path) -> None:
        distill(settings | {"out": str(place / "out")})

    return Work("distill", run, made, no_step_is_lost)


def of_mesh(home: Path) -> Work:
    rng = np.random.default_rng(0)
    for name in ("old", "new"):
        points = rng.normal(size=(3, 60, 3))
        np.savez(home / f"{name}.npz", points=points / np.linalg.norm(points, axis=2, keepdims=True))

    def run(place: Path, source: str = "new") -> None:
        words = [f"source={home / source}.npz", f"out={place / 'out'}", "modality.surface.resolution=16"]
        mesh(config("mesh", *words))

    return Work("mesh", run, lambda place: run(made(place), "old"), piecewise)


def of_view(home: Path) -> Work:
    rng = np.random.default_rng(0)
    for name in ("old", "new"):
        np.save(home / f"{name}.npy", rng.normal(size=(200, 3)))

    def run(place: Path, source: str = "new") -> None:
        view([str(home / f"{source}.npy"), "--out", str(place / "out" / "view.png")])

    return Work("view", run, lambda place: run(made(place), "old"), piecewise)


def of_analyze(home: Path) -> Work:
    two_runs(home)
    few = {"samples": 2, "bins": 1, "permutations": 20, "drop": False, "dial": []}

    def run(place: Path, source: str = "run1") -> None:
        analyze_checkpoint(home / source, out=place / "out", **few)

    return Work("analyze", run, lambda place: run(made(place), "run0"), swapped("out"))


def of_sample(home: Path) -> Work:
    two_runs(home)

    def run(place: Path, source: str = "run1") -> None:
        sample_checkpoint(home / source, num=3, out=place / "out", steps=1)

    return Work("sample", run, lambda place: run(made(place), "run0"), piecewise)


def of_report(home: Path) -> Work:
    two_runs(home)

    def run(place: Path, source: str = "run1") -> None:
        write_report([home / source], place / "out" / "page.html")

    return Work("report", run, lambda place: run(made(place), "run0"), piecewise)


WORKS: dict[str, Callable[[Path], Work]] = {
    "train": of_train,
    "convert": of_convert,
    "convert-moved": of_convert_without_exchange,
    "export": of_export,
    "clouds": of_clouds,
    "images": of_images,
    "videos": of_videos,
    "clouds-again": of_clouds_again,
    "images-again": of_images_again,
    "train_codec": of_train_codec,
    "evaluate": of_evaluate,
    "distill": of_distill,
    "mesh": of_mesh,
    "report": of_report,
    "view": of_view,
    "analyze": of_analyze,
    "sample": of_sample,
}
