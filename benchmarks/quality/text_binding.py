"""Which words of a caption does a model read, and does it tell which of them belong together? Without any sample.

    python -m benchmarks.quality.text_binding runs/video/text [runs/video/pooled ...] [--num 128] [--split test]

Held-out clips of two moving digits are noised once in each bin of time, and the model predicts with the same noise for
several captions. Printed is how much the loss grows, x 1e4, from a clip's own caption to a wrong one:

    ways exchanged    each digit moves the other's way: grows only in a model that binds ways to digits or to places
    places exchanged  each digit is where the other is: the same for places
    digits exchanged  each digit is the other: grows only in a model that binds digits to ways or to places
    other ways        both ways are those of the next clip: grows in a model that reads ways
    other digits      both digits are those of the next clip
    none              no caption

Clips whose wrong caption says the same are left out. 95 % intervals over clips (Student).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from benchmarks import options_of
from benchmarks.quality.clip_reading import SAID
from benchmarks.quality.paired import interval
from ditmoe.analysis.probe import Probe, make_probe, shown
from ditmoe.conditioning import captions_of
from ditmoe.config.restore import Restored, restore
from ditmoe.text import Text

BINS, BATCH = 8, 32
Digit = dict[str, str]
"""What a caption says of a digit: its name, place ("" if it says none) and way."""
Said = tuple[Digit, Digit]


def said(caption: str) -> Said:
    """What a caption of the built-in clips says.

    Raises:
        ValueError: if it is no such caption.
    """
    found = [one.groupdict(default="") for one in SAID.finditer(caption)]
    if len(found) != 2:
        raise ValueError(f"a caption must name two moving digits, got {caption!r}")
    return found[0], found[1]


def caption_of(digits: Said) -> str:
    """A caption that says so."""
    told = (
        f"{'an' if one['name'][0] == 'e' else 'a'} {one['name']} {one['place']} moving {one['way']}"
        for one in digits
    )
    return " and ".join(told).replace("  ", " ")


def exchanged(what: str) -> Callable[[Said, Said], Said]:
    """Each of the two has the other's name, place or way."""
    return lambda own, _: (own[0] | {what: own[1][what]}, own[1] | {what: own[0][what]})


def of_another(what: str) -> Callable[[Said, Said], Said]:
    """Both have the names, places or ways of another caption."""
    return lambda own, other: (own[0] | {what: other[0][what]}, own[1] | {what: other[1][what]})


WRONG: dict[str, Callable[[Said, Said], Said]] = {
    "ways exchanged": exchanged("way"),
    "places exchanged": exchanged("place"),
    "digits exchanged": exchanged("name"),
    "other ways": of_another("way"),
    "other digits": of_another("name"),
}


def _unordered(digits: Said) -> list[tuple[str, ...]]:
    return sorted(tuple(one.values()) for one in digits)


def wrong_captions(captions: list[str]) -> dict[str, list[str | None]]:
    """For each kind of `WRONG` a caption for each one, None where it would say the same."""
    own = [said(caption) for caption in captions]
    found: dict[str, list[str | None]] = {}
    for name, make in WRONG.items():
        made = [make(one, other) for one, other in zip(own, own[1:] + own[:1], strict=True)]
        found[name] = [
            None if _unordered(one) == _unordered(new) else caption_of(new)
            for one, new in zip(own, made, strict=True)
        ]
    return found


@torch.no_grad()
def growths(run: Restored, probe: Probe) -> dict[str, Float[np.ndarray, "S B"]]:
    """Loss with each wrong caption minus that with the own one, NaN where a clip is left out."""
    model, classes = run.model.eval(), list(run.modality.classes)
    captions = captions_of(probe.asked) or []
    wrong = wrong_captions(captions)
    filled = {
        name: [new or own for new, own in zip(each, captions, strict=True)] for name, each in wrong.items()
    }
    asked = {
        name: model.conditioning.ask(len(each), classes, prompt=each) for name, each in filled.items()
    } | {"none": model.conditioning.nothing(len(captions))}
    found = {name: np.full((len(captions), probe.bins), np.nan) for name in asked}
    for one in shown(probe, run.process, BATCH, torch.device("cpu")):
        own = one.loss(model(one.x, one.t, one.asked)[0])
        for name, condition in asked.items():
            growth = one.loss(model(one.x, one.t, condition.take(one.rows))[0]) - own
            found[name][one.rows.numpy(), one.number] = growth.numpy()
    for name, each in wrong.items():
        found[name][[new is None for new in each]] = np.nan
    return found


def table(found: dict[str, np.ndarray], edges: list[float]) -> str:
    """Rows by time, in Markdown; x 1e4."""
    lines = [f"| time | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for number in range(len(edges) - 1):
        cells = []
        for growth in found.values():
            kept = growth[np.isfinite(growth[:, number]), number]
            mean, half = interval((1e4 * kept).tolist())
            cells.append(f"{mean:.0f} ({mean - half:.0f} .. {mean + half:.0f})")
        lines.append(f"| {edges[number]:.0f} to {edges[number + 1]:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for path in options.runs:
        run = restore(path)
        if run.modality.name != "video" or not isinstance(run.model.conditioning, Text):
            raise SystemExit(f"{path} must be a run of modality=video conditioning=text")
        probe = make_probe(
            run.model, run.modality, run.process, options.split, options.num, BINS, options.seed
        )
        print(
            f"\n{path}, {probe.origin}, seed {options.seed}\n\n{table(growths(run, probe), probe.edges)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
