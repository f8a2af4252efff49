"""What a person sees of a training run: averages between two lines of the log, and the time that is left."""

import time
from collections.abc import Callable
from typing import Any

import torch


class Meter:
    """Averages over the steps since the last record, and a rate that forgets slowly.

    Args:
        steps: of the whole run.
        samples_per_step: what a step takes in.
    """

    def __init__(self, steps: int, samples_per_step: int) -> None:
        self.steps, self.samples_per_step = steps, samples_per_step
        self.sums: dict[str, float] = {}
        self.num = self.timed = 0
        self.latest: dict[str, Any] = {}
        self.since = time.perf_counter()
        self.pauses = 0.0
        self.seconds_per_step: float | None = None

    def state(self) -> dict[str, Any]:
        """What makes the next record, all but the clock."""
        return {"sums": self.sums, "num": self.num}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.sums, self.num = state["sums"], state["num"]

    def add(self, numbers: dict[str, Any]) -> None:
        """Take in one step."""
        for name, value in numbers["losses"].items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num += 1
        self.timed += 1
        self.latest = numbers

    def pause(self, work: Callable[[], None]) -> None:
        """Do something that is no training step, outside the clock."""
        start = time.perf_counter()
        work()
        self.pauses += time.perf_counter() - start

    def record(self, step: int) -> dict[str, float]:
        """Numbers since the last record, by name; starts anew."""
        now = time.perf_counter()
        seconds = (now - self.since - self.pauses) / self.timed
        smooth = self.seconds_per_step
        self.seconds_per_step = seconds if smooth is None else 0.7 * smooth + 0.3 * seconds
        record = {
            "step": step,
            **{name: total / self.num for name, total in self.sums.items()},
            "gradient_norm": float(self.latest["gradient_norm"]),
            "learning_rate": self.latest["learning_rate"],
            "samples_per_second": self.samples_per_step / seconds,
        }
        for layer, routing in enumerate(self.latest["routings"]):
            counts = routing.counts
            dropped = torch.zeros_like(counts[0]) if routing.dropped is None else routing.dropped
            *load, lost, unrouted = torch.cat(
                [routing.load, torch.stack([dropped / (counts.sum() + dropped), routing.unrouted])]
            ).tolist()
            for expert, share in enumerate(load):
                record[f"load/layer{layer:02d}/expert{expert:02d}"] = share
            record[f"experts_per_token/layer{layer:02d}"] = len(routing.expert) / len(routing.scores)
            record[f"unrouted/layer{layer:02d}"] = unrouted
            if routing.dropped is not None:
                record[f"dropped/layer{layer:02d}"] = lost
        self.sums = {}
        self.num, self.timed, self.since, self.pauses = 0, 0, now, 0.0
        return record

    def line(self, record: dict[str, float]) -> str:
        """One line for the screen; the load is the least and the most used expert's, 1 being an even share."""

        def share(kind: str) -> list[float]:
            return [value for name, value in record.items() if name.startswith(f"{kind}/")]

        step = int(record["step"])
        left = (self.steps - step) * (self.seconds_per_step or 0)
        shares = share("load")
        experts = len(self.latest["routings"][0].counts) if shares else 0
        own = [f"  {name} {record[name]:.3f}" for name in self.latest["losses"] if name != "loss"]
        if shares:
            own.append(f"  load {min(shares) * experts:.2f}-{max(shares) * experts:.2f}")
        if dropped := share("dropped"):
            own.append(f"  dropped {sum(dropped) / len(dropped):.1%}")
        return (
            f"step {step:>6}/{self.steps}  loss {record['loss']:.4f}{''.join(own)}  "
            f"{record['samples_per_second']:.0f} samples/s  {clock(left)} left"
        )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as a person writes them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
