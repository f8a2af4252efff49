"""Latents on disk: encoded once by `python -m ditmoe.prepare`, and read one at a time during training."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditmoe.checkpoint import LazyTensor, open_file
from ditmoe.checkpoint.atomic import clear
from ditmoe.conditioning import Condition, captions_of
from ditmoe.outside import at_home, in_utf8, is_regular, open_regular, parse_json, printable, read_regular
from modalities.latent.codec import Codec, is_finite
from modalities.latent.shard_checks import asked_of, check_shard
from modalities.shared.captions import one_of_all, with_mirrored
from modalities.shared.datasets import numbers

RECORD, MADE = "latents.json", "prepare"
"""The record, a file that lists the valid shards; and the metadata entry of a file that says how it was made."""
SHARD = re.compile(r"latents-[0-9a-f]{16}\.safetensors")
"""Shards are named after a hash of their content, so that those of an old and a new record can coexist."""
LARGEST_RECORD = 2**28
"""Most bytes of a record, which lists all unreadable files."""
FORMAT = "ditmoe-latents-4"
Pick = Callable[[int, int, int], tuple[int, int]]


def codec_file(folder: Path, record: Mapping[str, Any]) -> Path:
    """The file with the fitted codec state of a record."""
    return folder / f"codec-{str(record.get('fingerprint'))[:16]}.safetensors"


def refuse_other(folder: Path) -> None:
    """Raise ValueError for a folder with other content; remove temporary files of killed writers."""
    clear(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ValueError(f"out must be new or a folder of latents, but {folder} holds something else")


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a folder of latents.

    Raises:
        ValueError: if it is none.
    """
    file = folder / RECORD
    try:
        record = parse_json(read_regular(file, LARGEST_RECORD))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"modality.latents must be a folder that prepare wrote, but {file} cannot be read"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(
            f"{printable(file)} was not written by this version's prepare: it lacks format = {FORMAT}"
        )
    return record


def is_complete(record: Mapping[str, Any]) -> bool:
    """Whether a record has all its entries, with file names that stay inside its folder."""
    kinds = {
        "shards": list,
        "classes": list,
        "codec": str,
        "fingerprint": str,
        "num": int,
        "unreadable": dict,
    }
    return (
        all(type(record.get(name)) is kind for name, kind in kinds.items())
        and re.fullmatch("[0-9a-f]{64}", record["fingerprint"]) is not None
        and all(isinstance(name, str) and SHARD.fullmatch(name) for name in record["shards"])
        and all(isinstance(name, str) for name in record["classes"])
    )


def made_of(stored: Any) -> dict[str, Any]:
    """Read from a file of latents, or of their codec, how it was made.

    Raises:
        ValueError: if it does not say, or cannot be read.
    """
    try:
        return dict(parse_json((stored.metadata() or {}).get(MADE, "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("the metadata of a file of latents must be JSON") from error


def open_stored(file: Path) -> Any:
    """Open a safetensors file, memory-mapped.

    Raises:
        ValueError: if it is none.
    """
    try:
        if not is_regular(file):
            raise OSError("it is no plain file")
        open_file(file)  # checks the header: safetensors takes the last of two tensors of one name
        with in_utf8(file) as spelled:
            return safe_open(spelled, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: prepare again") from error


class Latents:
    """The latents of a folder that `prepare` wrote, for training.

    Args:
        pick: (number of sources, seed, index in the training stream) -> (source, view).

    Raises:
        ValueError: if the folder is not complete.
    """

    def __init__(self, folder: str | PathLike, pick: Pick) -> None:
        self.folder, self._pick = at_home(folder), pick
        self.record = read_record(self.folder)
        if not is_complete(self.record):
            raise ValueError(f"{printable(self.folder)} is not complete: run the same prepare again")
        self._classes = [printable(name) for name in self.record["classes"]]

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling: a copy in another process opens the files itself."""
        return {name: vars(self)[name] for name in ("folder", "_pick", "record", "_classes")}

    def understood(self) -> str:
        """One line on what was read of the folder."""
        source = printable(self.record.get("source"))[:200]
        names = ", ".join(self._classes[:6]) + (", ..." if len(self._classes) > 6 else "")
        count = f"{len(self)} latents, {len(self._classes)} classes"
        return f"data     {printable(self.folder)}: {count}: {names}; of {source}"

    def without_root(self) -> ValueError:
        """The error where the original data is needed but no root is set: the path in a record is not trusted."""
        source = printable(self.record.get("source"))
        return ValueError(
            f"modality.data.root must be given where real data are read, as for an evaluation; the record of "
            f"{printable(self.folder)} names {source}: modality.data.root=..."
        )

    def check(self, **setting: Any) -> None:
        """Raise ValueError unless the latents were made with these values, given by option name."""
        for name, value in setting.items():
            if self.record.get(name) != value:
                raise ValueError(
                    f"modality.{name} must be that of {self.folder}, {printable(self.record.get(name))[:80]}, "
                    f"got {value}"
                )

    def restore(self, codec: Codec) -> None:
        """Load a codec's fitted state, and check that it is the codec that the latents were made with.

        Raises:
            ValueError: if it is not.
        """
        name = type(codec).__name__
        if name != self.record["codec"]:
            raise ValueError(
                f"modality.codec must be the one of {self.folder}, {printable(self.record['codec'])[:80]}, got {name}"
            )
        stored = open_stored(codec_file(self.folder, self.record))
        codec.restore({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118  (no mapping)
        if codec.fingerprint() != self.record["fingerprint"]:
            raise ValueError(
                f"modality.codec must be the one of {self.folder}, got {name} with other weights or options"
            )

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless a latent is (L, *cells), as the codec makes them of a sample."""
        if self.shape != tuple(shape):
            place = self._shards[0]["latents"].file
            raise ValueError(
                f"{printable(place)} is damaged: it must hold latents of {list(shape)}, as the codec makes them, "
                f"got {list(self.shape)}"
            )

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._classes

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, *cells) of a latent."""
        return self._shards[0]["latents"].shape[2:]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B L *cells"], Condition]:
        """Latents, float32, with their conditions: deterministic in the arguments, as a data set's own `batch`."""
        turns, asked = numbers(size, step, rank, world), self._asked
        picked = [self._pick(len(self), seed, number) for number in turns]
        try:
            latents = torch.stack([self._latent(index, view) for index, view in picked]).float()
            if not is_finite(latents):
                index = next(n for (n, _), x in zip(picked, latents, strict=True) if not is_finite(x))
                shard, row = self._place(index)
                raise ValueError(f"{shard.file.name} must hold finite numbers, got others in latent {row}")
            flips = [self._mirrors and bool(view) for _, view in picked]
            return latents, one_of_all(asked.take([index for index, _ in picked]), seed, turns, flips)
        except (IndexError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{self.folder} is damaged, prepare it again: {error}") from error

    @property
    def _mirrors(self) -> bool:
        """Whether the second view of each source is its mirror image."""
        return bool(self.record.get("mirror"))

    def captions_of_split(self, split: str) -> list[str]:
        """The distinct captions of the training samples; other splits are not stored.

        Raises:
            ValueError: if the latents were prepared without captions.
        """
        if split != "train":
            return []
        if (each := captions_of(self._asked)) is None:
            raise ValueError(
                f"{printable(self.folder)} has no captions: prepare it with modality.captions=true"
            )
        found = dict.fromkeys(one for told in each for one in told.split("\n"))
        return list(with_mirrored(found) if self._mirrors else found)

    def _place(self, index: int) -> tuple[LazyTensor, int]:
        """The latents of a shard, and which row of them is this one."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._shards[shard]["latents"], index - (int(self._ends[shard - 1]) if shard else 0)

    def _latent(self, index: int, view: int) -> Shaped[Tensor, "L *cells"]:
        """One view of a latent, read, since a mapped file that shrinks would kill the process without a message."""
        shard, row = self._place(index)
        if not 0 <= view < shard.shape[1]:
            raise IndexError(f"{shard.file.name} has {shard.shape[1]} views of each, got view {view}")
        size = shard.stride[1] * shard.dtype.itemsize
        with open_regular(shard.file) as file:
            file.seek(shard.offset + (row * shard.shape[1] + view) * size)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"{shard.file.name} ends too early")
        return torch.frombuffer(bytearray(content), dtype=shard.dtype).view(shard.shape[2:])

    @cached_property
    def _shards(self) -> list[dict[str, LazyTensor]]:
        filled, first, found = [], None, 0
        for place in (self.folder / name for name in self.record["shards"]):
            shard = open_stored(place)
            if num := check_shard(shard, place, first):
                filled.append(open_file(place))
                first, found = first or shard, found + num
        if not filled:
            raise ValueError(f"{self.folder} holds no latents")
        if found != (told := self.record["num"] - len(self.record["unreadable"])):
            raise ValueError(
                f"{printable(self.folder)} is damaged: it must hold the {told} latents that {RECORD} counts, "
                f"got {found}"
            )
        return filled

    @cached_property
    def _asked(self) -> Condition:
        each = [asked_of(shard, len(self.classes)) for shard in self._shards]
        try:
            return Condition.cat(each)
        except (RuntimeError, ValueError) as error:  # of lists that differ in their width
            reason = printable(next(iter(str(error).splitlines()), ""))[:200]
            raise ValueError(f"{printable(self.folder)} is damaged: {reason}") from error

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard["latents"].shape[0] for shard in self._shards])
