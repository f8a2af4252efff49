"""Measuring what a checkpoint draws, or sets made elsewhere, and saying what came of it."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditmoe.checkpoint import replacing
from ditmoe.config import build
from ditmoe.config.limits import check_request
from ditmoe.config.trust import Trust
from ditmoe.config.words import split_words
from ditmoe.diffusion import Sampling
from ditmoe.inference.drawing import draw_from
from ditmoe.inference.model_words import ModelWords
from ditmoe.inference.request import ask
from ditmoe.modality import Files, Metric, Report


def evaluate_checkpoint(
    checkpoint: str | Path,
    split: str = "test",
    reference: str | Path | None = None,
    num: int | None = None,
    top_k: int | None = None,
    out: str | Path | None = None,
    modality: dict[str, Any] | None = None,
    trust: Trust = False,
    *,
    tell: bool = False,
    scheduler: dict[str, Any] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    interval: Sequence[float] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    guidance_model: str | Path | None = None,
    first_block_cache: float | None = None,
    weights: str | None = None,
    offload: str | None = None,
    expert_cache: float = 4.0,
    **words: Any,
) -> Report | None:
    """Draw as many samples as the reference has, of what they are, or `num` of them, and measure them.

    The reference is a split of the data, or a set made elsewhere. What is asked of `num` samples the model's
    `Conditioning.ask` says: all classes in turn, or at random with label="random".

    Under torchrun all processes draw, and the first measures; the others get None.

    Of `modality`, a configuration, only how it measures is taken (`evaluation`); all else is the checkpoint's, which
    may open only the paths and hub names that `trust` allows (`ditmoe.config.trust`). With `tell`, what was understood
    of the data is printed first. `words` are those of the conditioning (`label=`), which ask for something, and the
    modality's own, for the shape of what is drawn.

    Raises:
        ValueError: for words that neither knows, and if the modality has no metric.
    """
    Sampling.check(steps, guidance, interval)
    models = ModelWords(checkpoint, trust, guidance_model, first_block_cache, weights, offload, expert_cache)
    restored = models.restore(top_k)
    if modality and modality.get("_target_") != restored.config["modality"]["_target_"]:
        raise ValueError(
            f"modality must be that of {checkpoint}, {restored.config['modality']['_target_']}, "
            f"got {modality.get('_target_')}"
        )
    if modality and "evaluation" in modality:
        own = restored.config | {
            "modality": restored.config["modality"] | {"evaluation": modality["evaluation"]}
        }
        restored = replace(restored, modality=build.make_modality(own, restored.modality.data_facts()))
    adapter, metric = restored.modality, Metric.of(restored.modality, "evaluate")
    owners = restored.model.conditioning, adapter
    wanted, of_shape = split_words(words, *owners, options=inspect.signature(evaluate_checkpoint).parameters)
    models.sampling(restored, steps, guidance, interval)
    weaker = models.restore_weaker(restored)
    if tell and reference is None and (understood := adapter.understood()):
        print(understood)
    if reference is None:
        real, train = metric.reference(split), metric.reference("train")
    else:
        real, train = Files.of(adapter, "evaluate").read(Path(reference)), None
    if not (num or len(real)):
        raise ValueError(
            "num must be given, since the reference holds no samples (for tables of FID: num=50000)"
        )
    check_request(adapter, num or len(real), batch_size, **of_shape)
    given = None if num or restored.model.conditioning.is_told(wanted) else real
    if given is not None and given.asked is not None:
        asked = restored.model.conditioning.read(given.asked)
    elif given is not None and given.labels is not None:
        asked = restored.model.conditioning.read(torch.as_tensor(given.labels))
    else:
        asked = ask(restored, num or len(real), seed, **wanted)
    how: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "guidance": guidance, "interval": interval}
    how |= {"weaker": weaker, "first_block_cache": first_block_cache}
    how["negative"] = restored.model.conditioning.away(asked, **wanted)
    drawn = draw_from(restored, asked, **how, seed=seed, batch_size=batch_size, **of_shape)
    if drawn is None:
        return None
    report = metric.evaluate(drawn, real, train)
    publish(report, Path(out) if out else restored.folder)
    return report


def evaluate_files(
    modality: dict[str, Any],
    generated: str,
    reference: str,
    train: str | None = None,
    out: str | Path | None = None,
) -> Report:
    """Measure two sets made elsewhere."""
    adapter = build.make(modality)
    metric, files = Metric.of(adapter, "evaluate"), Files.of(adapter, "evaluate")
    sets = [files.read(Path(path)) for path in (generated, reference, *([train] if train else []))]
    report = metric.evaluate(*sets)
    publish(report, Path(out) if out else Path())
    return report


def publish(report: Report, folder: Path) -> None:
    """Write metrics.json and print the table, in this order: a screen can fail."""
    content = {**report.values, "interval": report.intervals, **report.rows}
    content |= {"protocol": report.protocol, "notes": list(report.notes)}
    text = json.dumps(content, indent=2, default=float)
    with replacing(folder / "metrics.json") as stream:
        stream.write(text.encode())
    print(table(report))


def table(report: Report) -> str:
    """The report as text: a line per metric; the other rows of the report are columns."""
    columns = list(report.rows)
    width = max(len(name) for name in report.values) + 2
    head = f"{'':{width}}{'generated':>12}{'95 % interval':>22}" + "".join(f"{c:>18}" for c in columns)
    lines = [head]
    for name, value in report.values.items():
        low_high = report.intervals.get(name)
        interval = f"{low_high[0]:.4g} .. {low_high[1]:.4g}" if low_high else ""
        others = [report.rows[c].get(name) for c in columns]
        cells = "".join(f"{'' if o is None else format(o, '.4g'):>18}" for o in others)
        lines.append(f"{name:{width}}{value:>12.4g}{interval:>22}{cells}")
    lines += ["", *(f"{key:{width}}{value}" for key, value in report.protocol.items())]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
