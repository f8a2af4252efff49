"""Progress of a training run: averages between two log records, and the remaining time."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditmoe.distributed import ALONE, Ranks, launch
from ditmoe.model import DiTMoE
from ditmoe.moe import MoE
from ditmoe.outside import printable
from ditmoe.training.grad_guard import Guard
from ditmoe.training.loss_by_time import means_by_time
from ditmoe.training.router_stats import collapsed, health


class Meter:
    """Averages over the steps since the last record, and a slowly decaying average of the speed.

    Args:
        steps: of the whole run.
        ranks: all of which must request each record.
    """

    def __init__(self, steps: int, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.steps = steps
        self.sums: dict[str, Tensor] = {}
        self.skipped: list[dict[str, Any]] = []
        self.warned = False
        self.latest: dict[str, Any] = {}
        self.since = time.perf_counter()
        self.pauses, self.timed, self.samples = 0.0, 0, 0
        self.seconds_per_step: float | None = None

    def state(self) -> dict[str, Any]:
        """The state of the next record, except for the clock."""
        return {"sums": self.sums, "skipped": self.skipped, "warned": self.warned}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state; the shapes of its sums are checked with the first step."""
        if strange := [name for name, value in state["sums"].items() if not isinstance(value, Tensor)]:
            raise ValueError(f"meter/sums/{printable(strange[0])} must be a tensor")
        self.sums, self.skipped, self.warned = dict(state["sums"]), state["skipped"], state["warned"]

    @torch.no_grad()
    def add(self, numbers: dict[str, Any]) -> None:
        """Add one step, on its device; skipped steps do not change the averages."""
        good = numbers["good"]
        kept = {name: numbers[name] for name in ("tally", "by_time")}
        values = {"steps": torch.ones_like(good), **kept, **numbers["losses"]}
        for name, total in self.sums.items():
            if total.shape != (right := values.get(name, good).shape):
                raise ValueError(
                    f"meter/sums/{printable(name)} must have the shape {tuple(right)}, got {tuple(total.shape)} from "
                    "the checkpoint"
                )
        for name, value in values.items():
            value = torch.where(good, value.double(), 0)
            self.sums[name] = value + self.sums[name].to(value.device) if name in self.sums else value
        self.timed += 1
        self.samples += numbers["samples"]
        self.latest = numbers

    def pause(self, work: Callable[[], None]) -> None:
        """Do other work than training, with the clock stopped."""
        start = time.perf_counter()
        work()
        self.pauses += time.perf_counter() - start

    def record(self, step: int, model: DiTMoE, guard: Guard) -> dict[str, Any]:
        """Values since the last record, by name; resets them."""
        now = time.perf_counter()
        seconds = (now - self.since - self.pauses) / self.timed
        smooth = self.seconds_per_step
        self.seconds_per_step = seconds if smooth is None else 0.7 * smooth + 0.3 * seconds
        tally, by_time = self.sums.pop("tally").cpu(), self.sums.pop("by_time").cpu()
        counted, *sums = torch.stack([self.sums.pop("steps"), *self.sums.values()]).tolist()
        means = {
            name: total / counted if counted else None for name, total in zip(self.sums, sums, strict=True)
        }
        record = {
            "step": step,
            **means,
            **means_by_time(by_time),
            "gradient_norm": norm if math.isfinite(norm := float(self.latest["gradient_norm"])) else None,
            "learning_rate": self.latest["learning_rate"],
            "samples_per_second": self.samples / self.timed / seconds,
            "skipped": guard.skipped,
        }
        if guard.zclip is not None:
            record["spikes"] = int(guard.numbers["spikes"])
        if self.skipped:
            record["skipped_batches"] = self.skipped
        for layer, (*counts, lost) in enumerate(tally.tolist()):
            record |= self._layer(f"layer{layer:02d}", torch.tensor(counts), lost, model.mixtures[layer])
        self.sums, self.skipped = {}, []
        self.timed, self.samples, self.since, self.pauses = 0, 0, now, 0.0
        return record

    def _layer(self, name: str, counts: Tensor, lost: float, mixture: MoE) -> dict[str, float]:
        routing = self.latest["routings"][int(name[-2:])]
        numbers = health(counts, routing, mixture.router, mixture.experts)
        if not self.warned and collapsed(numbers, counts, mixture.router.active):
            self.warned = True
            launch.tell(
                f"warning: the routing of {name} has collapsed: {numbers['effective']:.1f} of {len(counts)} experts "
                f"do the work, {numbers['dead']:.0f} got no tokens since the last line; a larger router.balance= keeps "
                f"them in use"
            )
        load = counts / counts.sum().clamp_min(1)
        record = {f"load/{name}/expert{expert:02d}": share for expert, share in enumerate(load.tolist())}
        numbers["experts_per_token"] = int(routing.counts.sum()) / len(routing.scores)
        numbers["unrouted"] = float(routing.unrouted)
        if routing.dropped is not None:
            numbers["dropped"] = lost / max(1.0, lost + float(counts.sum()))
        own = torch.tensor(list(numbers.values()), dtype=torch.float64)
        values = self.ranks.mean(own, weight=len(routing.scores)).tolist()
        return record | {f"{key}/{name}": value for key, value in zip(numbers, values, strict=True)}

    def line(self, record: dict[str, Any]) -> str:
        """One line for the screen; loads are those of the least and most used expert, 1 being an even share."""

        def share(kind: str) -> list[float]:
            return [value for name, value in record.items() if name.startswith(f"{kind}/")]

        step = int(record["step"])
        left = (self.steps - step) * (self.seconds_per_step or 0)
        shares = share("load")
        experts = len(self.latest["routings"][0].counts) if shares else 0
        losses = [name for name in self.latest["losses"] if record[name] is not None]
        own = [f"  {name} {record[name]:.3f}" for name in losses if name != "loss"]
        if shares:
            own.append(f"  load {min(shares) * experts:.2f}-{max(shares) * experts:.2f}")
        if dropped := share("dropped"):
            own.append(f"  dropped {sum(dropped) / len(dropped):.1%}")
        if record["skipped"]:
            own.append(f"  skipped {record['skipped']}")
        loss = f"{record['loss']:.4f}" if losses else "-"
        return (
            f"step {step:>6}/{self.steps}  loss {loss}{''.join(own)}  "
            f"{record['samples_per_second']:.0f} samples/s  {clock(left)} left"
        )


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
