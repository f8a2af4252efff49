"""Latents on disk: encoded once by `python -m ditmoe.prepare`, read memory-mapped by training."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import clear
from ditmoe.conditioning import Condition
from ditmoe.conditioning.condition import LABEL
from ditmoe.outside import is_regular, printable, read_regular
from modalities.latent.codec import Codec
from modalities.shared.datasets import numbers

RECORD, CODEC = "latents.json", "codec.safetensors"
LARGEST_RECORD = 2**28
"""Bytes of a record, which names what was unreadable."""
FORMAT = "ditmoe-latents-3"
ASKED = "asked."
"""What the names of a condition's tensors begin with in a shard."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Views = UInt8[np.ndarray, "V *size 3"]
Encode = Callable[[UInt8[np.ndarray, "B *size 3"]], Float[Tensor, "B L *cells"]]
Pick = Callable[[int, int, int], tuple[int, int]]


@dataclass(frozen=True)
class Source:
    """What is to be encoded: pictures or videos, each seen in one or several views (mirrored, or from other starts).

    Attributes:
        kind: "picture" or "video", for the screen.
        names: of each, in order.
        asked: what each is; a label is an index into `classes`.
        read: numbers -> views of each, None for one that is unreadable, which is then in `unreadable`.
        unreadable: name -> why, of those found so far.
    """

    kind: str
    names: Sequence[str]
    asked: Condition
    classes: Sequence[str]
    read: Callable[[Sequence[int]], Sequence[Views | None]]
    unreadable: Mapping[str, str]


def prepare(
    source: Source,
    encode: Encode,
    out: Path,
    setting: Mapping[str, Any],
    codec: Codec,
    *,
    shard: int = 4096,
    batch: int = 32,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Encode a source into `out`, shard by shard, each written whole or not at all; shows a bar.

    A shard holds "latents" (n, V, L, *cells), and the tensors of a `Condition` (n, ...). What is there already is kept,
    so that an interrupted run goes on; what is unreadable is left out, counted and named. No more than a shard of
    latents and a batch of views are in memory.

    Args:
        encode: views to latents.
        setting: what the latents depend on, plain values; a folder made with another one is refused.
        codec: its kind and a hash of it are recorded, and what it learnt of the data is kept beside the latents.
        shard: pictures or videos of a shard.
        batch: those that are read and views that are encoded at a time.
        dtype: of the latents on disk.

    Returns:
        What was written to latents.json: the setting, classes, counts, and what was unreadable.

    Raises:
        ValueError: if an option is wrong, `out` holds something else, or nothing is readable.
    """
    if min(shard, batch) < 1 or dtype not in DTYPES:
        raise ValueError(f"shard and batch must be at least 1 and dtype one of {', '.join(DTYPES)}, got "
                         f"{shard}, {batch} and {dtype}")  # fmt: skip
    record = {"format": FORMAT, **setting, "codec": type(codec).__name__, "fingerprint": codec.fingerprint(),
              "dtype": dtype, "shard": shard, "classes": list(source.classes), "num": len(source.names)}  # fmt: skip
    _claim(out / RECORD, record)
    with replacing(out / CODEC) as stream:
        stream.write(save({name: value.contiguous() for name, value in codec.fitted_state().items()}))
    unreadable: dict[str, str] = {}
    written = 0
    with tqdm(total=len(source.names), desc="encoding", unit=source.kind) as bar:
        for index, start in enumerate(range(0, len(source.names), shard)):
            file, part = _shard(out, index), range(start, min(start + shard, len(source.names)))
            if not file.is_file():
                tensors = _encoded(source, part, encode, batch, DTYPES[dtype], bar.update)
                names = (source.names[i] for i in part)
                mine = {name: source.unreadable[name] for name in names if name in source.unreadable}
                with replacing(file) as stream:
                    stream.write(save(tensors, {"unreadable": json.dumps(mine)}))
                written += len(tensors["latents"])
            else:
                bar.update(len(part))
                bar.unpause()  # what was there is no measure of speed
            unreadable |= _unreadable(file)
    if len(unreadable) == len(source.names):
        raise ValueError(f"source must hold readable {source.kind}s, got {len(source.names)} others")
    report = record | {"shards": index + 1, "written": written, "unreadable": unreadable}
    _write(out / RECORD, report)
    return report


def _encoded(
    source: Source,
    part: range,
    encode: Encode,
    batch: int,
    dtype: torch.dtype,
    progress: Callable[[int], Any],
) -> dict[str, Tensor]:
    latents: list[Tensor] = []
    kept: list[int] = []
    for start in range(part.start, part.stop, batch):
        chosen = range(start, min(start + batch, part.stop))
        read = [(i, views) for i, views in zip(chosen, source.read(chosen), strict=True) if views is not None]
        if read:
            views = np.concatenate([views for _, views in read])
            pieces = np.split(views, range(batch, len(views), batch))
            encoded = torch.cat([encode(piece).cpu().to(dtype) for piece in pieces])
            latents.append(encoded.unflatten(0, (len(read), -1)))
            kept += [i for i, _ in read]
        progress(len(chosen))
    whole = torch.cat(latents) if latents else torch.zeros(0, dtype=dtype)
    asked = {f"{ASKED}{name}": value for name, value in source.asked.take(kept).tensors().items()}
    return {"latents": whole, **asked}


def _claim(file: Path, record: dict[str, Any]) -> None:
    """Write the record, or see that the one there is of the same making."""
    if file.is_file():
        there = read_record(file.parent)
        if other := [f"{key} {there.get(key)}" for key in record if there.get(key) != record[key]]:
            raise ValueError(
                f"out must be new or prepared in the same way, got {file.parent}, with {', '.join(other)}"
            )
        return
    _refuse_other(file.parent)
    _write(file, record)


def _refuse_other(folder: Path) -> None:
    clear(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ValueError(f"out must be new or a folder of latents, but {folder} holds something else")


def summary(report: Mapping[str, Any], kind: str, out: Path) -> str:
    """What a person wants to know of it, and what to type next."""
    unreadable = report["unreadable"]
    lines = [f"unreadable: {name}: {reason}" for name, reason in list(unreadable.items())[:5]]
    lines.append(
        f"{report['num'] - len(unreadable)} {kind}s are encoded in {out}, {report['written']} of them now; "
        f"{len(unreadable)} unreadable ones left out (listed in {RECORD})"
    )
    return "\n".join(map(printable, lines))


def _shard(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:05d}.safetensors"


def _write(file: Path, record: dict[str, Any]) -> None:
    with replacing(file) as stream:
        stream.write(json.dumps(record, indent=1).encode() + b"\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What is known of a folder of latents.

    Raises:
        ValueError: if it is none.
    """
    file = folder / RECORD
    try:
        record = json.loads(read_regular(file, LARGEST_RECORD))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"modality.latents must be a folder that prepare wrote, but {file} cannot be read"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(
            f"{printable(file)} was not written by this version's prepare: it lacks format = {FORMAT}"
        )
    return record


def read_codec(folder: Path) -> dict[str, Tensor] | None:
    """What the codec of a folder of latents had learnt of the data; None where there is no such folder yet.

    Raises:
        ValueError: if the folder holds something else.
    """
    _refuse_other(folder)
    if not (folder / CODEC).is_file():
        return None
    with _opened(folder / CODEC) as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)


def _unreadable(file: Path) -> dict[str, str]:
    with _opened(file) as stored:
        try:
            return dict(json.loads((stored.metadata() or {}).get("unreadable", "{}")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged: remove it and prepare again") from error


def _opened(file: Path) -> Any:
    try:
        if not is_regular(file):
            raise OSError("it is no plain file")
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: remove it and prepare again") from error


class Latents:
    """The latents of a folder that `prepare` wrote, as training reads them; they stay on disk.

    Args:
        pick: how many there are, a seed, a place in the training stream -> which one it is, and which of its views.

    Raises:
        ValueError: if the folder is not complete.
    """

    def __init__(self, folder: str | PathLike, pick: Pick) -> None:
        self.folder, self._pick = Path(folder).expanduser(), pick
        self.record = read_record(self.folder)
        kinds = {"shards": int, "classes": list, "codec": str, "fingerprint": str}
        if any(type(self.record.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"{printable(self.folder)} is not complete: run the same prepare again")
        self._classes = [printable(name) for name in self.record["classes"]]

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy in another process, which opens the files itself."""
        return {name: vars(self)[name] for name in ("folder", "_pick", "record", "_classes")}

    def understood(self) -> str:
        """What was understood of the folder, in a line."""
        source = printable(self.record.get("source"))[:200]
        names = ", ".join(self._classes[:6]) + (", ..." if len(self._classes) > 6 else "")
        count = f"{len(self)} latents, {len(self._classes)} classes"
        return f"data     {printable(self.folder)}: {count}: {names}; of {source}"

    def without_root(self) -> ValueError:
        """What a person must say before what the latents were made of is read: a record is not his word."""
        source = printable(self.record.get("source"))
        return ValueError(
            f"modality.data.root must be given where real data are read, as for an evaluation; the record of "
            f"{printable(self.folder)} names {source}: modality.data.root=..."
        )

    def check(self, **setting: Any) -> None:
        """Raises ValueError unless the latents were made with these values, given by the option's name."""
        for name, value in setting.items():
            if self.record.get(name) != value:
                raise ValueError(
                    f"modality.{name} must be that of {self.folder}, {printable(self.record.get(name))[:80]}, "
                    f"got {value}"
                )

    def restore(self, codec: Codec) -> None:
        """Give a codec back what it learnt of the data, and see that it is the one that the latents were made with.

        Raises:
            ValueError: if it is not.
        """
        name = type(codec).__name__
        if name != self.record["codec"]:
            raise ValueError(
                f"modality.codec must be the one of {self.folder}, {printable(self.record['codec'])[:80]}, got {name}"
            )
        codec.restore(read_codec(self.folder) or {})
        if codec.fingerprint() != self.record["fingerprint"]:
            raise ValueError(
                f"modality.codec must be the one of {self.folder}, got {name} with other weights or options"
            )

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._classes

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, *cells) of a latent."""
        return tuple(self._slices[0].get_shape()[2:])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B L *cells"], Condition]:
        """Latents, float32, and what they are: a function of its arguments alone, as a data set's own `batch`."""
        picked = [self._pick(len(self), seed, number) for number in numbers(size, step, rank, world)]
        try:
            latents = torch.stack([self._latent(index, view) for index, view in picked])
            return latents, self._asked.take([index for index, _ in picked])
        except (IndexError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{self.folder} is damaged, prepare it again: {error}") from error

    def _latent(self, index: int, view: int) -> Float[Tensor, "L *cells"]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        return self._slices[shard][row, int(view)].float()

    @cached_property
    def _shards(self) -> list[Any]:
        opened = [_opened(_shard(self.folder, i)) for i in range(self.record["shards"])]
        filled = []
        for shard in opened:
            sizes = {name: (*shard.get_slice(name).get_shape(), 0)[0] for name in shard.keys()}  # noqa: SIM118
            if len({*sizes.values()}) > 1 or "latents" not in sizes:
                raise RuntimeError(f"there must be as many of everything in a shard, got {sizes}")
            filled += [shard] if sizes["latents"] else []
        if not filled:
            raise ValueError(f"{self.folder} holds no latents")
        return filled

    @cached_property
    def _slices(self) -> list[Any]:
        return [shard.get_slice("latents") for shard in self._shards]

    @cached_property
    def _asked(self) -> Condition:
        named = [{name.removeprefix(ASKED): shard.get_tensor(name) for name in shard.keys() if name.startswith(ASKED)}  # noqa: SIM118
                 for shard in self._shards]  # fmt: skip
        asked = Condition.cat([Condition.of_tensors(tensors) for tensors in named])
        labels = asked.values.get(LABEL)
        if labels is not None and (
            labels.dtype != torch.int64
            or labels.ndim != 1
            or not 0 <= labels.min() <= labels.max() <= len(self.classes)  # which is none
        ):
            raise RuntimeError(f"labels must be whole numbers up to {len(self.classes)}, got others")
        return asked

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([rows.get_shape()[0] for rows in self._slices])
