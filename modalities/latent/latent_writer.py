"""Encodes images or videos into a folder of latents; a later run encodes only what has changed."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ditmoe.outside import printable, tell
from modalities.latent.codec import Codec
from modalities.latent.latent_cache import (
    FORMAT,
    MADE,
    RECORD,
    codec_file,
    is_complete,
    made_of,
    open_stored,
    read_record,
    refuse_other,
)
from modalities.latent.latent_shards import CODECS, Encode, Shards, Source, write
from modalities.shared import provenance
from modalities.shared.provenance import digest_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARRANGED = ("source", "shard", "classes", "num")
"""Entries of a record that do not affect any latent."""


def prepare(
    source: Source,
    encode: Encode,
    out: Path,
    setting: Mapping[str, Any],
    codec: Codec,
    recipe: str = "",
    *,
    shard: int = 4096,
    batch: int = 32,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Encode a source into `out`, shard by shard, with a progress bar.

    A shard holds "latents" (n, V, L, *cells) and the tensors of a `Condition` (n, ...), of `shard` sources in their
    order. What each latent was made of is recorded: if a source with the same content is still there, under whatever
    name, its latent is reused and the source is neither decoded nor encoded. So `out` ends up as a new folder would,
    whatever was in it, and an interrupted run resumes. The record lists the valid shards: the old one stays until all
    new shards are there, and what the new one does not list is then removed. Unreadable sources are tried again each
    time, left out, counted and named. At most one shard of latents and one batch of views are in memory.

    Args:
        encode: maps views to latents.
        setting: what the latents depend on, plain values; if it differs from before, all are encoded again. "source" is
            where the data comes from.
        codec: its kind and hash are recorded, and its fitted state is stored beside the latents.
        recipe: how it was fitted, see `read_codec`.
        shard: images or videos per shard.
        batch: sources read at a time, and on a GPU views encoded at a time.
        dtype: of the latents on disk.

    Returns:
        What was written to latents.json (the setting, classes, counts, and what was unreadable), and how many latents
        were reused, encoded and removed.

    Raises:
        ValueError: if an option is wrong, `out` holds something else, or nothing is readable.
    """
    if min(shard, batch) < 1 or dtype not in DTYPES:
        raise ValueError(f"shard and batch must be at least 1 and dtype one of {', '.join(DTYPES)}, got "
                         f"{shard}, {batch} and {dtype}")  # fmt: skip
    record = {"format": FORMAT, **setting, "codec": type(codec).__name__, "fingerprint": codec.fingerprint(),
              "dtype": dtype, "shard": shard, "classes": list(source.classes), "num": len(source.names)}  # fmt: skip
    before = _claim(out, record)
    made_by = digest_of(*(f"{key} {value}" for key, value in record.items() if key not in ARRANGED))
    about = {"recipe": recipe, "fingerprint": record["fingerprint"]}
    state = {name: value.contiguous() for name, value in codec.fitted_state().items()}
    write(codec_file(out, record), save(state, {MADE: json.dumps(about)}))
    writer = Shards(source, encode, out, made_by, batch, _at_once(codec, batch), DTYPES[dtype])
    unreadable: dict[str, str] = {}
    shards = []
    with tqdm(total=len(source.names), desc="encoding", unit=source.kind) as bar, writer.remembering():
        for start in range(0, len(source.names), shard):
            file, mine = writer.shard(range(start, min(start + shard, len(source.names))), bar)
            shards.append(file)
            unreadable |= mine
    if len(unreadable) == len(source.names):
        raise ValueError(f"source must hold readable {source.kind}s, got {len(source.names)} others")
    report = record | {"shards": shards, "unreadable": unreadable}
    if report != before:
        write(out / RECORD, _json(report))
    writer.clear(report, before)
    removed = len(provenance.gone(writer.before.sources, writer.now))
    return report | {"kept": writer.kept, "made": writer.made, "removed": removed}


def _at_once(codec: Codec, batch: int) -> int:
    return 1 if next(codec.buffers()).device.type == "cpu" else batch


def _claim(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the existing record if it is complete, else write the new one; tells if the settings have changed."""
    if (out / RECORD).is_file():
        before = read_record(out)
        if other := [
            f"{key} {before.get(key)}"
            for key in record
            if before.get(key) != record[key] and key not in ARRANGED
        ]:
            tell(f"{out} was prepared with {', '.join(other)}: all of it is made again", sys.stdout)
        if is_complete(before):
            return before
    else:
        refuse_other(out)
    write(out / RECORD, _json(record))
    return record


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode() + b"\n"


def read_codec(folder: Path, recipe: str) -> tuple[dict[str, Tensor], str] | None:
    """The codec's fitted state from when the folder was made, and its hash; None if it was fitted differently.

    Args:
        recipe: how it was fitted. A killed run may have left another codec beside that of the record.

    Raises:
        ValueError: if the folder is not one of latents.
    """
    refuse_other(folder)
    files = [file for file in sorted(folder.glob("codec-*")) if CODECS.fullmatch(file.name)]
    if (folder / RECORD).is_file():
        files.sort(key=lambda file: file.name != codec_file(folder, read_record(folder)).name)
    for file in files:
        about = made_of(stored := open_stored(file))
        if about.get("recipe") == recipe:
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
            return state, str(about.get("fingerprint"))
    return None


def summary(report: Mapping[str, Any], kind: str, out: Path) -> str:
    """Summarise the result for the user."""
    unreadable = report["unreadable"]
    lines = [f"unreadable: {name}: {reason}" for name, reason in list(unreadable.items())[:5]]
    lines.append(
        f"{report['num'] - len(unreadable)} {kind}s are encoded in {out}: kept {report['kept']}, "
        f"made {report['made']}, removed {report['removed']}; {len(unreadable)} unreadable ones left out "
        f"(listed in {RECORD})"
    )
    return "\n".join(map(printable, lines))
