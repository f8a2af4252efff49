"""python -m ditmoe.evaluate checkpoint=... | modality=... generated=... reference=...: measures a set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ditmoe import build, cli
from ditmoe.checkpoint import replacing
from ditmoe.modality import Report
from ditmoe.sample import draw_from


def evaluate_checkpoint(
    checkpoint: str | Path,
    split: str = "test",
    top_k: int | None = None,
    out: str | Path | None = None,
    modality: dict[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Draw as many samples as the reference split has, with its labels, and measure them.

    Of `modality`, a configuration, only how it measures is taken (`evaluation`); all else is the checkpoint's.
    """
    restored = build.restore(checkpoint, top_k)
    if modality and modality.get("_target_") != restored.config["modality"]["_target_"]:
        raise ValueError(
            f"modality must be that of {checkpoint}, {restored.config['modality']['_target_']}, "
            f"got {modality.get('_target_')}"
        )
    if modality and "evaluation" in modality:
        own = restored.config | {
            "modality": restored.config["modality"] | {"evaluation": modality["evaluation"]}
        }
        restored = replace(restored, modality=build.make_modality(own, restored.modality.facts()))
    reference, train = restored.modality.reference(split), restored.modality.reference("train")
    labels = torch.as_tensor(reference.labels) if reference.labels is not None else None
    if labels is None:
        labels = torch.full((len(reference),), len(restored.modality.classes))
    generated = draw_from(restored, labels, **options)
    report = restored.modality.evaluate(generated, reference, train)
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
    sets = [adapter.read(Path(path)) for path in (generated, reference, *([train] if train else []))]
    report = adapter.evaluate(*sets)
    publish(report, Path(out) if out else Path())
    return report


def publish(report: Report, folder: Path) -> None:
    """Print the table and write metrics.json beside it."""
    print(table(report))
    content = {**report.values, "interval": report.intervals, **report.rows}
    content |= {"protocol": report.protocol, "notes": list(report.notes)}
    text = json.dumps(content, indent=2, default=float)
    with replacing(folder / "metrics.json") as stream:
        stream.write(text.encode())


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


def evaluate(config: dict[str, Any]) -> None:
    """The command.

    Raises:
        ValueError: unless it is told either a checkpoint or two sets and their modality.
    """
    files = {key: config.pop(key, None) for key in ("modality", "generated", "reference", "train")}
    if config["checkpoint"]:
        if files["generated"] or files["reference"]:
            raise ValueError("give either checkpoint=... or generated=... and reference=..., not both")
        evaluate_checkpoint(modality=files["modality"], **config)
    elif files["generated"] and files["reference"] and files["modality"]:
        evaluate_files(**files, out=config["out"])
    else:
        raise ValueError("give checkpoint=<run>, or modality=pointcloud generated=<set> reference=<set>")


def main() -> None:
    """Entry point."""
    cli.run(evaluate, "evaluate")


if __name__ == "__main__":
    main()
