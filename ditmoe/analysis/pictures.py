"""The pictures of an analysis."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from ditmoe.analysis.charts import Line, Scale, heat, plot, stacked
from ditmoe.analysis.dial import Dial
from ditmoe.analysis.findings import Findings
from ditmoe.analysis.statistics import mean_and_half

MOST_EXPERTS, MOST_LAYERS = 16, 8
"""Most experts and layers in a picture; the files of numbers have all."""
DOUBLED = Scale(0, 1)
LIFT = (
    "red: chosen more often than overall (darkest: twice or more); blue: less often (darkest: half or less)"
)


def draw(findings: Findings) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """The pictures by file name; those with nothing to show are left out."""
    drawn = {name: make(findings) for name, make in _MAKERS.items()}
    return {f"{name}.png": picture for name, picture in drawn.items() if picture is not None}


def lift(counts: Float[np.ndarray, "L F E"]) -> Float[np.ndarray, "L E F"]:
    """log2 of an expert's share at a value over its overall share; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / counts.sum(-1, keepdims=True)
        overall = counts.sum(1, keepdims=True) / counts.sum((1, 2), keepdims=True)
        return np.log2(np.maximum(shares, 1e-9) / overall).transpose(0, 2, 1)


def _layers(findings: Findings) -> range:
    return range(min(findings.layers, MOST_LAYERS))


def _dependence(findings: Findings) -> UInt8[np.ndarray, "H W 3"]:
    of = findings.specialisation.whole
    rows = []
    for name, each in of.items():
        low, high = each.interval
        x = list(range(findings.layers))
        null = np.quantile(each.null, 0.95, axis=0) - each.null.mean(0)
        lines = [
            Line("bits, corrected", x, each.corrected.tolist(), low.tolist(), high.tolist()),
            Line("95 % by chance", x, null.tolist()),
        ]
        ticks = [(i, findings.layer_names[i]) for i in x]
        rows.append(plot(lines, name, "layer", ticks, joined=False, size=(300, 220)))
    pairs = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    return stacked(pairs, "What the choice of an expert depends on: mutual information, bits")


def _time(findings: Findings) -> UInt8[np.ndarray, "H W 3"]:
    of = lift(findings.specialisation.counts["time"])[:, :MOST_EXPERTS]
    names = findings.specialisation.names["time"]
    maps = [
        heat(of[i], DOUBLED, f"layer {findings.layer_names[i]}", range(of.shape[1]), names, (30, 18))
        for i in _layers(findings)
    ]
    return stacked(
        [maps[i : i + 3] for i in range(0, len(maps), 3)], "Experts by time, 0 data to 1000 noise", LIFT
    )


def _place(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    if "place" not in findings.specialisation.counts:
        return None
    of = lift(findings.specialisation.counts["place"])[:, :MOST_EXPERTS]
    rows = []
    for i in _layers(findings):
        maps = [_unfolded(each.reshape(findings.places)) for each in of[i]]
        side = max(4, min(14, 170 // max(maps[0].shape)))
        rows.append(
            [
                heat(each, DOUBLED, f"{findings.layer_names[i]} / {e}", cell=(side, side))
                for e, each in enumerate(maps)
            ]
        )
    slices = "; slices along the first axis beside each other" if len(findings.places) == 3 else ""
    return stacked(rows, f"Layer / expert by place in the token grid{slices}", LIFT)


def _unfolded(values: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "h w"]:
    """A grid in two dimensions: a line as one row, a volume as slices along the first axis with gaps between them."""
    if values.ndim < 3:
        return np.atleast_2d(values)
    gap = np.full((values.shape[1], 1), np.nan)
    return np.concatenate([part for each in values for part in (each, gap)][:-1], axis=1)


def _asked(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    names = [factor.name for factor in findings.factors]
    rows = []
    for name in names:
        of = lift(findings.specialisation.counts[name])[:, :MOST_EXPERTS, :24]
        values = findings.specialisation.names[name][:24]
        rows.append(
            [
                heat(
                    of[i], DOUBLED, f"{name}, {findings.layer_names[i]}", range(of.shape[1]), values, (22, 18)
                )
                for i in _layers(findings)
            ][:4]
        )
    return stacked(rows, "Experts by condition", LIFT) if rows else None


def _tokens(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    """Experts per token; None if the number is constant."""
    of = findings.tokens_by_place  # (B, L, F)
    if not np.nanmax(of) - np.nanmin(of) > 1e-3:
        return None
    mean, half = mean_and_half(findings.tokens_by_pass)  # (B, L)
    middle = [(a + b) / 2 for a, b in pairwise(findings.edges)]
    lines = [
        Line(f"layer {findings.layer_names[i]}", middle, mean[:, i].tolist(), (mean - half)[:, i].tolist(),
             (mean + half)[:, i].tolist())
        for i in _layers(findings)
    ]  # fmt: skip
    ticks = [(edge, f"{edge:.0f}") for edge in findings.edges]
    rows = [[plot(lines, "experts per token", "time", ticks)]]
    chosen = sorted({0, len(middle) // 2, len(middle) - 1})
    overall = float(np.nanmean(of))
    scale = Scale(overall, float(np.nanmax(np.abs(of - overall))))
    for i in _layers(findings):
        maps = [_unfolded(of[b, i].reshape(findings.places)) for b in chosen]
        side = max(4, min(16, 128 // max(maps[0].shape)))
        titles = [f"{findings.layer_names[i]}, time {findings.bins[b]}" for b in chosen]
        rows.append([heat(m, scale, t, cell=(side, side)) for m, t in zip(maps, titles, strict=True)])
    foot = f"maps: white {overall:.2f} experts, red more, blue fewer by {scale.reach:.2f}"
    return stacked(rows, "How many experts work on a token", foot)


def _paths(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    if findings.layers < 2:
        return None
    maps = []
    for i, table in enumerate(findings.transitions[:MOST_LAYERS]):
        joint = table / max(table.sum(), 1e-300)
        with np.errstate(invalid="ignore", divide="ignore"):
            times = np.log2(np.maximum(joint, 1e-9) / (joint.sum(1)[:, None] * joint.sum(0)))
        shown = times[:MOST_EXPERTS, :MOST_EXPERTS]
        title = f"layer {findings.layer_names[i]} (rows) to {findings.layer_names[i + 1]}"
        maps.append(heat(shown, DOUBLED, title, range(len(shown)), range(shown.shape[1])))
    foot = "red: more often than if layers were independent (darkest: twice or more); blue: less often"
    return stacked([maps[i : i + 3] for i in range(0, len(maps), 3)], "From layer to layer", foot)


def _similarity(findings: Findings) -> UInt8[np.ndarray, "H W 3"]:
    rows, scale = [], Scale(0, 1)
    for i in _layers(findings):
        pairs = {
            "weights, cosine": findings.similarity.weights, "outputs, cosine": findings.similarity.outputs,
            "outputs, CKA": findings.similarity.cka, "CKA, shuffled": findings.similarity.shuffled,
        }  # fmt: skip
        rows.append(
            [
                heat(each[i, :MOST_EXPERTS, :MOST_EXPERTS], scale, f"{findings.layer_names[i]}: {name}",
                     range(min(MOST_EXPERTS, each.shape[1])), cell=(18, 18))
                for name, each in pairs.items()
            ]
        )  # fmt: skip
    foot = (
        "red 1, white 0, blue -1; shuffled: the same experts with the entries of each weight in random order"
    )
    return stacked(rows, "Similarity of the experts of a layer", foot)


def _dropping(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    if findings.drops is None:
        return None
    mean, half = mean_and_half(np.moveaxis(findings.drops.expert.mean(-1), -1, 0))
    plots = []
    for i in _layers(findings):
        x = list(range(mean.shape[1]))
        line = Line("", x, mean[i].tolist(), (mean - half)[i].tolist(), (mean + half)[i].tolist())
        ticks = [(e, e) for e in x[:: max(1, len(x) // 16)]]
        title = f"layer {findings.layer_names[i]}"
        plots.append(plot([line], title, "expert", ticks, joined=False, size=(320, 220)))
    foot = "loss minus that of the whole model, paired by sample; 95 % intervals over samples"
    return stacked([plots[i : i + 3] for i in range(0, len(plots), 3)], "The loss without one expert", foot)


def _dial(findings: Findings) -> UInt8[np.ndarray, "H W 3"] | None:
    if findings.dial is None:
        return None
    dial: Dial = findings.dial
    mean, half = dial.difference
    cost = [n / 1e6 for n in dial.multiply_adds]
    ticks = [(x, k) for x, k in zip(cost, dial.top_k, strict=True)]
    whole = Line(
        "all times", cost, mean[:, -1].tolist(), (mean - half)[:, -1].tolist(), (mean + half)[:, -1].tolist()
    )
    ends = {0: f"time {findings.bins[0]}", len(findings.bins) - 1: f"time {findings.bins[-1]}"}
    some = [Line(name, cost, mean[:, b].tolist()) for b, name in ends.items()]
    title = f"loss minus that at top_k={dial.trained}"
    x_title = f"top_k at its multiply-adds, {cost[0]:.4g} .. {cost[-1]:.4g} M"
    curves = [plot([whole, *some], title, x_title, ticks)]
    for name in dial.reports[0].values if dial.reports else ():
        values = [report.values.get(name, np.nan) for report in dial.reports]
        pairs = [report.intervals.get(name, (np.nan, np.nan)) for report in dial.reports]
        line = Line("", cost, values, [p[0] for p in pairs], [p[1] for p in pairs])
        curves.append(plot([line], name, x_title, ticks))
    return stacked(
        [curves[i : i + 2] for i in range(0, len(curves), 2)], "Loss and metrics by experts per token"
    )


_MAKERS: dict[str, Callable[[Findings], UInt8[np.ndarray, "H W 3"] | None]] = {
    "dependence": _dependence, "time": _time, "place": _place, "asked": _asked, "tokens": _tokens,
    "paths": _paths, "similarity": _similarity, "dropping": _dropping, "dial": _dial,
}  # fmt: skip
FILES = frozenset(f"{name}.png" for name in _MAKERS)
"""File names of all pictures that an analysis may have."""
