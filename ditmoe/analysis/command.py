"""The `analyze` command: open a checkpoint, analyse its experts, write the results."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ditmoe.analysis import dial as dials
from ditmoe.analysis import paths, pictures
from ditmoe.analysis.dropping import drop_each, num_drops
from ditmoe.analysis.factors import factors_of
from ditmoe.analysis.findings import Findings, names_of
from ditmoe.analysis.probe import Probe, make_probe
from ditmoe.analysis.record import Record, check_alike, take_record
from ditmoe.analysis.similarity import similarity
from ditmoe.analysis.specialisation import Places, experts_per_token, specialise
from ditmoe.analysis.subject import Subject, open_subject
from ditmoe.checkpoint import check_own
from ditmoe.checkpoint.atomic import check_writable, others_in, recover, replacing_folder
from ditmoe.config.trust import Trust
from ditmoe.inference.drawing import progress_bar
from ditmoe.outside import check_memory, check_number, is_regular, printable

RECORD, ARRAYS = "analysis.json", "analysis.npz"
MOST_SAMPLES, MOST_BINS, MOST_PERMUTATIONS = 100_000, 1000, 100_000


def analyze_checkpoint(
    checkpoint: str | Path,
    *,
    split: str = "test",
    samples: int = 32,
    bins: int = 8,
    permutations: int = 200,
    drop: bool = True,
    dial: Sequence[int] | None = None,
    draw: int = 0,
    steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    trust: Trust = False,
    modality: dict[str, Any] | None = None,
    process: dict[str, Any] | None = None,
    tell: bool = False,
) -> str:
    """Run a model on held-out samples at all noise levels, record its routing, and write an analysis of its experts.

    Writes `analysis.json` (numbers and their protocol), `analysis.npz` (all counts) and pictures, all or none of them.

    Args:
        split: of the data.
        samples, bins: number of samples, each of which is evaluated once in each of `bins` time bins.
        permutations: number of permutations for the null distributions.
        drop: whether to measure the loss without each expert.
        dial: numbers of experts per token to try; None: several up to all; empty: none.
        draw: number of samples to draw at each of these numbers, for the modality's metric.
        steps: scheduler steps for drawing; None: as configured in the run.
        out: a folder that is new, empty, or holds an older analysis; None: `analysis` in the run's folder.
        trust: paths and hub names that the checkpoint may open.
        modality, process: configuration sections, for a converted model only.
        tell: whether to show progress.

    Returns:
        A few lines with the main numbers and the location of the results.

    Raises:
        FileNotFoundError, ValueError, OSError: with a message of one line.
    """
    check_number("samples", samples, 2, MOST_SAMPLES, whole=True)
    check_number("bins", bins, 1, MOST_BINS, whole=True)
    check_number("permutations", permutations, 20, MOST_PERMUTATIONS, whole=True)
    check_number("draw", draw, 0, MOST_SAMPLES, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("seed", seed, 0, 2**63 - 1, whole=True)
    opened = partial(open_subject, checkpoint, trusted=trust, modality=modality, process=process)
    subject = opened()
    folder = _place(out, subject)
    if draw and subject.restored is None:
        raise ValueError("draw must be 0 for a converted model, which has no sampling of its own")
    began = time.monotonic()
    _check_size(subject, samples, bins)
    probe = make_probe(subject.model, subject.modality, subject.process, split, samples, bins, seed)
    settings = _settings(subject, dial)
    turns = 1 + (num_drops(subject.model) if drop else 0) + len(settings)
    with progress_bar("analysing", turns * probe.num_passes(batch_size), tell) as bar:
        record = take_record(subject.model, probe, subject.process, batch_size, bar.update)
        findings = _found(subject, probe, record, permutations, seed)
        if drop:
            drops = drop_each(subject.model, probe, subject.process, batch_size, record.loss, bar.update)
            findings = replace(findings, drops=drops)
        if settings:
            how = (probe, batch_size, draw, split, steps, seed, bar.update)
            turned = dials.turn(settings, lambda k: opened(top_k=k), subject.by_top_k or 0, *how)
            findings = replace(findings, dial=turned)
    findings.protocol["checkpoint"] = printable(checkpoint)
    findings.protocol["drawn"] = draw
    write(findings, folder)
    minutes = (time.monotonic() - began) / 60
    told = findings.protocol["told"]
    return "\n".join(
        [
            *findings.lines(),
            f"{told}; {minutes:.1f} minutes",
            f"{printable(folder)}: {RECORD}, {ARRAYS} and pictures",
        ]
    )


def _settings(subject: Subject, dial: Sequence[int] | None) -> list[int]:
    """Numbers of experts per token to try.

    Raises:
        ValueError: if the router does not support them.
    """
    if subject.by_top_k is not None and (dial is None or dial):
        return dials.settings(subject.by_top_k, int(check_alike(subject.model)[0]), dial)
    if dial:
        raise ValueError("dial must be left out: the router does not choose by top_k when sampling")
    return []


def _place(out: str | Path | None, subject: Subject) -> Path:
    """The folder for the results.

    Raises:
        ValueError: if it contains anything but an older analysis.
    """
    folder = (subject.folder / "analysis" if out is None else Path(out)).absolute()
    if out is None:
        check_own([folder])
    recover(folder)
    other: list[str] = []
    if is_regular(folder / RECORD):
        other = others_in(folder, {RECORD, ARRAYS, *pictures.FILES}.__contains__)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        other = ["something else"]
    if other:
        raise ValueError(
            f"out must be new, or hold an older analysis: {printable(folder)} holds {', '.join(other)}"
        )
    check_writable(folder, folder=True)
    return folder


def _check_size(subject: Subject, samples: int, bins: int) -> None:
    """Raises ValueError if the record would not fit into this machine's memory."""
    numbers = check_alike(subject.model)
    shape = subject.modality.sample_shape
    tokens = math.prod(subject.model.tokens.grid(torch.empty(1, *shape, device="meta")))
    width = int(numbers.sum()) if len(numbers) else 1
    counted = min(tokens, 64)  # places, see `ditmoe.analysis.specialisation`
    needed = samples * (bins * width * (16 * tokens + 32 * counted) + 8 * math.prod(shape))
    check_memory(needed, f"the choices of {samples} samples at {bins} times", "fewer samples or bins")


def _found(subject: Subject, probe: Probe, record: Record, permutations: int, seed: int) -> Findings:
    factors = factors_of(probe.asked, subject.modality.classes)
    by_pass, by_place = experts_per_token(record)
    counts = record.chosen.sum(0, dtype=np.float64)
    blocks = [
        i for i, block in enumerate(subject.model.blocks) if block.feed_forward in subject.model.mixtures
    ]
    table, following = paths.transitions(record, permutations, seed)
    return Findings(
        protocol=_protocol(subject, probe, record, permutations, seed),
        blocks=blocks,
        edges=probe.edges,
        places=tuple(Places(record).count.tolist()),
        loss=record.loss,
        load=counts / np.maximum(counts.sum(-1, keepdims=True), 1e-300),
        unrouted=(record.chosen.sum(-1) == 0).mean(0),
        tokens_by_pass=by_pass,
        tokens_by_place=by_place,
        factors=factors,
        specialisation=specialise(record, factors, names_of(probe.edges), permutations, seed),
        transitions=table,
        following=following,
        similarity=similarity(subject.model, probe, subject.process, seed),
    )


def _protocol(subject: Subject, probe: Probe, record: Record, permutations: int, seed: int) -> dict[str, Any]:
    router = subject.model.routers[0]
    passes = len(probe.x0) * probe.bins
    return {
        "step": subject.step,
        "modality": subject.modality.name,
        "router": type(router).__name__,
        "experts": router.num_experts,
        "top_k": subject.by_top_k,
        "samples": probe.origin,
        "passes": passes,
        "tokens": len(record.sample),
        "times": "one random time in each bin for each sample; conditions are the samples' own",
        "loss": "mean square error of the prediction, averaged over all bins without weights",
        "permutations": permutations,
        "seed": seed,
        "told": f"{probe.origin}, {probe.bins} times each: {passes} passes, {len(record.sample)} tokens, seed {seed}",
    }


def write(findings: Findings, folder: Path) -> None:
    """Write all files of an analysis, or none."""
    drawn = pictures.draw(findings)
    text = json.dumps(findings.record(), indent=1, allow_nan=False) + "\n"
    with replacing_folder(folder) as draft:
        (draft / RECORD).write_text(text)
        with open(draft / ARRAYS, "wb") as stream:
            np.savez_compressed(stream, **findings.arrays())  # type: ignore[arg-type]
        for name, picture in drawn.items():
            Image.fromarray(picture).save(draft / name, "PNG", optimize=True)
