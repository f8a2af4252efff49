"""What is watched while a stranger's file is used, what such a file may hold, and the commands that use it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditmoe import checkpoint
from ditmoe.analysis import analyze_checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.export import export
from ditmoe.inference import evaluate_checkpoint, sample_checkpoint
from ditmoe.reporting import write_report

PROCESSES = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.",
)
NETWORK = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.", "pickle.find_class",
)  # fmt: skip
OURS = (str(Path(__file__).resolve().parents[1]), sys.prefix, sys.base_prefix)
"""Where libraries may be loaded from."""
_watching: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    allowed, seen = _watching[-1]
    if event.startswith((*PROCESSES, *NETWORK)):
        seen.append(f"{event} {arguments}")
    if event == "ctypes.dlopen" and not str(arguments[0] or OURS[0]).startswith(OURS):
        seen.append(f"{event} {arguments}")
    writes = (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if writes or event.startswith(CHANGES):
        paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        real = [os.path.realpath(p) for p in paths if p not in ("w", "wb", "r+", "x", "xb", os.devnull)]
        cache = Path.cwd() / "runs"  # where ditmoe's own configuration keeps features of real samples
        places = (allowed, cache)
        seen.extend(
            f"{event} {p}" for p in real if not any(Path(p).is_relative_to(place) for place in places)
        )


@contextmanager
def watched(allowed: Path) -> Iterator[list[str]]:
    """What is done meanwhile beside reading, and writing below one folder."""
    if not getattr(sys, "ditmoe_audit", False):  # a hook stays for good
        sys.addaudithook(_hook)
        sys.ditmoe_audit = True  # type: ignore[attr-defined]
    seen: list[str] = []
    _watching.append((allowed.resolve(), seen))
    try:
        yield seen
    finally:
        _watching.pop()


GADGETS: list[Any] = [
    {"_target_": "torch.utils.collect_env.run", "command": "touch PWNED"},
    {"_target_": "os.system", "command": "touch PWNED"},
    {"_target_": "subprocess.Popen", "args": ["touch", "PWNED"]},
    {"_target_": "builtins.open", "file": "PWNED", "mode": "w"},
    {"_target_": "shutil.rmtree", "path": "victim"},
    {"_target_": "torch.hub.load", "repo_or_dir": "a", "model": "b"},
    {"_target_": "diffusers.ModularPipeline", "pretrained_model_name_or_path": "someone/model"},
    {"_target_": "diffusers.AutoencoderKL.from_pretrained", "pretrained_model_name_or_path": "someone/model"},
    {"_target_": "modalities.image.Autoencoder", "path": "someone/model"},
    {"_target_": "modalities.image.Autoencoder", "path": "victim"},
    {"_target_": "modalities.video.CausalPatches", "path": "victim", "width": 2**24, "depth": 4000},
    {"_target_": "ditmoe.checkpoint.atomic.discard", "litter": "victim"},
    {"_target_": "webbrowser.open", "url": "x"},
    {"_target_": "importlib.import_module", "name": "planted"},
    "${oc.env:HOME}",
    "someone/model",
    "/etc/hostname",
]
SECTIONS = (
    "model",
    "router",
    "conditioning",
    "modality",
    "process",
    "scheduler",
    "sampling",
    "trainer",
    "optimizer",
    "mesh",
    "finish",
)


def planted(config: dict[str, Any], section: str, gadget: Any) -> Iterator[dict[str, Any]]:
    """The gadget as the section, as an option that is there, as a new one, within lists, and beside `_target_`."""
    spoilt = [gadget, {**config[section], "x": gadget}, {**config[section], "x": [[{"y": gadget}]]}]
    first = next((k for k in config[section] if k != "_target_"), "x")
    spoilt += [{**config[section], first: gadget}, {**config[section], "_args_": [gadget]}]
    for value in spoilt:
        yield config | {section: value}


PLACES: list[tuple[str, Any]] = [
    ("modality.evaluation.cache", "victim"),
    ("modality.evaluation.weights", "victim/weights.pt"),
    ("modality.evaluation.clip", "victim"),
    ("modality.evaluation.geneval", "victim/diary.txt"),
    ("modality.evaluation.detector", "victim"),
    ("modality.evaluation.compbench", "victim/diary.txt"),
    ("modality.evaluation.vqa", "victim"),
    ("modality.evaluation.x", [{"_target_": "torch.utils.collect_env.run", "command": "touch PWNED"}]),
    ("modality.preparation", {"out": "victim"}),
    ("modality.data.root", "victim"),
    ("modality.latents", "victim"),
    ("name", "../../victim\x1b[31m\n# forged"),
    ("sampling.steps", 2**24),
    ("sampling.interval", [0, 1e300]),
]
CLASSES = [
    ["../victim/x"], ["/victim"], ["a\nerror: forged"], ["\x1b[2J"], [".."], [""], ["x" * 5000], [3], "no", None,
]  # fmt: skip


def untouched(home: Path) -> None:
    assert sorted({f.name for f in home.iterdir()} - {"runs"}) == ["planted.py", "victim"]
    assert sorted(f.name for f in (home / "victim").iterdir()) == [".diary.npz.1.tmp", "diary.txt"]


def tried(command: Callable[[], Any], out: Path, home: Path) -> None:
    """Whatever comes of it, one line or a result, nothing else happened."""
    said = ""
    with watched(out) as seen:
        try:
            command()
        except (ValueError, OSError) as error:
            said = str(error)
    assert len(said.splitlines()) <= 1 or "Type-check" in said  # the tests check types, where users do not
    assert seen == []
    untouched(home)


def resealed(run: Path, folder: Path, config: Any = None, data_facts: Any = None) -> Path:
    """A copy of a run with another configuration, or other facts, sealed as a stranger would."""
    if not folder.exists():
        shutil.copytree(run, folder)
    place = next((folder / checkpoint.FOLDER).iterdir())
    content = json.loads((next((run / checkpoint.FOLDER).iterdir()) / manifest.NAME).read_text())
    content.pop("digest")
    if config is not None:
        content["parts"]["config"] = config
    if data_facts is not None:
        content["parts"]["facts"] |= data_facts
    (place / manifest.NAME).write_bytes(manifest.sealed(content))
    return folder


def commands(run: Path, out: Path) -> list[Callable[[], Any]]:
    return [
        lambda: sample_checkpoint(run, num=1, steps=1, out=out / "samples"),
        lambda: export(run, out / "pipe"),
        lambda: evaluate_checkpoint(run, num=2, steps=1, out=out),
        lambda: analyze_checkpoint(
            run, samples=2, bins=1, permutations=20, drop=False, dial=[], out=out / "analysis"
        ),
        lambda: write_report([run], out=out / "report.html"),
    ]
