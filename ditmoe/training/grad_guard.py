"""Gradient clipping, and skipping of steps with non-finite values."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.distributed import local
from ditmoe.parallel import gradient_norm
from ditmoe.training.options import Clipping

WARMUP = 25
"""Warm-up steps that estimate the first mean and standard deviation of the norm (ZClip, section 3)."""
MOMENTUM = 0.97


class Guard:
    """Clips gradients and decides which steps to skip, on the device, without a synchronisation per step.

    A step with a non-finite loss or gradient norm leaves weights and optimiser unchanged, and is counted; `settle`
    reads the counts. With `zclip`, a norm g more than z0 = `zclip` standard deviations above its moving mean is
    clipped, the more the larger it is (ZClip, arXiv 2504.02507, reciprocal clipping):

        z = (g - mean) / deviation > z0:    g* = mean + (z0² / z) deviation
        mean <- a mean + (1 - a) g*,    variance <- a variance + (1 - a) (g* - mean)²,    a = 0.97

    Args:
        options: largest norm, z0, and the number of consecutive skipped steps that ends a run.
        norm: computes the gradient norm of parameters.
    """

    def __init__(
        self,
        options: Clipping,
        device: torch.device,
        norm: Callable[[list[nn.Parameter]], Tensor] = gradient_norm,
    ) -> None:
        self.clip, self.zclip, self.patience = options.clip, options.zclip, options.patience
        self.norm = norm
        zeros = torch.zeros((), dtype=torch.float64, device=device)
        self.numbers = {name: zeros.clone() for name in ("seen", "mean", "variance", "spikes")}
        self.pending: list[tuple[int, Tensor]] = []
        self.skipped = self.streak = 0

    @torch.no_grad()
    def clip_gradients(
        self, parameters: Iterable[nn.Parameter], loss: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], Bool[Tensor, ""]]:
        """Clip in place; returns the norm before clipping, and whether all is finite."""
        learning = [p for p in parameters if p.grad is not None]
        gradients, norm = [local(p.grad) for p in learning], self.norm(learning)
        good = loss.isfinite() & norm.isfinite()
        limit = self._limit(norm.double(), good).clamp_max(self.clip).to(norm.dtype)
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp_max(1.0))
        return norm, good

    def step(self, optimizer: torch.optim.Optimizer, good: Bool[Tensor, ""]) -> None:
        """Step the optimiser if `good`. Fused optimisers read the flag on the device; others synchronise."""
        fused: Any = optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # the interface that GradScaler uses
            fused.grad_scale, fused.found_inf = None, (~good).float()
            optimizer.step()
            del fused.grad_scale, fused.found_inf
        elif good:
            optimizer.step()

    def note(self, step: int, good: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Record a step's outcome, without reading it from the device."""
        self.pending.append((step, torch.stack([good.double(), loss.double(), norm.double()])))

    @property
    def full(self) -> bool:
        """Whether there are so many unread outcomes that the run might have to end."""
        return len(self.pending) >= self.patience

    @property
    def exhausted(self) -> bool:
        """Whether `patience` consecutive steps were skipped, among those read."""
        return self.streak >= self.patience

    def settle(self) -> list[dict[str, Any]]:
        """Read the recorded outcomes; returns step, loss and gradient norm of the skipped ones."""
        if not self.pending:
            return []
        steps, values = zip(*self.pending, strict=True)
        self.pending, found = [], []
        for step, (good, loss, norm) in zip(steps, torch.stack(values).tolist(), strict=True):
            if good:
                self.streak = self.streak if self.exhausted else 0
                continue
            self.skipped, self.streak = self.skipped + 1, self.streak + 1
            found.append({"step": step, "loss": f"{loss:g}", "gradient_norm": f"{norm:g}"})
        return found

    def state(self) -> dict[str, Any]:
        """For the checkpoint; to be called after `settle`."""
        return {"numbers": self.numbers, "skipped": self.skipped, "streak": self.streak}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state; a run that ended for too many skipped steps may skip as many again.

        Raises:
            ValueError: if one of its numbers is several.
        """
        for name, value in self.numbers.items():
            if (stored := state["numbers"][name]).shape:
                raise ValueError(
                    f"guard/numbers/{name} must be one number, got the shape {tuple(stored.shape)}"
                )
            value.copy_(stored)
        self.skipped = state["skipped"]
        self.streak = state["streak"] if state["streak"] < self.patience else 0

    def _limit(self, norm: Float[Tensor, ""], good: Bool[Tensor, ""]) -> Float[Tensor, ""]:
        if self.zclip is None:
            return torch.full_like(norm, torch.inf)
        seen, mean, variance, spikes = self.numbers.values()
        deviation = variance.sqrt().clamp_min(1e-12)
        z = (norm - mean) / deviation
        spike = (seen >= WARMUP) & (z > self.zclip)
        limit = torch.where(spike, mean + self.zclip**2 / z * deviation, torch.inf)
        taken = torch.minimum(norm, limit)
        rate = torch.where(seen < WARMUP, 1 / (seen + 1), 1 - MOMENTUM)
        new = torch.lerp(mean, taken, rate)
        # Welford's variance in the warm-up, which uses the deviation from the old mean as well
        distance = torch.where(seen < WARMUP, (taken - mean) * (taken - new), (taken - new).square())
        for number, value in zip(
            self.numbers.values(),
            (seen + 1, new, torch.lerp(variance, distance, rate), spikes + spike),
            strict=True,
        ):
            number.copy_(torch.where(good, value, number))
        return limit


@contextmanager
def keeping(modules: Sequence[nn.Module], good: Bool[Tensor, ""]) -> Iterator[None]:
    """Within the context, changes to buffers of these modules are kept only if `good`."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, earlier in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(good, buffer, earlier))
