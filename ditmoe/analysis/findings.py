"""The results of an analysis, as arrays, as JSON with the protocol, and as a table for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from ditmoe.analysis import paths
from ditmoe.analysis.dial import Dial
from ditmoe.analysis.dropping import Drops
from ditmoe.analysis.factors import Factor
from ditmoe.analysis.similarity import Similarity
from ditmoe.analysis.specialisation import Specialisation
from ditmoe.analysis.statistics import Dependence, mean_and_half


@dataclass(frozen=True)
class Findings:
    """Results for S samples, L layers with experts, B time bins, E experts and F places.

    Attributes:
        protocol: model, samples and settings of the analysis.
        blocks: block numbers of the layers with experts.
        edges: of the time bins.
        places: number of places along each axis of the token grid.
        load: (L, E), share of the assignments.
        unrouted: (L,), share of the tokens without a routed expert.
        tokens_by_pass, tokens_by_place: experts per token, (S, B, L) and (B, L, F).
        transitions, following: assignments from each layer to the next, and the dependence between the two layers.
        drops, dial: None if not requested, or if the router does not choose by `top_k`.
    """

    protocol: dict[str, Any]
    blocks: Sequence[int]
    edges: Sequence[float]
    places: tuple[int, ...]
    loss: Float[np.ndarray, "S B"]
    load: Float[np.ndarray, "L E"]
    unrouted: Float[np.ndarray, " L"]
    tokens_by_pass: Float[np.ndarray, "S B L"]
    tokens_by_place: Float[np.ndarray, "B L F"]
    factors: Sequence[Factor]
    specialisation: Specialisation
    transitions: Float[np.ndarray, "M E E"]
    following: Dependence | None
    similarity: Similarity
    drops: Drops | None = None
    dial: Dial | None = None

    @property
    def layers(self) -> int:
        return len(self.load)

    @property
    def layer_names(self) -> list[str]:
        """Block numbers, from 0."""
        return [str(number) for number in self.blocks]

    @property
    def bins(self) -> list[str]:
        return names_of(self.edges)

    def arrays(self) -> dict[str, np.ndarray]:
        """All counts and measures, for `analysis.npz`."""
        found: dict[str, Any] = {
            "blocks": self.blocks, "edges": self.edges, "loss": self.loss, "load": self.load,
            "unrouted": self.unrouted, "experts_per_token": self.tokens_by_pass,
            "experts_per_token_by_place": self.tokens_by_place.reshape(*self.tokens_by_place.shape[:2], *self.places),
            "transitions": self.transitions,
        }  # fmt: skip
        of = self.specialisation
        for name, counts in of.counts.items():
            found |= {f"counts/{name}": counts, f"names/{name}": np.array(of.names[name])}
        for kind, each in {"": of.whole, "by_time/": of.by_time}.items():
            for name, dependence in each.items():
                found |= {f"bits/{kind}{name}": dependence.corrected, f"null/{kind}{name}": dependence.null}
        if self.following is not None:
            found |= {"bits/next": self.following.corrected, "null/next": self.following.null}
        for name in ("weights", "outputs", "cka", "shuffled"):
            found[f"similarity/{name}"] = getattr(self.similarity, name)
        if self.drops is not None:
            found |= {"drop/expert": self.drops.expert, "drop/layer": self.drops.layer}
        if self.dial is not None:
            found |= {"dial/top_k": self.dial.top_k, "dial/loss": self.dial.loss}
            found["dial/multiply_adds"] = self.dial.multiply_adds
        return {name: np.asarray(value) for name, value in found.items()}

    def record(self) -> dict[str, Any]:
        """Summaries with their protocol, for `analysis.json`."""
        of = self.specialisation
        tokens, half = mean_and_half(self.tokens_by_pass)
        found: dict[str, Any] = {
            "protocol": self.protocol,
            "blocks": list(self.blocks),
            "bins": self.bins,
            "loss_by_time": self.loss.mean(0).tolist(),
            "load": self.load.tolist(),
            "unrouted": self.unrouted.tolist(),
            "experts_per_token": {"by_time": tokens.T.tolist(), "half": half.T.tolist()},
            "dependence": {name: each.told() for name, each in of.whole.items()},
            "dependence_by_time": {name: each.told() for name, each in of.by_time.items()},
            "next_layer": None if self.following is None else self.following.told(),
            "transitions": paths.told(self.transitions),
            "similarity": self.similarity.told(),
        }
        if self.drops is not None:
            found["drop"] = self.drops.told()
        if self.dial is not None:
            found["dial"] = self.dial.told()
        return _plain(found)

    def lines(self) -> list[str]:
        """A table of the main numbers, for the terminal."""
        names = ["", *(f"layer {name}" for name in self.layer_names)]
        rows = [names, ["busiest / idlest", *(f"{row.max():.3f} / {row.min():.3f}" for row in self.load)]]
        for name, each in self.specialisation.whole.items():
            rows.append([f"bits of {name}", *_cells(each)])
        if self.following is not None:
            rows.append(["bits of next", *_cells(self.following), ""])
        rows.append(
            [
                "entropy, the most",
                *(f"{h:.3f}" for h in next(iter(self.specialisation.whole.values())).entropy),
            ]
        )
        if self.drops is not None:
            mean, half = mean_and_half(np.moveaxis(self.drops.expert.mean(-1), -1, 0))
            best = mean.argmax(1)
            cells = [f"{mean[i, e]:+.4f} ±{half[i, e]:.4f} ({e})" for i, e in enumerate(best)]
            rows.append(["loss, worst drop", *cells])
        widths = [max(len(row[i]) for row in rows if i < len(row)) + 2 for i in range(len(names))]
        table = [
            "".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip() for row in rows
        ]
        if self.dial is not None:
            for row in self.dial.told():
                table.append(
                    f"top_k={row['top_k']}: {row['multiply_adds'] / 1e6:.1f} M multiply-adds, loss "  # type: ignore[operator]
                    f"{row['difference']:+.4f} ±{row['difference_half']:.4f}"
                )
        return table


def names_of(edges: Sequence[float]) -> list[str]:
    """Names of bins, such as 0-125."""
    return [f"{a:.0f}-{b:.0f}" for a, b in pairwise(edges)]


def _cells(each: Dependence) -> list[str]:
    low, high = each.interval
    p = each.p
    return [
        f"{v:+.4f} ({a:+.4f} .. {b:+.4f}) p={q:.3f}"
        for v, a, b, q in zip(each.corrected, low, high, p, strict=True)
    ]


def _plain(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, for JSON."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
