"""Numbers that are none, too large, or no numbers at all, in every option of every command.

`python -m tests.command_numbers` runs them; the options are found in the composed configurations. Each run ends in
success, or in one line and exit code 2, within seconds and without much memory; each is a process of its own, forked
when everything is loaded.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from ditmoe import (
    analyze,
    convert,
    distill,
    evaluate,
    export,
    mesh,
    plan,
    prepare,
    sample,
    train,
    train_codec,
)
from ditmoe.config import cli
from tests import fuzz_seeds
from tests.fuzz import peak

VALUES = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    str(10**30),
    str(2**62),
    str(10**9),
    "true",
    "",
    "[]",
    "[-1]",
    "{}",
)
SECONDS, MEMORY = 30, 2**30
WORK = ("steps", "accumulate")
"""Options that say how long to work, which may be years."""
TINY = ["model=debug", "model.hidden_size=16", "model.depth=2", "model.num_heads=2", "trainer.steps=1",
        "trainer.batch_size=2", "finish.num=0", "sampling.steps=1", "trainer.preview_every=0"]  # fmt: skip
SETS = {
    "pointcloud": ["modality=pointcloud", "modality.num_points=16", "modality.tokens.resolution=8",
                   "modality.evaluation.cache=null", "modality.evaluation.emd_points=16",
                   "modality.evaluation.workers=1"],
    "image": ["modality=image", "modality.size=[8,8]", "modality.codec.channels=3", "modality.evaluation.cache=null"],
    "video": ["modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.data.workers=0",
              "modality.codec.steps=1", "modality.codec.width=4", "modality.codec.channels=3",
              "modality.evaluation.cache=null", "modality.evaluation.frames=5"],
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command that succeeds within a second, as it stands."""

    name: str
    main: Callable[[], None]
    config: str
    words: tuple[str, ...]


def commands(place: Path) -> Iterator[Command]:
    """Every command, for every modality that it knows; makes what they read below `place`."""
    for name, words in SETS.items():
        yield Command(f"train {name}", train.main, "train", (*TINY, *words))
    run = place / "run"
    ended = attempt(Command("", train.main, "train", (*TINY, *SETS["image"], f"hydra.run.dir={run}")), place)
    assert ended.code == 0, ended
    _sources(place)
    yield Command("sample", sample.main, "sample", (f"checkpoint={run}", "num=1", "steps=1"))
    yield Command("evaluate", evaluate.main, "evaluate", (f"checkpoint={run}", "num=2", "steps=1", "out=out"))
    few = ("samples=2", "bins=1", "permutations=20", "steps=1", "drop=false", "dial=[1]")
    yield Command("analyze", analyze.main, "analyze", (f"checkpoint={run}", *few, "out=out"))
    for name, words in SETS.items():
        sets = [f"{role}={place / name}.npz" for role in ("generated", "reference")]
        yield Command(
            f"evaluate {name}", evaluate.main, "evaluate", (*sets, *_of_evaluation(words), "out=out")
        )
    yield Command("export", export.main, "export", (f"checkpoint={run}", "out=out"))
    taught = (f"checkpoint={run}", "out=out", "trainer.steps=1", "finish.num=0", "finish.evaluate=false")
    yield Command("distill", distill.main, "distill", taught)
    cut = (f"source={place / 'source'}", "out=out", "modality.surface.resolution=16")
    yield Command("mesh", mesh.main, "mesh", cut)
    yield Command("plan", plan.main, "plan", ("model=debug",))
    source = (f"source={place / 'source'}", "out=out")
    words = ["modality.preparation.num_points=8", "modality.preparation.workers=1"]
    yield Command("prepare pointcloud", prepare.main, "prepare", (*source, *words))
    yield Command("prepare image", prepare.main, "prepare", (*source, *SETS["image"]))
    yield Command("train_codec", train_codec.main, "train_codec", (*SETS["video"], "out=out"))
    published = place / "dit" / "DiT.pt"
    yield Command(
        "convert", convert.main, "convert", (f"source={published}", "out=out", "size=4", "num_heads=2")
    )


def _of_evaluation(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(("modality=", "modality.evaluation"))]


def _sources(place: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(place / "pointcloud.npz", points=rng.random((3, 16, 3)))
    np.savez(place / "image.npz", arr_0=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    np.savez(place / "video.npz", videos=rng.integers(0, 256, (4, 5, 8, 8, 3), dtype=np.uint8))
    for name in ("a", "b"):
        (place / "source" / name).mkdir(parents=True)
        np.save(place / "source" / name / "x.npy", rng.random((20, 3)))
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            place / "source" / name / "x.png"
        )
    (place / "dit").mkdir()
    fuzz_seeds.dit(place / "dit")


def places(command: Command) -> list[tuple[str, Any]]:
    """Options of a command that are numbers, may be one (null), or are lists of numbers; and their values."""
    with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        config = compose(command.config, overrides=list(command.words))
    found: list[tuple[str, Any]] = []

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            for key, inner in node.items():
                walk(inner, f"{name}.{key}".lstrip("."))
        numbers = node if isinstance(node, list) else [node]
        if name and all(value is None or type(value) in (int, float) for value in numbers):
            found.append((name, node))

    walk(OmegaConf.to_container(config, resolve=False), "")
    return found


def cases(command: Command) -> list[str]:
    """Words that spoil a command, one each."""
    words = []
    for name, value in places(command):
        words += [f"{name}={text}" for text in VALUES]
        if isinstance(value, list) and value:
            words += [
                f"{name}=[{text},{','.join(map(str, value[1:]))}]".replace(",]", "]") for text in VALUES[:7]
            ]
    return words


@dataclass(frozen=True)
class End:
    """How a run of a command ended."""

    code: int | None
    text: str
    seconds: float
    memory: int
    files: frozenset[str] = frozenset()
    """Names of what it left, but for TensorBoard's, which tell the time."""

    @property
    def wrong(self) -> str:
        """What is wrong with it, if anything."""
        lines = [line for line in self.text.splitlines() if "error: " in line]  # a bar may stand before it
        if self.code is None:
            return f"took more than {SECONDS} s"
        if self.memory > MEMORY:
            return f"took {self.memory / 2**30:.1f} GiB"
        tried = any("not enough memory" in line and "overflowed" not in line for line in lines)  # and failed
        if self.code == 2 and len(lines) == 1 and not tried:
            return ""
        return "" if self.code == 0 else f"ended with {self.code}: {self.text[-300:]!r}"


def warm(command: Command, place: Path) -> None:
    """Run it in this process, so that all that it loads is there for those that are forked."""
    streams, arguments, here = (sys.stdout, sys.stderr), sys.argv, Path.cwd()
    with tempfile.TemporaryDirectory(dir=place) as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)
        sys.stdout, sys.stderr, sys.argv = nowhere, nowhere, [command.config, *command.words]
        with contextlib.suppress(SystemExit):
            command.main()
        os.chdir(here)
    (sys.stdout, sys.stderr), sys.argv = streams, arguments


def nothing(folder: Path) -> None:
    """Of a command's surroundings is changed."""


def attempt(command: Command, place: Path, *more: str, around: Callable[[Path], None] = nothing) -> End:
    """Run a command in a process of its own, in a new folder; `around` changes there what is around it."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        began, said = time.monotonic(), Path(folder) / "said"
        child = os.fork()
        if child == 0:
            _run(command, Path(folder), said, [*command.words, *more], around)
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() - began < SECONDS:
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(ended[1]) if ended[0] else None
        if code is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        text = said.read_text(errors="replace") if said.exists() else ""
        used = re.search(r"\npeak (-?\d+)\n", text)  # what runs beside the command may write behind it
        left = (f.name for f in Path(folder).rglob("*") if f.is_file() and not f.name.startswith("events."))
        return End(code, text, time.monotonic() - began, int(used[1]) if used else 0, frozenset(left))


def _run(
    command: Command, folder: Path, said: Path, words: list[str], around: Callable[[Path], None]
) -> None:
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = [command.config, *words]
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY,) * 2)  # the machine is others', too
        before = peak(reset=True)
        around(folder)
        try:
            command.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(handle, f"\npeak {peak() - before}\n".encode())
    finally:
        os._exit(code)


def main(
    description: str | None = __doc__,
    prepared: Callable[[Command], Command] = lambda command: command,
    words: Callable[[Command], Iterable[str]] = cases,
    judged: Callable[[str, End], str] = lambda word, end: end.wrong,
) -> None:
    """All of it, or a share.

    Args:
        prepared: a command as it is to be run.
        words: the options that a command is tried with.
        judged: what is wrong with how a command ended with one of them, "" for nothing.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the cases of each command, drawn by the seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands whose name begins so")
    parser.add_argument("--option", default="", help="options whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong, total, rng = 0, 0, random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        for command in map(prepared, commands(Path(place))):
            if not command.name.startswith(options.only):
                continue
            chosen = [word for word in words(command) if options.option in word.split("=")[0]]
            chosen = [word for word in chosen if rng.random() < options.share]
            if chosen:
                warm(command, Path(place))
                plain = attempt(command, Path(place))
                assert plain.code == 0, (command, plain)
            began = time.monotonic()
            for word in chosen:
                end = attempt(command, Path(place), word)
                asked = end.code is None and word.split("=")[0].rsplit(".", 1)[-1] in WORK
                if (problem := judged(word, end)) and not asked:
                    wrong += 1
                    print(f"{command.name} {word}: {problem}", flush=True)
            total += len(chosen)
            print(f"{command.name}: {len(chosen)} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{total} command lines, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
