"""Runs that nobody trained: what training, sampling, measuring and analysing leave, written by hand."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditmoe.checkpoint import manifest, place
from ditmoe.modality import Files, Samples
from ditmoe.reporting import write_report
from tests.test_hostile import modality

SHAPES = {"pointcloud": (60, 3), "image": (8, 8, 3), "video": (5, 16, 16, 3)}
FACTS = {"mean": [0, 0, 0], "scale": 1.0, "shape": [1], "stride": [1], "codec": {}}


def adapter(kind: str, classes: list[str]) -> Files:
    found = modality(kind, data_facts=FACTS | {"classes": classes})
    assert isinstance(found, Files)
    return found


def data_of(kind: str, num: int, seed: int = 0) -> np.ndarray:
    data = np.random.default_rng(seed).random((num, *SHAPES[kind]))
    return data.astype(np.float32) if kind == "pointcloud" else (255 * data).astype(np.uint8)


def make_run(
    run: Path,
    kind: str = "pointcloud",
    num: int = 4,
    classes: tuple[str, ...] = ("chair", "table"),
    config: Mapping[str, Any] | None = None,
    log: str | None = None,
) -> Path:
    """A whole one: a checkpoint's manifest, a log, samples, metrics, pictures of training and of `analyze`."""
    own = adapter(kind, list(classes))
    labels = np.arange(num) % len(classes)
    names = own.sample_names(labels.tolist())  # type: ignore[attr-defined]
    own.write(Samples(data_of(kind, num), labels, names), run / "samples")
    target = {"modality": {"_target_": {"pointcloud": "modalities.pointcloud.PointCloud"}.get(
        kind, f"modalities.{kind}.{kind.title()}")}}  # fmt: skip
    parts = {"config": {**target, **(config or {})}, "facts": {"classes": list(classes)}}
    content = {"format": manifest.FORMAT, "step": 20, "parts": parts | {"command": ["train", "name=a b"]}}
    file = place(run, 20) / manifest.NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(manifest.sealed(content | {"files": {}}))
    (run / "log.jsonl").write_text(log if log is not None else "".join(map(line, range(1, 21))))
    measured = {"fd": 0.25, "interval": {"fd": [0.2, 0.3]}, "oracle": {"fd": 0.1}, "floor": {"fd": 0.2}}
    measured |= {"protocol": {"generated": "4 shapes"}, "notes": ["few samples"]}
    (run / "metrics.json").write_text(json.dumps(measured))
    for name in ("progress/step-0000010.png", "analysis/time.png"):
        (run / name).parent.mkdir()
        Image.new("RGB", (30, 20), (200, 10, 10)).save(run / name)
    dependence = {"time": {"bits": [0.1, 0.2], "p": [0.005, 0.4]}}
    (run / "analysis" / "analysis.json").write_text(json.dumps({"dependence": dependence, "blocks": [1, 3]}))
    return run


def line(step: int, loss: float = math.nan) -> str:
    """A record of the log."""
    value = 1 / step if math.isnan(loss) else loss
    record = {"step": step, "loss": value, "gradient_norm": 0.1, "learning_rate": 1e-3}
    record |= {"loss_by_time/000-100": 0.5, "load/layer00/expert00": 0.4, "load/layer00/expert01": 0.6}
    return json.dumps(record | {"skipped_batches": [{"seed": 1}]}) + "\n"


def content_of(file: Path) -> list[dict[str, Any]]:
    """The runs that a page's data speak of."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])["runs"]


def reported(run: Path, **options: Any) -> dict[str, Any]:
    (only,) = content_of(write_report([run], **options))
    return only
