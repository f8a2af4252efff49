"""Distillation for few-step sampling: guidance embedded in the model, and mean velocities over steps.

Each sample of a batch is randomly one of two kinds:

- mostly, a step of zero length, at ordinary training times. The target is the teacher's guided velocity,
      u(x_t, t, t; w) = v(x_t, null) + w (v(x_t, condition) - v(x_t, null)),
  with a guidance scale w drawn from a range, which the model gets as input (arXiv 2210.03142, section 3);
- otherwise, one of the steps of length 1 / n, n = 1, 2, 4, ... The target is the mean of two steps of half the length
  by the model's own EMA (`ditmoe.diffusion.few_steps`). The halves of the shortest step use velocities.

Given parts of a sample do not move: a step has zero length there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.diffusion import HORIZON, FlowMatching, Process
from ditmoe.diffusion.few_steps import Embeds
from ditmoe.modality import Tokens
from ditmoe.nn import Layout
from ditmoe.outside import check_number
from ditmoe.training.batch import Batch

FURTHER = 4
"""Uniform numbers per sample: its kind, the length of its step, which step, and w."""
Predict = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
"""A model's output for rows of x, at times, under conditions."""


@dataclass(frozen=True)
class Distillation:
    """Distillation options and the identity of the teacher.

    Attributes:
        step: of the teacher's checkpoint.
        fingerprint: of its EMA weights.
        share: of the samples that learn a step of positive length, if the model is a flow map.
        interval: times at which the teacher's guidance is on.
    """

    step: int
    fingerprint: str
    share: float = 0.25
    interval: Sequence[float] = (0.0, 1000.0)

    def __post_init__(self) -> None:
        check_number("distillation.share", self.share, 0, 1)


class Teaching:
    """Computes a student's inputs and targets for a batch.

    Args:
        teacher: the trained model; None: steps of zero length learn from the data, as in ordinary training, without
            guidance.
        student: the student's step conditioning.
        world: number of processes, all of which call the models equally often.

    Raises:
        ValueError: for mean velocities of a process without velocities, or guidance without a teacher.
    """

    def __init__(
        self,
        options: Distillation,
        teacher: nn.Module | None,
        student: Embeds,
        process: Process,
        tokens: Tokens,
        world: int = 1,
    ) -> None:
        if student.most_steps is not None and not isinstance(process, FlowMatching):
            raise ValueError(
                f"flow_map must be null for process {type(process).__name__}: only flow_matching has velocities to "
                f"average; of this process, only guidance can be distilled"
            )
        if teacher is None and student.weights is not None:
            raise ValueError("guidance can only be distilled from a teacher")
        self.options, self.teacher, self.process, self.tokens = options, teacher, process, tokens
        self.most_steps, self.weights, self.world = student.most_steps, student.weights, world
        self.share = 0.0 if self.most_steps is None else options.share

    @torch.no_grad()
    def __call__(self, batch: Batch, average: nn.Module, predict: Predict) -> tuple[Batch, Tensor, Tensor]:
        """Return the batch with new times and step conditioning, its noisy samples, and their targets.

        Args:
            batch: with `FURTHER` numbers per sample.
            average: the student's EMA.
            predict: calls a model on this batch, or, if samples have a batch axis, on some of them.
        """
        view = self._view(batch)
        step = {"guidance": view.weight}
        if self.most_steps is not None:
            step["span"] = view.length(view.ends[0], view.ends[2])
        told = replace(batch, t=view.t, each=view.each(view.t), asked=batch.asked.stepping(**step))
        return told, view.x, self._targets(view, average, predict)

    def _view(self, batch: Batch) -> "View":
        """The batch at its new times."""
        assert batch.further is not None
        kind, level, which, weight = batch.further.unbind(1)
        layout = batch.layout
        if layout is None:
            tokens: Tensor | int = math.prod(self.tokens.grid(batch.x0))
        else:
            tokens = torch.tensor(layout.lengths, device=batch.t.device)

        def beside(values: Tensor) -> Tensor:
            """Expand one value per sample to the shape of the times."""
            if layout is not None:
                return layout.beside_times(values[:, None], batch.t.shape)[..., 0]
            return values if batch.t.ndim == 1 else values[:, None].expand_as(batch.t)

        long, finest = kind < self.share, torch.ones_like(kind, dtype=torch.bool)
        ends = torch.stack([kind, kind, kind])  # placeholder: no steps
        if self.most_steps is not None:
            levels = self.most_steps.bit_length()
            level = (level * levels).floor()
            num, finest = 2**level, level == levels - 1
            first = (which * num).floor()
            ends = HORIZON * torch.stack([first + 1, first + 0.5, first]) / num
            ends = self.process.shifted(ends, tokens)
        high, middle, low = map(beside, ends)
        moves = beside(long.float()).bool()
        if batch.known is not None:
            moves = moves & ~batch.known
        t = torch.where(moves, high, batch.t)
        x = self.process.corrupt(batch.x0, batch.noise, self._each(t, batch.x0, layout))
        if self.weights is not None:
            lowest, highest = self.weights
            weight = lowest + (highest - lowest) * weight
        return View(
            x=x,
            x0=batch.x0,
            noise=batch.noise,
            t=t,
            ends=(high, middle, low),
            moves=moves,
            finest=beside(finest.float()).bool(),
            long=long,
            beside_weight=beside(weight),
            asked=batch.asked,
            weight=None if self.weights is None else weight,
            shaped=self._each,
            layout=layout,
        )

    def _each(self, t: Tensor, x: Tensor, layout: Layout | None) -> Tensor:
        """Reshape values in the shape of the times to broadcast to samples."""
        return self.tokens.sample_times(t, x) if layout is None else self.tokens.sample_times(t, x, layout)

    def _targets(self, view: "View", average: nn.Module, predict: Predict) -> Tensor:
        def velocity(some: View) -> Tensor:
            return self._velocity(some, predict)

        def mean(some: View) -> Tensor:
            return self._mean(some, average, predict)

        if not self.share:
            return velocity(view)
        if view.layout is not None:  # a packed row cannot be split
            moves = view.each(view.moves.float()).bool()
            return torch.where(moves, mean(view), velocity(view))
        target = torch.empty_like(view.x)
        for which, answer in ((~view.long, velocity), (view.long, mean)):
            rows = which.nonzero()[:, 0]
            if len(rows) or self.world > 1:  # a process without any joins the collectives of the others
                some = rows if len(rows) else rows.new_zeros(1)
                target[rows] = answer(view.take(some))[: len(rows)]
        return target

    def _velocity(self, view: "View", predict: Predict) -> Tensor:
        """The teacher's guided velocity, as a network output."""
        if self.teacher is None:
            return self.process.target(view.x0, view.noise, view.each(view.t))
        shown = predict(self.teacher, view.x, view.t, view.asked)
        if view.weight is None:
            return shown
        nothing = predict(self.teacher, view.x, view.t, view.asked.nothing)
        start, end = self.options.interval
        inside = (view.t >= start) & (view.t <= end)
        return torch.lerp(nothing, shown, view.each(torch.where(inside, view.beside_weight, 1.0)))

    def _mean(self, view: "View", average: nn.Module, predict: Predict) -> Tensor:
        """The mean velocity over two steps of half the length, as a network output."""
        assert isinstance(self.process, FlowMatching)
        high, middle, low = view.ends
        x = view.x
        for start, end in ((high, middle), (middle, low)):
            t, length = torch.where(view.moves, start, view.t), view.length(start, end)
            span = torch.where(view.finest, 0.0, length)
            output = predict(average, x, t, view.asked.stepping(span=span, guidance=view.weight))
            x = x - view.each(length) / HORIZON * self.process.to_scheduler_output(output, x, view.each(t))
        whole = torch.where(view.moves, high - low, HORIZON)
        mean = (view.x - x) / view.each(whole) * HORIZON
        return self.process.from_velocity(mean, view.x, view.each(view.t))


@dataclass(frozen=True)
class View:
    """Samples of a batch at their training times; attributes have the shape of the times unless stated otherwise.

    Attributes:
        x, x0, noise: rows.
        ends: start, middle and end of each sample's possible step.
        moves: mask of the places that take it.
        finest: mask of those whose half steps are too short for the model's embedding.
        long: (B,) mask of the samples that take it.
        weight, beside_weight: guidance scales, (B,) and in the shape of the times.
        shaped: reshapes values in the shape of the times to broadcast to samples.
    """

    x: Float[Tensor, "..."]
    x0: Float[Tensor, "..."]
    noise: Float[Tensor, "..."]
    t: Float[Tensor, "*t"]
    ends: tuple[Float[Tensor, "*t"], Float[Tensor, "*t"], Float[Tensor, "*t"]]
    moves: Bool[Tensor, "*t"]
    finest: Bool[Tensor, "*t"]
    long: Bool[Tensor, " B"]
    beside_weight: Float[Tensor, "*t"]
    asked: Condition
    weight: Float[Tensor, " B"] | None
    shaped: Callable[[Tensor, Tensor, Layout | None], Tensor]
    layout: Layout | None

    def each(self, values: Tensor) -> Tensor:
        """Reshape values in the shape of the times to broadcast to samples."""
        return self.shaped(values, self.x, self.layout)

    def length(self, start: Tensor, end: Tensor) -> Tensor:
        """The span between two times, zero for places that do not move."""
        return torch.where(self.moves, start - end, 0.0)

    def take(self, rows: Tensor) -> "View":
        """Select samples along the batch axis."""
        names = ("x", "x0", "noise", "t", "moves", "finest", "long", "beside_weight")
        own = {name: getattr(self, name)[rows] for name in names}
        high, middle, low = (end[rows] for end in self.ends)
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, **own, ends=(high, middle, low), asked=self.asked.take(rows), weight=weight)
