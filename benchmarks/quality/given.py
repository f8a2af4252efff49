"""How a video model continues given frames of the built-in clips, against baselines that need no model.

    python -m ditmoe.train modality=video experiment=goes_on name=goes_on
    python -m benchmarks.quality.given runs/video/goes_on [--num 32] [--steps 25] [--split val]

Held-out moving digits are continued forwards and backwards, connected and looped, without a label. Per clip, over the
new frames:

    identity   whether a classifier of frames, trained on real ones, recognises the digit of the clip
    centroid   distance of the centre of brightness from that of the real clip, in pixels
    ink        brightness relative to the real clip
    seam       change from the last given frame to the first new one, and back, relative to the real clip
    jerk       second difference of the centre of brightness there, relative to the real clips

The new frames of a loop have no ground truth: there, seam and jerk are relative to the mean of the real clips, and
"codec" is of 8 frames of a clip that does not loop. Means with 95 % bootstrap intervals over clips. "held" repeats or
cross-fades the given frames; "repeated" starts the clip again; "replacement" is the same model, not told what is given;
"codec" has the real frames after the codec, which no model of its latents can be expected to beat.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import options_of
from benchmarks.quality.class_control import classifier, learn
from ditmoe.config import build
from ditmoe.config.restore import Restored, restore
from ditmoe.config.words import parts_asked
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from modalities.video.data import MovingDigits
from modalities.video.metrics.motion import centres
from modalities.video.seam import smooth_seams
from modalities.video.view import strip

Numbers = dict[str, np.ndarray]
LONG = 57
"""Frames of three rounds, from 9."""


def frames_of(clips: np.ndarray) -> Tensor:
    """(S, T, H, W, 3) bytes as (S, T, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).movedim(-1, 2).float() / 127.5 - 1


def learn_digits(restored: Restored, size: tuple[int, int]) -> nn.Module:
    """A classifier of single frames, real ones and those that went through the codec."""
    torch.manual_seed(0)
    x, y, _ = [], [], None
    data = MovingDigits(size, 5)
    for index in range(40):
        clips, labels = data.batch(16, 77, index)
        for frames in (clips, restored.modality.decode(restored.modality.encode(clips))):  # type: ignore[attr-defined]
            x.append(frames_of(frames[:, ::2]).flatten(0, 1))
            y.append(torch.from_numpy(labels).repeat_interleave(3))
    model = classifier(10)
    learn(model, torch.cat(x), torch.cat(y), epochs=12)
    return model.eval()


@torch.no_grad()
def identity(model: nn.Module, clips: np.ndarray, labels: np.ndarray) -> np.ndarray:
    frames = frames_of(clips)
    scores = model(frames.flatten(0, 1)).log_softmax(-1).unflatten(0, frames.shape[:2]).mean(1)
    return (scores.argmax(-1).numpy() == labels).astype(float)


def measured(model: nn.Module, made: np.ndarray, real: np.ndarray, new: slice, labels: np.ndarray) -> Numbers:
    """Of each clip."""
    (place, ink), (true, true_ink) = centres(made), centres(real)
    change = [np.abs(np.diff(clips.mean(-1) / 255, axis=1)).mean((2, 3)) for clips in (made, real)]
    second = [np.linalg.norm(np.diff(c, n=2, axis=1), axis=-1) for c in (place, true)]
    ends = [t for t in (new.start, new.stop) if 0 < t < made.shape[1]]
    seams = [t - 1 for t in ends]
    around = sorted({t for s in seams for t in (s - 1, s) if 0 <= t < second[0].shape[1]})
    if made.shape[1] > real.shape[1]:
        return {
            "identity": identity(model, made[:, new], labels),
            "ink": ink[:, new].mean(1) / true_ink.mean(1),
            "seam": change[0][:, seams].mean(1) / change[1].mean(),
            "jerk": second[0][:, around].mean(1) / second[1].mean(),
        }
    return {
        "identity": identity(model, made[:, new], labels),
        "centroid": np.linalg.norm(place - true, axis=-1)[:, new].mean(1),
        "ink": ink[:, new].mean(1) / true_ink[:, new].mean(1),
        "seam": change[0][:, seams].mean(1) / max(1e-9, change[1][:, seams].mean()),
        "jerk": second[0][:, around].mean(1) / max(1e-9, second[1][:, around].mean()),
    }


def held(real: np.ndarray, new: slice) -> np.ndarray:
    """The given frame that is nearest, or a cross-fade between two."""
    made, last = real.copy(), real.shape[1]
    for t in range(new.start, new.stop):
        before = real[:, new.start - 1] if new.start else None
        after = real[:, new.stop] if new.stop < last else None
        share = (t - new.start + 1) / (new.stop - new.start + 1)
        if before is not None and after is not None:
            made[:, t] = np.round((1 - share) * before + share * after)
        else:
            made[:, t] = after if before is None else before
    return made


def through_codec(restored: Restored, real: np.ndarray, new: slice) -> np.ndarray:
    """Real clips whose new frames went through the codec, joined to the given ones as drawn frames are."""
    given = np.ones(real.shape[1], bool)
    given[new] = False
    decoded = restored.modality.decode(restored.modality.encode(real))  # type: ignore[attr-defined]
    made = [smooth_seams(own[None], clip, given)[0] for own, clip in zip(decoded, real, strict=True)]
    return np.where(given[:, None, None, None], real, np.stack(made))


class Drawing:
    """Samples of a run for given parts."""

    def __init__(self, restored: Restored, steps: int) -> None:
        self.restored = restored
        self.sampling = Sampling(steps, 1.0)
        self.scheduler = build.make(restored.config["scheduler"])

    def __call__(
        self, clips: list[Any], trained: float = 1.0, guidance: float = 1.0, **words: Any
    ) -> np.ndarray:
        """One for each of what is given."""
        made = []
        for number, given in enumerate(clips):
            own = dict(words)
            shape = {name: own.pop(name) for name in ("frames",) if name in own}
            parts = parts_asked(self.restored.modality, given, shape, own, trained)
            assert parts is not None
            asked = self.restored.model.conditioning.nothing(1)
            x = draw(
                self.restored.model, self.restored.modality, self.restored.process, self.scheduler, self.sampling,
                asked, seed=1, numbers=torch.tensor([number]), parts=parts, given_guidance=guidance,
            )  # fmt: skip
            made.append(parts.finish(self.restored.modality.decode(x))[0])
        return np.stack(made)


def interval(values: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.2f} ({low:.2f} .. {high:.2f})"


TASKS = ("forward", "animate", "backward", "connect", "loop", "rounds")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs="*", default=[2.0])
    parser.add_argument(
        "--out", type=Path, help="a folder for the numbers and pictures; the run's by default"
    )
    parser.add_argument("--only", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of which the digits are")
    options = parser.parse_args()
    restored = restore(options.checkpoint)
    frames, size = restored.modality.frames, restored.modality.size  # type: ignore[attr-defined]
    out = options.out or restored.folder / "given"
    out.mkdir(parents=True, exist_ok=True)
    made = [MovingDigits(size, LONG).clip(options.split, 0, i) for i in range(options.num)]
    whole, labels = np.stack([clip for clip, _ in made]), np.array([label for _, label in made])
    real = whole[:, :frames]
    digits, drawing = learn_digits(restored, size), Drawing(restored, options.steps)
    print(f"real clips: identity {interval(identity(digits, real, labels))}", flush=True)
    results: dict[str, dict[str, str]] = {}

    def told(task: str, row: str, clips: np.ndarray, truth: np.ndarray, new: slice) -> None:
        numbers = measured(digits, clips, truth, new, labels)
        results.setdefault(task, {})[row] = ", ".join(f"{k} {interval(v)}" for k, v in numbers.items())
        print(f"{task:10} {row:14} {results[task][row]}", flush=True)
        tiles = [strip(clip) for pair in zip(truth[:6], clips[:6], strict=True) for clip in pair]
        np.savez_compressed(out / f"{task}-{row}.npz".replace(" ", "-"), videos=clips[:12])
        save(out / f"{task}-{row}.png".replace(" ", "-"), tiles)
        (out / "given.json").write_text(json.dumps(results, indent=1) + "\n")

    def task(
        name: str,
        truth: np.ndarray,
        new: slice,
        given: Callable[[np.ndarray], Any],
        guidances: list[float],
        **words: Any,
    ) -> None:
        told(name, "held", held(truth, new), truth, new)
        told(name, "codec", through_codec(restored, truth, new), truth, new)
        clips = [given(clip) for clip in truth]
        told(name, "replacement", drawing(clips, trained=0.0, **words), truth, new)
        for weight in guidances:
            told(name, f"given x{weight:g}", drawing(clips, guidance=weight, **words), truth, new)

    every, last = [1.0, *options.guidance], frames
    forms: dict[str, tuple[slice, Callable[[np.ndarray], Any], dict[str, Any]]] = {
        "forward": (slice(9, last), lambda c: c[:9], {"frames": last}),
        "animate": (slice(1, last), lambda c: c[:1], {"frames": last}),
        "backward": (slice(0, last - 12), lambda c: c[-12:], {"keep": [-12, None], "frames": last}),
        "connect": (slice(5, last - 8), lambda c: [c[:5], c[-8:]], {"between": last - 13}),
    }
    for name, (new, given, words) in forms.items():
        if name in options.only:
            task(name, real, new, given, every, **words)
    if "loop" in options.only:
        new = slice(last, last + 8)
        told("loop", "repeated", np.concatenate([real, real[:, :8], real[:, :8]], axis=1), real, new)
        told("loop", "codec", through_codec(restored, whole[:, : last + 16], new), real, new)
        for weight in every:
            clips = drawing(list(real), guidance=weight, loop=8)
            told("loop", f"given x{weight:g}", np.concatenate([clips, real[:, :8]], axis=1), real, new)
    if "rounds" in options.only:
        rounds = drawing([clip[:9] for clip in whole], guidance=max(every), frames=LONG)
        for turn in range(3):
            new = slice(9 + 16 * turn, 25 + 16 * turn)
            told(
                f"round {turn + 1}",
                f"given x{max(every):g}",
                rounds[:, : new.stop],
                whole[:, : new.stop],
                new,
            )


def save(file: Path, tiles: list[np.ndarray]) -> None:
    from modalities.shared import lay_out, save_png

    save_png(file, lay_out(tiles, ["real" if i % 2 == 0 else "made" for i in range(len(tiles))], columns=2))


if __name__ == "__main__":
    main()
