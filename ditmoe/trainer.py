"""The training loop: one that can be stopped anywhere and goes on where it was."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditmoe import checkpoint
from ditmoe.ema import EMA
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.moe import Routing
from ditmoe.process import Process
from ditmoe.progress import Meter
from ditmoe.seeding import torch_generator


class Trainer:
    """Trains a model on a modality.

    Everything random is drawn at the address (seed, step), so the state of a run is its weights, optimiser
    and step; a resumed run equals an uninterrupted one bit for bit on a CPU.

    Args:
        folder: where the checkpoint, the log and the pictures go.
        carried: what the checkpoint carries besides the state: "config" and "facts".
        preview: draws a picture with the averaged weights into a file; called every `preview_every` steps.
        steps: optimiser steps in all.
        batch_size: samples per forward pass; `accumulate` passes make a step.
        warmup: steps of linear warm-up; then the rate follows `decay` ("constant", "linear", "cosine").
        clip: largest gradient norm.
        label_dropout: share of samples whose label becomes the null class, for guidance.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the hardware multiplies it.
        compile: use torch.compile (needs a C++ compiler on a CPU).
        log_every, save_every, preview_every: in steps; 0 is never.
    """

    def __init__(
        self,
        model: DiTMoE,
        process: Process,
        modality: Modality,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        folder: Path,
        carried: dict[str, Any],
        preview: Callable[[nn.Module, Path], None],
        *,
        seed: int,
        steps: int,
        batch_size: int,
        accumulate: int = 1,
        warmup: int = 100,
        decay: str = "cosine",
        clip: float = 1.0,
        ema_decay: float = 0.999,
        label_dropout: float = 0.1,
        precision: str = "auto",
        compile: bool = False,
        log_every: int = 50,
        save_every: int = 500,
        preview_every: int = 1000,
    ) -> None:
        for name, value in {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}.items():
            if value < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {value}")
        if decay not in ("constant", "linear", "cosine"):
            raise ValueError(f"trainer.decay must be constant, linear or cosine, got {decay!r}")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"trainer.label_dropout must lie in [0, 1], got {label_dropout}")
        self.device = next(model.parameters()).device
        self.model, self.process, self.modality = model, process, modality
        self.optimizer = optimizer(model)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = EMA(model, ema_decay)
        self.forward = torch.compile(model) if compile else model
        self.folder, self.carried, self.preview = folder, carried, preview
        self.seed, self.steps, self.batch_size, self.accumulate = seed, steps, batch_size, accumulate
        self.warmup, self.decay, self.clip = warmup, decay, clip
        self.label_dropout = label_dropout
        self.autocast_dtype = choose_precision(precision, self.device)
        self.log_every, self.save_every, self.preview_every = log_every, save_every, preview_every
        self.step = 0
        self.stop_requested = False

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.folder / checkpoint.NAME

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(self.file, {**state, **self.carried})

    def resume(self, content: dict[str, Any]) -> None:
        """Go on from the content of a checkpoint."""
        self.model.load_state_dict(content["model"])
        self.ema.model.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]

    def run(self) -> bool:
        """Train up to `steps`; False if Ctrl-C or SIGTERM asked to stop first. Saves in both cases."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        meter = Meter(self.steps, self.batch_size * self.accumulate)
        with (
            self._stoppable(),
            SummaryWriter(str(self.folder), purge_step=self.step) as board,
            open(self.folder / "log.jsonl", "a") as log,
        ):
            while self.step < self.steps and not self.stop_requested:
                numbers = self._train_step()
                self.step += 1
                meter.add(numbers)
                if due(self.log_every, self.step) or self.step == self.steps:
                    record = meter.record(self.step)
                    print(meter.line(record), flush=True)
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                    for name, value in record.items():
                        board.add_scalar(name, value, self.step)
                if due(self.save_every, self.step) and self.step < self.steps:
                    self.save()
                if due(self.preview_every, self.step):
                    meter.pause(self._preview)
            self.save()
        return not self.stop_requested

    def _train_step(self) -> dict[str, Any]:
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.rate(self.step)
        passes = []
        values: list[Tensor] = []
        for micro in range(self.accumulate):
            objective, losses, routings = self.losses(self.step * self.accumulate + micro)
            (objective / self.accumulate).backward()
            values.append(torch.stack(list(losses.values())))
            passes.append([routing.observed for routing in routings])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        numbers = dict(zip(losses, torch.stack(values).mean(0).tolist(), strict=True))
        if not (math.isfinite(loss := numbers["loss"]) and bool(norm.isfinite())):
            raise ValueError(
                f"the loss is {loss}, its gradient's norm {float(norm)} at step {self.step}; "
                f"{self.file} holds the last good state: lower optimizer.lr, or use trainer.precision=fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_routers(passes)
        self.ema.update(self.model, self.step)
        return {
            "losses": numbers,
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "routings": routings,
        }

    def losses(self, index: int) -> tuple[Tensor, dict[str, Tensor], list[Routing]]:
        """What is optimised on one batch, its parts by name, and the routings.

        The objective is the mean squared error plus the routers' own losses times their coefficients, summed
        over the layers as DiT-MoE does; their parts are means over the layers, without coefficients.
        """
        x0, y = self.modality.batch(self.batch_size, self.seed, index)
        generator = torch_generator("train", self.seed, index)
        noise = torch.randn(x0.shape, generator=generator)
        t = self.process.draw_times(len(x0), generator)
        dropped = torch.rand(len(y), generator=generator) < self.label_dropout
        y = torch.where(dropped, len(self.modality.classes), y)
        x0, y, noise, t = (tensor.to(self.device, non_blocking=True) for tensor in (x0, y, noise, t))
        x_t = self.process.corrupt(x0, noise, t)
        torch.manual_seed(
            torch_generator("router", self.seed, index).initial_seed()
        )  # for routers with noise
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output, routings = self.forward(x_t, t, y)
        target = self.process.target(x0, noise, t)
        objective = (output.float() - target).square().mean()
        losses = {"loss": objective.detach()}
        for name in dict.fromkeys(name for routing in routings for name in routing.losses):
            parts = [routing.losses[name] for routing in routings if name in routing.losses]
            objective = objective + sum(part.coefficient * part.value for part in parts)
            losses[name] = torch.stack([part.value.detach().float() for part in parts]).mean()
        for router, routing in zip(self.model.routers, routings, strict=True):
            if routing.draft is not None:
                error = (routing.draft.float() - target).square().mean()
                objective = objective + router.draft_coefficient * error
        return objective, losses, routings

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[
            self.decay
        ]

    def _preview(self) -> None:
        self.preview(self.ema.model, self.folder / "progress" / f"step-{self.step:07d}.png")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the step at hand; a second Ctrl-C ends it at once."""

        def request(number: int, frame: Any) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            print("\nstopping after this step (once more to stop at once)", flush=True)
            self.stop_requested = True

        previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every > 0 and step % every == 0


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, None for plain float32."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"trainer.precision must be auto, fp32 or bf16, got {precision!r}")
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        gains = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and gains) else None
