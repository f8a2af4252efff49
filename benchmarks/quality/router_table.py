"""Reports `benchmarks.quality.routers` on a page that claims no more than its runs can tell apart."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.quality.paired import holm, interval, least_detectable, p_value

REFERENCE, DENSE, CONTROL = "token choice", "dense", "dense, twice as wide"
LEVEL = 0.05
MARK = "<!-- {}: benchmarks.quality.routers, {} -->"
Runs = dict[str, dict[int, dict[str, Any]]]
"""By variant and seed."""


def by_variant(runs: list[dict[str, Any]]) -> Runs:
    """The runs that are compared, without those that learning rates were chosen with."""
    found: Runs = {}
    for run in runs:
        if not run["tuning"]:
            found.setdefault(run["name"], {})[run["seed"]] = run
    return found


def tuned(runs: list[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Loss at each learning rate that was tried, by variant: the mean over the seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        if run["tuning"]:
            found.setdefault(run["name"], {}).setdefault(run["rate"], []).append(run["loss"])
    return {name: {rate: statistics.mean(of) for rate, of in each.items()} for name, each in found.items()}


def differences(runs: Runs, name: str, base: str) -> list[float]:
    """Losses of a variant less those of another, seed by seed."""
    own, other = runs.get(name, {}), runs.get(base, {})
    return [own[seed]["loss"] - other[seed]["loss"] for seed in sorted(own.keys() & other.keys())]


def separates(runs: Runs) -> bool:
    """Whether the dense model of twice the width is better than the dense one: a study in which it is not is blind."""
    pairs = differences(runs, CONTROL, DENSE)
    return len(pairs) > 1 and statistics.mean(pairs) < 0 and p_value(pairs) < LEVEL


def section(runs: list[dict[str, Any]]) -> str:
    """The table, and what may be said of it."""
    compared, rates = by_variant(runs), tuned(runs)
    if not compared:
        return "No run of the comparison has ended.\n"
    others = [name for name in compared if name != REFERENCE]
    pairs = {name: differences(compared, name, REFERENCE) for name in others}
    adjusted = holm({name: p_value(pairs[name]) for name in others})
    blind = not separates(compared)
    head = [
        "variant", "seeds", "rate", "held-out loss", "less token choice's", "p (Holm)", "least detectable",
        "" if blind else "verdict", "by noise, low to high", "work, sampling", "time", "memory", "parameters",
        "experts per token", "largest load", "unused",
    ]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for name, own in compared.items():
        told = ["", "", "", ""]
        if name != REFERENCE and len(pairs[name]) > 1:
            mean, half = interval(pairs[name])
            least = least_detectable(pairs[name], len(others))
            told = [f"{mean:+.4f} ± {half:.4f}", f"{adjusted[name]:.2g}", f"{least:.4f}",
                    "" if blind else verdict(mean, adjusted[name])]  # fmt: skip
        rows.append([name, str(len(own)), *of_itself(own, rates.get(name, {})), *told, *costs(own, compared)])
    return "\n".join(
        [f"| {' | '.join(row)} |" for row in rows] + ["", *sentences(compared, pairs, adjusted, blind), ""]
    )


def verdict(mean: float, adjusted: float) -> str:
    """What a corrected p value lets say."""
    return "not told apart" if adjusted >= LEVEL else "lower" if mean < 0 else "higher"


def of_itself(own: dict[int, dict[str, Any]], tried: dict[float, float]) -> list[str]:
    """A variant's learning rate, of those that were tried for it, and its loss."""
    rate = next(iter(own.values()))["rate"]
    edge = " (edge)" if len(tried) > 1 and rate in (min(tried), max(tried)) else ""
    loss, half = interval([run["loss"] for run in own.values()])
    return [f"{rate:g}{edge}", f"{loss:.4f} ± {half:.4f}"]


def costs(own: dict[int, dict[str, Any]], runs: Runs) -> list[str]:
    """Losses by noise, what a variant costs, and how its experts are used."""
    first, seeds = next(iter(own.values())), own.keys() & runs.get(DENSE, {}).keys()
    time = [own[seed]["seconds"] / runs[DENSE][seed]["seconds"] for seed in seeds]

    def mean(value: Callable[[dict[str, Any]], Any], digits: int) -> str:
        found = [value(run) for run in own.values() if value(run) is not None]
        return f"{statistics.mean(found):.{digits}f}" if found else ""

    return [
        ", ".join(mean(lambda run, i=i: run["bins"][i], 3) for i in range(4)),  # type: ignore[misc]
        f"{first['work'][0]:.2f}, {first['work'][1]:.2f}",
        f"{statistics.median(time):.2f}" if time else "",
        f"{first['memory']:.2f}",
        f"{first['parameters'] / 1e3:.0f} k",
        mean(lambda run: run.get("experts per token"), 2),
        mean(lambda run: run.get("largest load"), 2),
        mean(lambda run: run.get("unused"), 1),
    ]


def sentences(
    runs: Runs, pairs: dict[str, list[float]], adjusted: dict[str, float], blind: bool
) -> list[str]:
    """What the numbers say, and what they do not."""
    control = differences(runs, CONTROL, DENSE)
    told = "has not been run"
    if len(control) > 1:
        mean, half = interval(control)
        told = f"differs from `dense` by {mean:+.4f} ± {half:.4f} (p {p_value(control):.2g})"
    lines = [f"The control, `{CONTROL}`, {told}."]
    if blind:
        lines.append(
            "**This study cannot tell better from worse**: it must find that control better, and did not."
        )
        return lines
    groups: dict[str, list[str]] = {}
    for name, own in pairs.items():
        if name != CONTROL and len(own) > 1:
            groups.setdefault(verdict(statistics.mean(own), adjusted[name]), []).append(f"`{name}`")
    for kind in ("lower", "higher", "not told apart"):
        if kind in groups:
            lines.append(f"Loss against `{REFERENCE}`, {kind}: {', '.join(groups[kind])}.")
    lines.append("Order within these groups means nothing.")
    sparse = differences(runs, REFERENCE, DENSE)
    if len(sparse) > 1:
        mean, half = interval(sparse)
        known = p_value(sparse) < LEVEL
        says = ("lower than" if mean < 0 else "higher than") if known else "not told apart from"
        lines.append(
            f"At equal multiply-adds the loss of `{REFERENCE}` is {says} that of `{DENSE}` "
            f"({mean:+.4f} ± {half:.4f})."
        )
    return lines + beside_control(runs)


def beside_control(runs: Runs) -> list[str]:
    """What the reference loses or wins against the wide dense model, and for what time and memory."""
    pairs = differences(runs, REFERENCE, CONTROL)
    if len(pairs) < 2:
        return []
    sparse, wide = runs[REFERENCE], runs[CONTROL]
    mean, half = interval(pairs)

    def over(name: str) -> float:
        return statistics.median(sparse[s][name] / wide[s][name] for s in sparse.keys() & wide.keys())

    first, second = (next(iter(each.values())) for each in (sparse, wide))
    return [
        f"Against `{CONTROL}`, `{REFERENCE}` is at {mean:+.4f} ± {half:.4f} (p {p_value(pairs):.2g}), with "
        f"{over('seconds'):.2f} of its time, {first['work'][0] / second['work'][0]:.2f} of its multiply-adds, "
        f"{over('parameters'):.2f} of its weights and {over('memory'):.2f} of the activations that are kept."
    ]


def written(page: str, text: str, task: str) -> str:
    """A page with the part of a task in place of what stands between its marks.

    Raises:
        ValueError: if it does not have both, once each and in order.
    """
    begin, end = MARK.format("begin", task), MARK.format("end", task)
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page must have one {begin!r} and after it one {end!r}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
