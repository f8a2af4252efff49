"""Encoder states of captions on disk: `python -m ditmoe.prepare` encodes each once, training reads them.

    <folder>/<first digits of the encoder's fingerprint>/states.json      the valid shards, and the encoder
                                                        states-<hash>.safetensors

A shard holds N captions: `tokens` (T, W) float16, the states of all of them, concatenated; `starts` (N + 1), the first
row of each caption, and T; `pooled` (N, P) float16; `keys` (N, 32), SHA-256 of each caption.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ditmoe.checkpoint import LazyTensor, in_memory, open_file, replacing
from ditmoe.checkpoint.atomic import clear
from ditmoe.outside import device as own_device
from ditmoe.outside import is_regular, parse_json, printable, read_regular, tell
from ditmoe.text.encoder import About, Pretrained, States

RECORD, FORMAT = "states.json", "ditmoe-captions-1"
SHARD = re.compile(r"states-[0-9a-f]{16}\.safetensors")
LARGEST_RECORD = 2**22
PER_SHARD = 4096
"""Captions per shard."""
AT_ONCE = 64
"""Captions passed to the encoder together."""
MOST_CAPTIONS = 2**24
KEY = hashlib.sha256().digest_size


def key_of(caption: str) -> bytes:
    """The key of a caption: its SHA-256."""
    return hashlib.sha256(caption.encode("utf-8", "replace")).digest()


def folder_of(folder: Path, about: About) -> Path:
    """The folder of an encoder's states, below the folder of all encoders."""
    return folder / about.fingerprint[:16]


def write_caption_states(
    captions: Iterable[str], encoder: Pretrained, folder: Path, device: torch.device | None = None
) -> tuple[int, int]:
    """Encode each distinct caption that is not stored yet; if interrupted, the same call continues.

    Args:
        folder: of all encoders, `Text`'s option `states`.

    Returns:
        The number of stored captions, and the number of new ones.
    """
    about, device = encoder.about, device or torch.device("cpu")
    own = folder_of(folder, about)
    clear(own)
    there = CaptionStates.open(folder, about)
    shards, known = ([], set()) if there is None else (list(there.shards), set(there.places))
    new: dict[bytes, States] = {}
    before = len(known)

    def unknown() -> Iterator[str]:
        for caption in captions:
            if (key := key_of(caption)) not in known:
                known.add(key)
                yield caption

    left = unknown()
    while some := list(islice(left, AT_ONCE)):
        new |= zip(map(key_of, some), encoder.states_of(some, device), strict=True)
        if len(new) >= PER_SHARD:
            shards = _added(own, shards, new, about)
            new = {}
    if new or not shards:
        _added(own, shards, new, about)
    return len(known), len(known) - before


def _added(folder: Path, shards: list[str], new: dict[bytes, States], about: About) -> list[str]:
    """Write a shard, and then the record that lists it; returns all shards."""
    lengths = [len(states.tokens) for states in new.values()]
    empty = States(torch.empty(0, about.width).half(), torch.empty(about.pooled).half())
    tensors = {
        "tokens": torch.cat([empty.tokens, *(states.tokens for states in new.values())]),
        "starts": torch.tensor([0, *np.cumsum(lengths, dtype=np.int64).tolist()]),
        "pooled": torch.cat([empty.pooled[None][:0], *(states.pooled[None] for states in new.values())]),
        "keys": torch.frombuffer(bytearray(b"".join(new) or b"\0"), dtype=torch.uint8)[: KEY * len(new)].view(
            -1, KEY
        ),
    }
    content = save({name: value.contiguous() for name, value in tensors.items()})
    name = f"states-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    with replacing(folder / name) as stream:
        stream.write(content)
    shards = [*shards, name]
    record = {"format": FORMAT, "about": about.plain(), "shards": shards}
    with replacing(folder / RECORD) as stream:
        stream.write((json.dumps(record, indent=2) + "\n").encode())
    return shards


class CaptionStates:
    """The states in a folder that `write_caption_states` wrote; they stay on disk, and are checked when read.

    Raises:
        ValueError: one line, if the folder is damaged, or the states are of another encoder.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about
        self.shards = self._record()
        self.places: dict[bytes, tuple[int, int]] = {}
        self._tensors: list[dict[str, Any]] = []
        for number, name in enumerate(self.shards):
            keys = self._open(name)
            self.places |= {key: (number, row) for row, key in enumerate(keys)}
            if len(self.places) > MOST_CAPTIONS:
                raise self._damaged(f"has more than {MOST_CAPTIONS} captions")

    @classmethod
    def open(cls, folder: Path, about: About) -> "CaptionStates | None":
        """The states of an encoder below a folder; None if there are none."""
        own = folder_of(folder, about)
        return cls(own, about) if is_regular(own / RECORD) else None

    def __len__(self) -> int:
        return len(self.places)

    def get(self, caption: str) -> States | None:
        """States of a caption; None if they are not stored."""
        if (place := self.places.get(key_of(caption))) is None:
            return None
        number, row = place
        shard = self._tensors[number]
        start, stop = shard["starts"][row : row + 2].tolist()
        tokens = shard["tokens"].rows(start, stop).read()
        pooled = shard["pooled"].rows(row, row + 1).read()[0]
        if not (tokens.isfinite().all() and pooled.isfinite().all()):
            raise self._damaged("holds numbers that are not finite")
        return States(tokens, pooled)

    def _record(self) -> list[str]:
        try:
            record = parse_json(read_regular(self.folder / RECORD, LARGEST_RECORD))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged("has a record that cannot be read") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise self._damaged(f"lacks format = {FORMAT}")
        shards, about = record.get("shards"), record.get("about")
        if not isinstance(shards, list) or not all(isinstance(n, str) and SHARD.fullmatch(n) for n in shards):
            raise self._damaged("lists invalid shards")
        if len({*shards}) != len(shards):
            raise self._damaged("lists a shard twice")
        if about != self.about.plain():
            raise self._damaged(f"is of another encoder than {self.about.name}")
        return shards

    def _open(self, name: str) -> Sequence[bytes]:
        """Open a shard, check its tensors, and return the keys of its captions."""
        file = self.folder / name
        try:
            found = open_file(file)
            tensors = {part: found[part] for part in ("tokens", "starts", "pooled", "keys")}
            if not all(isinstance(each, LazyTensor) for each in tensors.values()):
                raise ValueError("it holds types that are not supported")
            num = tensors["keys"].shape[0] if tensors["keys"].shape else 0
            length = tensors["tokens"].shape[0] if tensors["tokens"].shape else 0
            wanted = {
                "tokens": (torch.float16, (length, self.about.width)),
                "starts": (torch.int64, (num + 1,)),
                "pooled": (torch.float16, (num, self.about.pooled)),
                "keys": (torch.uint8, (num, KEY)),
            }
            for part, (dtype, shape) in wanted.items():
                if tensors[part].dtype != dtype or tensors[part].shape != shape:
                    raise ValueError(f"{part} must be {shape} of {dtype}")
            starts = in_memory(tensors["starts"])
            if starts[0] != 0 or starts[-1] != length or not (starts.diff() > 0).all():
                raise ValueError("starts must rise from 0 to the number of states")
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(f"has a damaged {name}") from error
        self._tensors.append({**tensors, "starts": starts})
        keys: Tensor = in_memory(tensors["keys"])
        whole = keys.numpy().tobytes()
        return [whole[at : at + KEY] for at in range(0, len(whole), KEY)]

    def _damaged(self, how: str) -> ValueError:
        return ValueError(f"{printable(self.folder)} {how}: remove it and prepare the captions again")


def prepare_captions(splits: Iterable[tuple[str, Iterable[str]]], encoder: Pretrained, folder: Path) -> None:
    """Encode the captions of all splits, on a GPU if there is one, and print their numbers."""
    device = own_device()
    total = 0
    for split, captions in splits:
        total, new = write_caption_states(captions, encoder, folder, device)
        tell(f"{split}: {new} captions encoded, {total} in total")
    tell(f"{folder_of(folder, encoder.about)}: {total} captions by {encoder.about.name}", sys.stdout)
