"""How a valid file becomes a malformed one: bytes, trees of JSON, archives and the files of a checkpoint."""

import io
import json
import random
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

ABSURD = ("-1", "0", "1", "2147483648", "99999999999", "18446744073709551616", "1e400", "nan", "0x7f")
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 2**31, 2**63, 10**12, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x", "a" * 1000,
    "../../../etc/passwd", "/etc/passwd", "os.system", "builtins.eval", "torch.optim.AdamW", "ditmoe.model.DiTMoE",
    "${oc.env:HOME}", [], [1], [[1]], [10**9, 10**9], {}, {"_target_": "os.system"}, {"a": {"a": {}}},
)  # fmt: skip


def malformed(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Valid bytes made invalid in one to three ways."""
    for _ in range(rng.randint(1, 3)):
        size = max(1, len(data))
        at, length = rng.randrange(size), rng.choice([1, 2, 4, 8, 64, 1000])
        kind = rng.randrange(11)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and data:
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        elif kind == 2:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        elif kind == 3:
            extreme = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40])
            packed = struct.pack(rng.choice("<>") + "Q", extreme)[: rng.choice([4, 8])]
            at = rng.randrange(min(size, 256)) if rng.random() < 0.7 else at
            data = data[:at] + packed + data[at + len(packed) :]
        elif kind == 4:
            data = data[:at] + data[at + length :]
        elif kind == 5:
            data = data[:at] + data[at : at + length] * rng.choice([2, 50]) + data[at:]
        elif kind in (6, 7, 8) and (numbers := list(re.finditer(rb"\d+", data[:4000]))):
            found = rng.choice(numbers)
            data = data[: found.start()] + rng.choice(ABSURD).encode() + data[found.end() :]
        elif kind == 9:
            data = data[:at] + other[rng.randrange(max(1, len(other))) :]
        elif rng.random() < 0.2:
            data = rng.choice([b"", b"\0" * 100, rng.randbytes(200), other, b"{" * 5000, b"[" * 100_000])
    return data


def spoilt(tree: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it replaced, removed or added to."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.05:
        return rng.choice(VALUES)
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = rng.choice(list(keys))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    action = rng.random()
    if action < 0.1:
        del copy[key]
    elif action < 0.15 and isinstance(copy, dict):
        copy[rng.choice(["_target_", "_partial_", "_args_", "x", "__class__"])] = rng.choice(VALUES)
    else:
        copy[key] = spoilt(tree[key], rng)
    return copy


def spoil_some_file(folder: Path, rng: random.Random) -> None:
    """Malform one file of a folder, its JSON as JSON two times of three."""
    file = rng.choice(sorted(f for f in folder.rglob("*") if f.is_file()))
    if file.suffix == ".json" and rng.random() < 0.7:
        tree = json.loads(file.read_text())
        for _ in range(rng.randint(1, 3)):
            tree = spoilt(tree, rng)
        file.write_text(json.dumps(tree))
    else:
        spoil_file(file, rng)


def spoil_file(file: Path, rng: random.Random) -> None:
    """Malform a file; of a safetensors file its header half of the times, of a zip a member."""
    data = file.read_bytes()
    if file.suffix == ".safetensors" and rng.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(spoilt(json.loads(data[8 : 8 + length]), rng)).encode()
        data = len(header).to_bytes(8, "little") + header + data[8 + length :]
    elif file.suffix in (".npz", ".pt") and rng.random() < 0.5:
        data = _spoil_zip(data, rng)
    else:
        data = malformed(data, rng)
    file.write_bytes(data)


def _spoil_zip(data: bytes, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        members = old.infolist()
        chosen = rng.choice(members)
        for info in members:
            content = old.read(info)
            name = (
                rng.choice(["../../x", "/x", "x", info.filename])
                if info is chosen and rng.random() < 0.2
                else info.filename
            )
            new.writestr(name, malformed(content, rng) if info is chosen else content)
    return stream.getvalue()


def spoil_checkpoint(run: Path, rng: random.Random) -> None:
    """As `spoil_some_file`, but what the manifest says of the files is made true again, and it is sealed."""
    from ditmoe import checkpoint
    from ditmoe.checkpoint import digest, manifest

    folder = next((run / checkpoint.FOLDER).iterdir())
    file = rng.choice([folder / manifest.NAME] * 4 + sorted(folder.glob("*.safetensors")))
    if file.name != manifest.NAME:
        spoil_file(file, rng)
    content = json.loads((folder / manifest.NAME).read_text())
    content.pop("digest")
    if file.name == manifest.NAME:
        for _ in range(rng.randint(1, 2)):
            place = rng.choice(["config", "config", "config", "facts", "optimizer", "guard", "meter", None])
            if place is None:
                content = spoilt(content, rng)
            elif (
                isinstance(content, dict)
                and isinstance(content.get("parts"), dict)
                and place in content["parts"]
            ):
                content["parts"][place] = _spoilt_section(content["parts"][place], rng)
    elif isinstance(content, dict):
        content["files"][file.name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
    sealed = manifest.sealed(content) if isinstance(content, dict) else json.dumps(content).encode()
    (folder / manifest.NAME).write_bytes(sealed)


def _spoilt_section(config: Any, rng: random.Random) -> Any:
    """What sampling reads: model, router, modality, process, scheduler, sampling."""
    names = (
        [n for n in ("model", "router", "modality", "process", "scheduler", "sampling") if n in config]
        if isinstance(config, dict)
        else []
    )
    if not names or rng.random() < 0.1:
        return spoilt(config, rng)
    name = rng.choice(names)
    return config | {name: spoilt(config[name], rng)}
