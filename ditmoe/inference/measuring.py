"""Evaluation of a checkpoint's samples, or of sets from elsewhere, and its report."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import check_writable
from ditmoe.conditioning import Condition, captions_of
from ditmoe.config import build
from ditmoe.config.limits import check_request
from ditmoe.config.restore import Restored
from ditmoe.config.trust import Trust
from ditmoe.config.words import split_words
from ditmoe.diffusion import Sampling
from ditmoe.distributed import launch
from ditmoe.inference.drawing import draw_from
from ditmoe.inference.model_words import ModelWords
from ditmoe.inference.request import ask
from ditmoe.modality import Files, Metric, Report, Samples
from ditmoe.outside import printable, read_json

METRICS = "metrics.json"


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
    """Sample from a checkpoint and evaluate against real samples.

    Under torchrun all processes sample, and rank 0 evaluates; the others return None.

    Args:
        split: of the data, the reference unless `reference` is given.
        reference: a file or a folder of other real samples.
        num: number of samples. None: as many as the reference has, with its labels or captions unless `words` set
            conditions. Otherwise conditions are those of `Conditioning.ask`: all classes in turn, or label="random".
        modality: a configuration, of which only `evaluation` is used; the rest is the checkpoint's.
        trust: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.
        tell: print first how the data was interpreted.
        words: options of the conditioning (`label=`), and of the modality for the shape of the samples.

    Raises:
        ValueError: for unknown options, and if the modality has no metric.
    """
    Sampling.check(steps, guidance, interval)
    models = ModelWords(checkpoint, trust, guidance_model, first_block_cache, weights, offload, expert_cache)
    restored = models.restore(top_k)
    restored = measured_as(restored, modality or {}, checkpoint)
    adapter, metric = restored.modality, Metric.of(restored.modality, "evaluate")
    owners = restored.model.conditioning, adapter
    wanted, of_shape = split_words(words, *owners, options=inspect.signature(evaluate_checkpoint).parameters)
    models.sampling(restored, steps, guidance, interval)
    weaker = models.restore_weaker(restored)
    folder = Path(out) if out else restored.folder
    ranks = launch.ranks()
    ranks.all_or_raise(lambda: None if ranks.rank else check_report(folder / METRICS))
    if tell and reference is None and (understood := adapter.understood()):
        print(understood)
    if reference is None:
        real, train = metric.reference(split), metric.reference("train")
    else:
        real, train = Files.of(adapter, "evaluate").read(Path(reference)), None
    if not (count := num or len(real)):
        raise ValueError(
            "num must be given, since the reference holds no samples (for tables of FID: num=50000)"
        )
    check_request(adapter, count, batch_size, **of_shape)
    asked = None if num else asked_alike(restored, real, wanted)
    asked = ask(restored, count, seed, **wanted) if asked is None else asked
    prompts = captions_of(asked) if restored.model.conditioning.reads_captions else None
    ranks.all_or_raise(lambda: None if ranks.rank else metric.check_prompts(prompts))
    how: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "guidance": guidance, "interval": interval}
    how |= {"weaker": weaker, "first_block_cache": first_block_cache}
    how["negative"] = restored.model.conditioning.away(asked, **wanted)
    drawn = draw_from(restored, asked, **how, seed=seed, batch_size=batch_size, **of_shape)
    if drawn is None:
        return None
    report = metric.evaluate(drawn, real, train)
    publish(report, folder)
    return report


def measured_as(restored: Restored, modality: Mapping[str, Any], checkpoint: str | Path) -> Restored:
    """The restored checkpoint with the `evaluation` of another configuration of its modality, if that has one.

    Raises:
        ValueError: if that is a configuration of another modality.
    """
    own = restored.config["modality"]
    if modality and modality.get("_target_") != own["_target_"]:
        raise ValueError(
            f"modality must be that of {checkpoint}, {own['_target_']}, got {modality.get('_target_')}"
        )
    if "evaluation" not in modality:
        return restored
    config = restored.config | {"modality": own | {"evaluation": modality["evaluation"]}}
    return replace(restored, modality=build.make_modality(config, restored.modality.data_facts()))


def asked_alike(restored: Restored, real: Samples, wanted: Mapping[str, Any]) -> Condition | None:
    """The conditions of real samples, to generate the same; None if unknown, or if `wanted` sets conditions."""
    conditioning = restored.model.conditioning
    if conditioning.is_told(wanted):
        return None
    if real.asked is not None:
        return conditioning.read(real.asked)
    return None if real.labels is None else conditioning.read(torch.as_tensor(real.labels))


def evaluate_files(
    modality: dict[str, Any],
    generated: str,
    reference: str,
    train: str | None = None,
    out: str | Path | None = None,
) -> Report:
    """Evaluate one existing set against another."""
    adapter = build.make_whole(modality)
    metric, files = Metric.of(adapter, "evaluate"), Files.of(adapter, "evaluate")
    check_report((folder := Path(out) if out else Path()) / METRICS)
    sets = [files.read(Path(path)) for path in (generated, reference, *([train] if train else []))]
    report = metric.evaluate(*sets)
    publish(report, folder)
    return report


def check_report(file: Path) -> None:
    """Check that a report can be written; ValueError if it would replace a metrics.json of another program."""
    check_writable(file)
    try:
        content = read_json(file)
    except (OSError, ValueError):  # not there, or damaged
        return
    if not isinstance(content, dict) or "protocol" not in content:
        raise ValueError(
            f"{printable(file)} must be what evaluate wrote, or not exist, got something else: choose another out="
        )


def publish(report: Report, folder: Path) -> None:
    """Write metrics.json and print the table, in this order, since printing can fail."""
    content = {**report.values, "interval": report.intervals, **report.rows}
    content |= {"protocol": report.protocol, "notes": list(report.notes)}
    text = json.dumps(content, indent=2, default=float)
    with replacing(folder / METRICS) as stream:
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
