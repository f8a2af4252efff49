"""Do tokens that the text is about get more experts? Expert choice gives each token as many as choose it (EC-DiT).

    python -m ditmoe.train modality=image conditioning=text router=expert_choice name=text_ec
    python -m benchmarks.quality.text_compute runs/image/text_ec [--num 128] [--picture text_compute.png]

Held-out pictures are shown to the model with their captions, once in each of eight bins of time. Per token:

    experts  how many process it, summed over the layers with experts
    ink      brightness of its pixels in the clean picture: what the caption describes
    text     squared difference of the prediction with the caption and without one, over the cells of the token

Correlations of experts with ink and with text, over all tokens ("raw"), and after the mean over samples of each place
was taken off ("given place"): digits lie in the middle, so any preference for the middle correlates with ink. The last
column is the mean absolute difference of experts per token between a picture's own caption and the next one's, in units
of the standard deviation over tokens. 95 % intervals by bootstrap over samples.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks import options_of
from ditmoe.analysis.probe import Probe, make_probe, shown
from ditmoe.conditioning import Condition
from ditmoe.config.restore import Restored, restore
from ditmoe.model import DiTMoE

BINS, REPEATS = 8, 1000


def experts_of(model: DiTMoE, x: Tensor, t: Tensor, asked: Condition) -> tuple[Tensor, Tensor]:
    """Prediction, and experts per token, (b, N)."""
    output, routings = model(x, t, asked)
    each = torch.stack([routing.chosen.sum(1) for routing in routings]).sum(0)
    return output, each.view(len(x), -1)


def per_token(values: Float[Tensor, "b C H W"], grid: tuple[int, ...]) -> Float[Tensor, "b N"]:
    """Mean over channels, and over the cells of each token."""
    return F.adaptive_avg_pool2d(values.mean(1, keepdim=True), grid).flatten(1)


@torch.no_grad()
def measured(run: Restored, probe: Probe) -> dict[str, Float[np.ndarray, "S B N"]]:
    """Per sample, time and token: experts, experts with another's caption, ink, and what the caption changes."""
    model, modality = run.model.eval(), run.modality
    pixels: Any = modality.decode(probe.x0)  # type: ignore[attr-defined]
    light = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
    grid = model.tokens.grid(probe.x0)
    ink = per_token(light, grid)
    others = probe.asked.take(torch.arange(len(probe.x0)).roll(-1))
    found = {
        name: np.zeros((len(ink), probe.bins, ink.shape[1])) for name in ("experts", "other", "ink", "text")
    }
    for one in shown(probe, run.process, 32, torch.device("cpu")):
        at = one.rows.numpy(), one.number
        own, experts = experts_of(model, one.x, one.t, one.asked)
        without, _ = experts_of(model, one.x, one.t, model.conditioning.nothing(len(one.x)))
        _, other = experts_of(model, one.x, one.t, others.take(one.rows))
        values = (experts, other, ink[one.rows], per_token((own - without).square(), grid))
        for name, value in zip(found, values, strict=True):
            found[name][at] = value.numpy()
    return found


def correlation(
    a: Float[np.ndarray, "S N"], b: Float[np.ndarray, "S N"], given_place: bool
) -> tuple[float, float, float]:
    """Pearson's, with its interval; that of constants is none."""
    rng = np.random.default_rng(0)
    if given_place:
        a, b = a - a.mean(0), b - b.mean(0)

    def of(rows: np.ndarray) -> float:
        x, y = a[rows].ravel(), b[rows].ravel()
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else np.nan

    each = np.array([of(rng.integers(len(a), size=len(a))) for _ in range(REPEATS)])
    each = each[np.isfinite(each)]
    low, high = np.quantile(each, [0.025, 0.975]).tolist() if len(each) else (np.nan, np.nan)
    return of(np.arange(len(a))), low, high


def table(found: dict[str, np.ndarray]) -> str:
    """Rows by time, in Markdown."""
    lines = [
        "| time | ink, raw | ink, given place | text, raw | text, given place | another caption |",
        "|---" * 6 + "|",
    ]
    edges = np.linspace(0, 1000, BINS + 1).astype(int)
    for number in range(BINS):
        experts = found["experts"][:, number]
        cells = []
        for name in ("ink", "text"):
            for given_place in (False, True):
                r, low, high = correlation(experts, found[name][:, number], given_place)
                cells.append(f"{r:.2f} ({low:.2f} .. {high:.2f})")
        change = np.abs(experts - found["other"][:, number]).mean() / max(experts.std(), 1e-9)
        lines.append(f"| {edges[number]} to {edges[number + 1]} | {' | '.join(cells)} | {change:.2f} |")
    return "\n".join(lines)


def picture(run: Restored, probe: Probe, found: dict[str, np.ndarray], file: Path, num: int = 8) -> None:
    """Pictures above maps of experts and of what the caption changes, at the middle times."""
    grid, middle = run.model.tokens.grid(probe.x0), BINS // 2
    rows: list[np.ndarray] = [np.asarray(run.modality.decode(probe.x0[:num]))]  # type: ignore[attr-defined]
    for name in ("experts", "text"):
        maps = found[name][:num, middle].reshape(num, *grid)
        maps = maps / max(maps.max(), 1e-9) if name == "experts" else maps / maps.max((1, 2), keepdims=True)
        scale = rows[0].shape[1] // grid[0]
        rows.append((255 * maps).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)[..., None].repeat(3, -1))
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(sheet.repeat(3, 0).repeat(3, 1)).save(file)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    run = restore(options.run)
    probe = make_probe(run.model, run.modality, run.process, "test", options.num, BINS, options.seed)
    found = measured(run, probe)
    print(f"{options.run}, {probe.origin}, seed {options.seed}\n\n{table(found)}")
    experts = found["experts"]
    print(f"\nexperts per token: mean {experts.mean():.2f}, from {experts.min():.0f} to {experts.max():.0f}")
    if options.picture:
        picture(run, probe, found, options.picture)


if __name__ == "__main__":
    main()
