"""Makes the starter models of the package: `checkpoint=starter/pointcloud`.

    python -m ditmoe.train modality=pointcloud name=starter model.hidden_size=96 trainer.steps=32000 \\
        trainer.ema_decay=0.9995 trainer.compile=true
    python -m ditmoe.train modality=image name=starter model.hidden_size=64 model.depth=4 \\
        'model.moe_layers=[2,3]' trainer.steps=4000
    python -m ditmoe.train modality=video name=starter model.hidden_size=64 'model.moe_layers=[4,5]' \\
        trainer.steps=34000 trainer.ema_decay=0.9995 optimizer.lr=2.0e-3 trainer.compile=true \\
        process.mean=0.7 process.std=1.3
    python -m benchmarks.starters runs/pointcloud/starter runs/image/starter runs/video/starter

Writes ditmoe/starters/<modality>/ for each run: its averaged weights and its data facts in float16, its configuration,
a hundred lines of its log, and its final metrics.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from benchmarks import options_of
from ditmoe import checkpoint
from ditmoe.checkpoint.places import STARTERS, listed

_LINES, _KEPT = 100, ("step", "loss", "gradient_norm", "seconds")


def pack(run: Path, into: Path = STARTERS) -> Path:
    """Write the starter of a run's newest checkpoint, in place of an earlier one; returns its folder."""
    found = checkpoint.find(run, parts=("ema", "facts"))
    modality = found.plain["config"]["modality"]["_target_"].split(".")[1]
    halves = {part: _halves(found.part(part)) for part in ("ema", "facts")}
    with TemporaryDirectory() as draft:
        parts = halves | {name: found.part(name) for name in ("config", "step")}
        checkpoint.save(Path(draft), found.plain["step"], parts)
        shutil.rmtree(into / modality, ignore_errors=True)
        shutil.copytree(listed(Path(draft))[0][1], into / modality)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [{k: line[k] for k in _KEPT if k in line} for line in lines[:: -(-len(lines) // _LINES)]]
    (into / modality / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    metrics = json.loads((run / "metrics.json").read_text())
    (into / modality / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return into / modality


def _halves(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {name: _halves(value) for name, value in part.items()}
    return part.half() if isinstance(part, Tensor) and part.is_floating_point() else part


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    for run in parser.parse_args().runs:
        folder = pack(run)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
