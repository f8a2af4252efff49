"""Latents on disk: encoded once by `python -m ditmoe.prepare`, read memory-mapped by training."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from modalities.image.catalogue import Picture
from modalities.image.data import Pictures, turn

RECORD, CODEC = "latents.json", "codec.safetensors"
FORMAT = "ditmoe-latents-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Encode = Callable[[UInt8[np.ndarray, "B H W 3"]], Float[Tensor, "B L h w"]]


def prepare(
    data: Pictures,
    encode: Encode,
    out: Path,
    setting: Mapping[str, Any],
    codec: Mapping[str, Tensor],
    *,
    shard: int = 4096,
    batch: int = 32,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Encode the training pictures of `data` into `out`, shard by shard, each written whole or not at all.

    A shard holds "latents" (n, L, h, w), where pictures are mirrored (n, 2, L, h, w), and "labels" (n,). What is
    there already is kept, so that an interrupted run goes on; unreadable pictures are left out, counted and named.

    Args:
        encode: pictures to latents.
        setting: what the latents depend on, plain values; a folder made with another one is refused.
        codec: what it learnt of the data, kept beside the latents.
        shard: pictures of a shard.
        batch: pictures that are encoded at a time.
        dtype: of the latents on disk.

    Returns:
        What was written to latents.json: the setting, classes, counts, and what was unreadable.

    Raises:
        ValueError: if an option is wrong, `out` holds something else, or nothing is readable.
    """
    if min(shard, batch) < 1 or dtype not in DTYPES:
        raise ValueError(f"shard and batch must be at least 1 and dtype one of {', '.join(DTYPES)}, got "
                         f"{shard}, {batch} and {dtype}")  # fmt: skip
    pictures = data.split("train")
    fitted = save(dict(codec))
    record = {"format": FORMAT, **setting, "fitted": sha256(fitted).hexdigest(), "mirror": data.mirror, "dtype": dtype,
              "shard": shard, "classes": data.classes, "pictures": len(pictures)}  # fmt: skip
    _claim(out / RECORD, record)
    with replacing(out / CODEC) as stream:
        stream.write(fitted)
    unreadable: dict[str, str] = {}
    written = 0
    with tqdm(total=len(pictures), desc="encoding", unit="picture") as bar:
        for index, start in enumerate(range(0, len(pictures), shard)):
            file, part = out / f"latents-{index:05d}.safetensors", pictures[start : start + shard]
            if not file.is_file():
                tensors = _encoded(data, part, encode, batch, DTYPES[dtype], bar.update)
                mine = {p.name: data.unreadable[p.name] for p in part if p.name in data.unreadable}
                with replacing(file) as stream:
                    stream.write(save(tensors, {"unreadable": json.dumps(mine)}))
                written += len(tensors["labels"])
            else:
                bar.update(len(part))
            unreadable |= _unreadable(file)
    if len(unreadable) == len(pictures):
        raise ValueError(f"source must hold readable pictures, got {len(pictures)} others")
    report = record | {"shards": -(-len(pictures) // shard), "written": written, "unreadable": unreadable}
    _write(out / RECORD, report)
    return report


def _encoded(
    data: Pictures,
    part: list[Picture],
    encode: Encode,
    batch: int,
    dtype: torch.dtype,
    progress: Callable[[int], Any],
) -> dict[str, Tensor]:
    latents, labels = [], []
    for start in range(0, len(part), batch):
        chosen = part[start : start + batch]
        read = [(p.label, image) for p in chosen if (image := data.read(p)) is not None]
        if read:
            images = np.stack([image for _, image in read])
            views = [images, images[:, :, ::-1]] if data.mirror else [images]
            both = [encode(np.ascontiguousarray(view)).cpu().to(dtype) for view in views]
            latents.append(torch.stack(both, dim=1) if data.mirror else both[0])
            labels += [label for label, _ in read]
        progress(len(chosen))
    whole = torch.cat(latents) if latents else torch.zeros(0, dtype=dtype)
    return {"latents": whole.contiguous(), "labels": torch.tensor(labels, dtype=torch.int64)}


def _claim(file: Path, record: dict[str, Any]) -> None:
    """Write the record, or see that the one there is of the same making."""
    if file.is_file():
        there = read_record(file.parent)
        if other := [f"{key} {there.get(key)}" for key in record if there.get(key) != record[key]]:
            raise ValueError(
                f"out must be new or prepared in the same way, got {file.parent}, with {', '.join(other)}"
            )
        return
    if file.parent.is_dir() and any(file.parent.iterdir()):
        raise ValueError(f"out must be new or a folder of latents, but {file.parent} holds something else")
    _write(file, record)


def summary(report: Mapping[str, Any], out: Path) -> str:
    """What a person wants to know of it, and what to type next."""
    unreadable = report["unreadable"]
    lines = [f"unreadable: {reason}" for reason in list(unreadable.values())[:5]]
    lines.append(
        f"{report['pictures'] - len(unreadable)} pictures are encoded in {out}, {report['written']} of them now; "
        f"{len(unreadable)} unreadable ones left out (listed in {RECORD})"
    )
    return "\n".join(lines)


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
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"modality.latents must be a folder that prepare wrote, but {file} cannot be read"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{file} was not written by prepare: it lacks format = {FORMAT}")
    return record


def _unreadable(file: Path) -> dict[str, str]:
    with _opened(file) as stored:
        return json.loads((stored.metadata() or {}).get("unreadable", "{}"))


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: remove it and prepare again") from error


class Latents:
    """The latents of a folder that `prepare` wrote, as training reads them; they stay on disk.

    Raises:
        ValueError: if the folder is not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.record = read_record(self.folder)
        if "shards" not in self.record:
            raise ValueError(f"{self.folder} is not complete: run the same prepare again")
        self.mirror = bool(self.record["mirror"])

    def codec(self) -> dict[str, Tensor]:
        """What the codec had learnt of the data."""
        with _opened(self.folder / CODEC) as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self.record["classes"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, h, w) of a latent."""
        return tuple(self._shards[0].get_slice("latents").get_shape()[-3:])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B L h w"], Int[Tensor, " B"]]:
        """Latents and labels, float32: a function of its arguments alone, see `Pictures.batch`."""
        first = (step * world + rank) * size
        turned = [turn(len(self), seed, number, self.mirror) for number in range(first, first + size)]
        latents = torch.stack([self._latent(index, flip) for index, flip in turned])
        return latents, self._labels[[index for index, _ in turned]]

    def _latent(self, index: int, flip: bool) -> Float[Tensor, "L h w"]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = self._slices[shard][index - (int(self._ends[shard - 1]) if shard else 0)]
        return (row[int(flip)] if self.mirror else row).float()

    @cached_property
    def _shards(self) -> list[Any]:
        opened = [_opened(self.folder / f"latents-{i:05d}.safetensors") for i in range(self.record["shards"])]
        filled = [shard for shard in opened if shard.get_slice("labels").get_shape()[0]]
        if not filled:
            raise ValueError(f"{self.folder} holds no latents")
        return filled

    @cached_property
    def _slices(self) -> list[Any]:
        return [shard.get_slice("latents") for shard in self._shards]

    @cached_property
    def _labels(self) -> Int[Tensor, " S"]:
        return torch.cat([shard.get_tensor("labels") for shard in self._shards])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.get_slice("labels").get_shape()[0] for shard in self._shards])
