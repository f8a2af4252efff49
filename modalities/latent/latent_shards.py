"""The shards of a folder of latents, made from earlier shards and newly encoded latents."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import discard
from ditmoe.conditioning import Condition
from ditmoe.outside import printable, tell
from modalities.latent.codec import is_finite
from modalities.latent.latent_cache import MADE, SHARD, codec_file, made_of, open_stored
from modalities.latent.shard_checks import ASKED
from modalities.shared import provenance
from modalities.shared.captions import trimmed
from modalities.shared.provenance import Origin, Record, Seen, digest_of

CODECS = re.compile(r"codec-[0-9a-f]{16}\.safetensors")
"""File names of fitted codec states."""
CALLED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The safetensors names of dtypes."""
_EVERY = 60.0  # seconds between two writes of the record of sources

Views = UInt8[np.ndarray, "V *size 3"]
Encode = Callable[[UInt8[np.ndarray, "B *size 3"]], Float[Tensor, "B L *cells"]]
Rows = dict[int, Tensor]


@dataclass(frozen=True)
class Source:
    """The images or videos to encode, each in one or several views (mirrored, or from other start frames).

    Attributes:
        kind: "picture" or "video", for messages.
        names: name of each, in order.
        asked: condition of each; a label is an index into `classes`.
        read: indices -> views of each, None for one that is unreadable, which is then added to `unreadable`.
        unreadable: name -> reason, of those found so far.
        origin: index -> where it lies.
    """

    kind: str
    names: Sequence[str]
    asked: Condition
    classes: Sequence[str]
    read: Callable[[Sequence[int]], Sequence[Views | None]]
    unreadable: Mapping[str, str]
    origin: Callable[[int], Origin]


class Shards:
    """Makes shards, reusing latents of earlier shards and encoding the rest.

    Attributes:
        now: the current state of the sources, by name.
        kept, made: how many latents were reused, and newly encoded.
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        out: Path,
        made_by: str,
        batch: int,
        at_once: int,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.encode, self.out, self.made_by = source, encode, out, made_by
        self.batch, self.at_once, self.dtype = batch, at_once, dtype
        self.before = provenance.read(out / provenance.RECORD)
        self.now: dict[str, Seen] = {}
        self.kept = self.made = 0
        self._outputs: dict[str, Seen] = {}
        self._saved = time.monotonic()
        self._stored: list[Any] = []
        self._rows: dict[str, tuple[int, int]] = {}  # key of a source -> (shard index, row)
        self._plans: dict[str, str] = {}  # plan of a complete shard -> its file
        for file in sorted(out.iterdir()):
            if SHARD.fullmatch(file.name):
                self._learn(file)

    def _learn(self, file: Path) -> None:
        """Index the content of an earlier shard; a damaged one is ignored."""
        try:
            stored = open_stored(file)
            about = made_of(stored)
            if about.get("made_by") != self.made_by:
                return
            now = provenance.output(file, self.before.outputs.get(file.name))
            keys, slices = about["keys"].split(), stored.get_slice("latents")
            shape, dtype = slices.get_shape(), stored.get_slice("latents").get_dtype()
            if len(keys) != shape[0] or file.name != _shard_name(now.content) or dtype != CALLED[self.dtype]:
                raise ValueError("it is not what was written")
        except (ValueError, KeyError, AttributeError, IndexError, SafetensorError) as error:
            tell(f"{file.name} is damaged: what it held is made again ({type(error).__name__})")
            return
        self._outputs[file.name] = now
        self._rows |= {key: (len(self._stored), row) for row, key in enumerate(keys)}
        self._stored.append(slices)
        if not about.get("unreadable"):
            self._plans[str(about.get("plan"))] = file.name

    def shard(self, part: range, bar: tqdm) -> tuple[str, dict[str, str]]:
        """Write the shard of these sources unless it exists; returns its name, and unreadable sources with reasons."""
        names = [self.source.names[i] for i in part]
        known = [self.before.sources.get(name) for name in names]
        found = provenance.see_all([self.source.origin(i) for i in part], known)
        self.now |= dict(zip(names, found, strict=True))
        keys = {i: of.content for i, of in zip(part, found, strict=True)}
        plan = digest_of(*keys.values(), *_words(trimmed(self.source.asked.take(list(part)))))
        if (there := self._plans.get(plan)) is not None:
            self.kept += len(part)
            _go_on(bar, len(part))
            return there, {}
        rows = {i: self._row(key) for i, key in keys.items() if key in self._rows}
        self.kept += len(rows)
        _go_on(bar, len(rows))
        made = self._encoded([i for i in part if i not in rows], bar)
        self.made += len(made)
        rows |= made
        left = {n: self.source.unreadable[n] for i, n in zip(part, names, strict=True) if i not in rows}
        return self._store(rows, keys, plan, left), left

    def _row(self, key: str) -> Tensor:
        shard, row = self._rows[key]
        return self._stored[shard][row]

    def _encoded(self, numbers: list[int], bar: tqdm) -> Rows:
        """Encode the readable sources.

        Rounding may depend on the batch size, and thus a latent on its neighbours: the batch size is 1 on a CPU, and
        constant on a GPU.
        """
        rows: Rows = {}
        for start in range(0, len(numbers), self.batch):
            chosen = numbers[start : start + self.batch]
            read = [
                (i, views)
                for i, views in zip(chosen, self.source.read(chosen), strict=True)
                if views is not None
            ]
            if read:
                views = np.concatenate([views for _, views in read])
                pieces = np.split(views, range(self.at_once, len(views), self.at_once))
                encoded = torch.cat([self._piece(piece) for piece in pieces])
                rows |= dict(zip([i for i, _ in read], encoded.unflatten(0, (len(read), -1)), strict=True))
                self._check_finite({i: rows[i] for i, _ in read})
            bar.update(len(chosen))
        return rows

    def _check_finite(self, rows: Rows) -> None:
        """Raises ValueError if a latent overflowed, which training would refuse."""
        if wrong := [self.source.names[i] for i, latent in rows.items() if not is_finite(latent)]:
            raise ValueError(
                f"the latents of {printable(wrong[0])} must be finite, and are not in {str(self.dtype).split('.')[1]}: "
                "try modality.preparation.dtype=float32"
            )

    def _piece(self, views: Views) -> Tensor:
        full = np.concatenate([views, np.repeat(views[-1:], self.at_once - len(views), axis=0)])
        return self.encode(full)[: len(views)].cpu().to(self.dtype)

    def _store(self, rows: Rows, keys: dict[int, str], plan: str, unreadable: dict[str, str]) -> str:
        kept = sorted(rows)
        if len({of.shape for of in rows.values()}) > 1:
            raise ValueError(
                f"the latents of {printable(self.out)} differ in shape: remove it and prepare again"
            )
        whole = (
            torch.stack([rows[i] for i in kept]).contiguous() if kept else torch.zeros(0, dtype=self.dtype)
        )
        asked = {
            f"{ASKED}{name}": value for name, value in trimmed(self.source.asked.take(kept)).tensors().items()
        }
        about = {"made_by": self.made_by, "plan": plan, "keys": " ".join(keys[i] or "-" for i in kept),
                 "unreadable": unreadable}  # fmt: skip
        content = save({"latents": whole, **asked}, {MADE: json.dumps(about)})
        name = _shard_name(provenance.content_of(content, ".safetensors"))
        if name not in self._outputs:
            write(self.out / name, content)
            self._outputs[name] = provenance.output(self.out / name)
        if time.monotonic() - self._saved > _EVERY:
            self._remember()
        return name

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Save the record of sources if interrupted, so that they need not be read again for it."""
        try:
            yield
        except BaseException:
            self._remember()
            raise

    def _remember(self) -> None:
        sources = {**self.before.sources, **self.now}
        provenance.write(
            self.out / provenance.RECORD, Record(sources, {**self.before.outputs, **self._outputs})
        )
        self._saved = time.monotonic()

    def clear(self, report: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Write the record, and remove files that belong to another record."""
        named = {*report["shards"], codec_file(self.out, report).name}
        outputs = {name: self._outputs[name] for name in sorted(named & self._outputs.keys())}
        if (record := Record(self.now, outputs)) != self.before:
            provenance.write(self.out / provenance.RECORD, record)
        own = {*self._outputs, *self.before.outputs, *before.get("shards", ())}
        for file in sorted(self.out.iterdir()):
            written = SHARD.fullmatch(file.name) or CODECS.fullmatch(file.name)
            if written and file.name not in named and (file.name in own or _is_ours(file)):
                discard(file)


def _go_on(bar: tqdm, count: int) -> None:
    bar.update(count)
    bar.unpause()  # reused latents must not count towards the speed


def _shard_name(content: str) -> str:
    return f"latents-{content[:16]}.safetensors"


def _words(asked: Condition) -> Iterator[str]:
    for name, value in sorted(asked.tensors().items()):
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        yield f"{name} {value.dtype} {tuple(value.shape)} {hashlib.sha256(numbers.tobytes()).hexdigest()}"


def _is_ours(file: Path) -> bool:
    try:
        return bool(made_of(open_stored(file)))
    except ValueError:
        return False


def write(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(file) as stream:
        stream.write(content)
