"""Loss on held-out samples, and the modality's metric, as a function of `top_k` and its cost.

The model was trained with one `top_k` and is not fine-tuned for others, so the measured loss in quality is an upper
bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ditmoe.analysis.probe import Probe
from ditmoe.analysis.record import take_record
from ditmoe.analysis.statistics import mean_and_half
from ditmoe.analysis.subject import Subject
from ditmoe.cost import count
from ditmoe.inference import ask, draw_from
from ditmoe.modality import Metric, Report

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Dial:
    """Results for each `top_k`.

    Attributes:
        trained: the `top_k` of training.
        loss: of each sample in each time bin.
        multiply_adds: per forward pass of one sample.
        reports: the modality's metric of drawn samples; empty if none were drawn.
    """

    top_k: Sequence[int]
    trained: int
    loss: Float[np.ndarray, "K S B"]
    multiply_adds: Sequence[int]
    reports: Sequence[Report] = field(default_factory=list)

    @property
    def difference(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss minus that at the trained `top_k`, and half widths of its 95 % intervals, both (K, B + 1).

        The last column is the mean over all bins.
        """
        paired = self.loss - self.loss[list(self.top_k).index(self.trained)]
        return mean_and_half(np.moveaxis(np.concatenate([paired, paired.mean(-1, keepdims=True)], -1), 1, 0))

    def told(self) -> list[dict[str, object]]:
        """A row for each `top_k`, for `analysis.json`."""
        mean, half = (of[:, -1] for of in self.difference)
        rows: list[dict[str, object]] = []
        for i, top_k in enumerate(self.top_k):
            rows.append(
                {
                    "top_k": top_k,
                    "multiply_adds": self.multiply_adds[i],
                    "loss": float(self.loss[i].mean()),
                    "difference": float(mean[i]),
                    "difference_half": float(half[i]),
                }
            )
            if self.reports:
                report = self.reports[i]
                intervals = {name: list(pair) for name, pair in report.intervals.items()}
                rows[-1] |= {"metric": {**report.values}, "metric_interval": intervals}
        return rows


def settings(trained: int, num_experts: int, asked: Any) -> list[int]:
    """Values of `top_k` to try, including the trained one.

    Raises:
        ValueError: if one of `asked` is not a valid `top_k`.
    """
    if asked is not None and not isinstance(asked, list | tuple):
        raise ValueError(f"dial must be a list, as [1,2,4], got {asked!r}")
    for top_k in asked or ():
        if type(top_k) is not int or not 1 <= top_k <= num_experts:
            raise ValueError(
                f"dial must be whole numbers between 1 and num_experts = {num_experts}, got {top_k!r}"
            )
    wanted = STEPS if asked is None else asked
    return sorted({trained, *(k for k in wanted if k <= num_experts)})


def turn(
    top_ks: Sequence[int],
    opened: Callable[[int], Subject],
    trained: int,
    probe: Probe,
    size: int,
    draw: int,
    split: str,
    steps: int | None,
    seed: int,
    on_pass: Callable[[], object] = lambda: None,
) -> Dial:
    """Evaluate the model at each `top_k`.

    Args:
        opened: opens the subject with the given `top_k`.
        trained: the `top_k` of training.
        size: batch size.
        draw: number of samples to draw and measure at each `top_k`; 0: none.
        split: the reference split for the metric.
        steps: scheduler steps for drawing; None: as configured in the run.
        on_pass: called after each forward pass.
    """
    losses, costs, reports = [], [], []
    for top_k in top_ks:
        subject = opened(top_k)
        losses.append(take_record(subject.model, probe, subject.process, size, on_pass).loss)
        costs.append(count(subject.make, subject.modality.sample_shape).multiply_adds)
        if draw and subject.restored is not None:
            reports.append(_drawn(subject, draw, split, steps, size, seed))
    return Dial(top_ks, trained, np.stack(losses), costs, reports)


def _drawn(subject: Subject, num: int, split: str, steps: int | None, size: int, seed: int) -> Report:
    """The modality's metric of drawn samples; classes are requested in turn, with the same seeds for each `top_k`."""
    restored = subject.restored
    assert restored is not None
    metric = Metric.of(restored.modality, "analyze")
    samples = draw_from(restored, ask(restored, num, seed), steps=steps, seed=seed, batch_size=size)
    assert samples is not None
    return metric.evaluate(samples, metric.reference(split))
