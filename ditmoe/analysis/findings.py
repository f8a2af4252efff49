"""All that an analysis found, as arrays and as a record of numbers with their protocol."""

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
    """What was found; L layers with experts, B bins of time, E experts, F places.

    Attributes:
        protocol: what was shown to which model, and how.
        blocks: of the layers with experts, their numbers among all.
        edges: of the bins.
        places: along each axis, that cells are counted in.
        load: (L, E), share of the assignments.
        unrouted: (L,), share of the tokens on which no routed expert works.
        tokens_by_pass, tokens_by_place: experts per token, (S, B, L) and (B, L, F).
        transitions, following: from each layer to the next, and how much the one says of the other.
        drops, dial: None where they were not asked for, or the router has no such dial.
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
        """Numbers of the blocks, from 0."""
        return [str(number) for number in self.blocks]

    @property
    def bins(self) -> list[str]:
        return names_of(self.edges)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for who wants to count on."""
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
        """Numbers that can be read, with their protocol."""
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
        """A few of them for the person who waits."""
        names = ["", *(f"layer {name}" for name in self.layer_names)]
        rows = [names, ["busiest / idlest", *(f"{row.max():.3f} / {row.min():.3f}" for row in self.load)]]
        for name, each in self.specialisation.whole.items():
            rows.append([f"bits of {name}", *_cells(each)])
        if self.following is not None:
            rows.append(["bits of next", *_cells(self.following), ""])
        rows.append(
            ["of, at most", *(f"{h:.3f}" for h in next(iter(self.specialisation.whole.values())).entropy)]
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
    """Of bins, by their ends."""
    return [f"{a:.0f}-{b:.0f}" for a, b in pairwise(edges)]


def _cells(each: Dependence) -> list[str]:
    low, high = each.interval
    p = each.p
    return [
        f"{v:+.4f} ({a:+.4f} .. {b:+.4f}) p={q:.3f}"
        for v, a, b, q in zip(each.corrected, low, high, p, strict=True)
    ]


def _plain(value: Any) -> Any:
    """With null for what is no number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
