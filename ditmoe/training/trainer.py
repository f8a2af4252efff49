"""The training loop: one that can be stopped anywhere and goes on where it was."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ditmoe import checkpoint
from ditmoe.checkpoint import Saver
from ditmoe.diffusion import Process, torch_generator
from ditmoe.distributed import launch, say
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.moe import Routing
from ditmoe.outside import check_number
from ditmoe.parallel import Mesh
from ditmoe.training.batches import Batch, Batches
from ditmoe.training.ema import EMA
from ditmoe.training.grad_guard import Guard, keeping
from ditmoe.training.meter import Meter
from ditmoe.training.precision import choose_precision, repeat_exactly
from ditmoe.training.router_stats import tally
from ditmoe.training.run_log import Recorder
from ditmoe.training.signals import Stop


class Trainer:
    """Trains a model on a modality.

    Everything random is drawn at the address (seed, step), so the state of a run is its weights, optimiser
    and step; a resumed run equals an uninterrupted one bit for bit on a CPU.

    Args:
        folder: where the checkpoint, the log and the pictures go.
        carried: what the checkpoint carries besides the state: "config" and "facts".
        preview: draws a picture with the averaged weights into a file; called every `preview_every` steps.
        mesh: how the model lies on many devices; None is one process. Every rank of it has a trainer.
        steps: optimiser steps in all.
        batch_size: samples per forward pass, of all ranks together; `accumulate` passes make a step.
        warmup: steps of linear warm-up; then the rate follows `decay` ("constant", "linear", "cosine").
        clip: largest gradient norm.
        zclip: norms of so many deviations above their moving mean are cut to less, see `Guard`; None is off.
        patience: steps in a row that are skipped, because a number is not finite, before the run stops.
        label_dropout: share of samples whose label becomes the null class, for guidance.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the hardware multiplies it.
        deterministic: do the same twice on a GPU too, see `repeat_exactly`.
        compile: use torch.compile (needs a C++ compiler on a CPU).
        recompute: keep no activations within blocks, compute them again in the backward pass.
        log_every, save_every, preview_every: in steps; 0 is never.
        keep_last, keep_every: checkpoints that are kept: the last ones, and those at multiples of so many steps.
        background_save: train on while a checkpoint is written, from a copy in the host's memory.
    """

    def __init__(
        self,
        model: DiTMoE,
        process: Process,
        modality: Modality,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        folder: Path,
        carried: dict[str, Any],
        preview: Callable[[nn.Module, Path], None],
        mesh: Mesh | None = None,
        *,
        seed: int,
        steps: int,
        batch_size: int,
        accumulate: int = 1,
        warmup: int = 100,
        decay: str = "cosine",
        clip: float = 1.0,
        zclip: float | None = None,
        patience: int = 10,
        ema_decay: float = 0.999,
        label_dropout: float = 0.1,
        precision: str = "auto",
        deterministic: bool = False,
        compile: bool = False,
        recompute: bool = False,
        log_every: int = 50,
        save_every: int = 500,
        preview_every: int = 1000,
        keep_last: int = 2,
        keep_every: int = 0,
        background_save: bool = False,
    ) -> None:
        counts = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate, "keep_last": keep_last}
        for name, value in counts.items():
            check_number(f"trainer.{name}", value, 1, whole=True)
        counts = {"warmup": warmup, "log_every": log_every, "save_every": save_every}
        for name, value in (counts | {"preview_every": preview_every, "keep_every": keep_every}).items():
            check_number(f"trainer.{name}", value, 0, whole=True)
        if decay not in ("constant", "linear", "cosine"):
            raise ValueError(f"trainer.decay must be constant, linear or cosine, got {decay!r}")
        check_number("trainer.label_dropout", label_dropout, 0, 1)
        if deterministic:
            repeat_exactly()
        self.mesh = mesh or Mesh()
        self.batches = Batches(modality, model.tokens, process, self.mesh, seed, batch_size, label_dropout)
        self.ranks = self.mesh.ranks
        self.device = self.mesh.device or next(model.parameters()).device
        self.autocast_dtype = choose_precision(precision, self.device)
        self.model, self.process, self.modality = model, process, modality
        self.ema = EMA(model, ema_decay)
        if recompute:
            recompute_blocks(model)
        self.forward = self.mesh.compile(model) if compile else model
        self.mesh.spread(model, self.autocast_dtype)
        self.mesh.spread(self.ema.model)
        self.optimizer = optimizer(self.mesh.groups(model))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.folder, self.carried, self.preview = folder, carried, preview
        self.seed, self.steps, self.batch_size, self.accumulate = seed, steps, batch_size, accumulate
        self.warmup, self.decay = warmup, decay
        self.guard = Guard(clip, zclip, patience, self.device, self.mesh.gradient_norm)
        self.log_every, self.save_every, self.preview_every = log_every, save_every, preview_every
        self.saver = Saver(folder, self.ranks, background_save, keep_last, keep_every)
        self.meter = Meter(steps, self.ranks)
        self.step = 0
        self.stop = Stop(self.ranks)
        self._alone = False

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds, by part; the optimiser's state has the parameters' names."""
        # loads DTensor and SymPy, a second that only who trains should wait for
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "meter": self.meter.state(),
            "guard": self.guard.state(),
            **self.carried,
        }

    def save(self) -> None:
        """Write a checkpoint, and remove those that are not to be kept.

        Raises:
            OSError: if it cannot be written; the earlier ones are as they were.
        """
        if self.saver.begun < self.step:
            self.saver.save(self.step, self.state())
        else:  # the last one may have been cut off after its end
            self.saver.prune()

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint, within `exclusive_lock`."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        checkpoint.fill(found, "model", self.model.state_dict())
        checkpoint.fill(found, "ema", self.ema.model.state_dict())
        own = get_optimizer_state_dict(self.model, self.optimizer)
        checkpoint.fill(found, "optimizer", own)
        set_optimizer_state_dict(self.model, self.optimizer, own)
        self.meter.load_state(found.part("meter"))
        self.guard.load_state(found.part("guard"))
        self.step = self.saver.saved = self.saver.begun = found.plain["step"]
        if self.mesh.rank == 0:
            checkpoint.restate(found, config=self.carried["config"])

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Have the run's folder to oneself; nothing is read of it to go on from, or written into it, before.

        Raises:
            ValueError: on all ranks, if another process is training in it.
        """
        if self._alone:
            yield
            return
        with ExitStack() as stack:
            refused = None
            try:
                if self.mesh.rank == 0:
                    stack.enter_context(checkpoint.exclusive_lock(self.folder))
            except (ValueError, OSError) as error:
                refused = error
            if (told := self.ranks.first_error(refused)) is not None:
                raise refused or ValueError(told)
            self._alone = True
            stack.callback(setattr, self, "_alone", False)
            yield

    def run(self) -> bool:
        """Train up to `steps`; False if Ctrl-C or SIGTERM asked to stop first. Saves in both cases."""
        with (
            self.stop.listening(),
            self.exclusive_lock(),
            Recorder(self.folder, self.step) if self.mesh.rank == 0 else nullcontext() as recorder,
        ):
            while self.step < self.steps and not self.stop.agreed():
                numbers = self._train_step()
                if numbers is None:
                    break
                self.step += 1
                self.meter.add(numbers)
                logs = due(self.log_every, self.step) or self.step == self.steps
                saves = due(self.save_every, self.step) and self.step < self.steps
                failed = (logs or saves or self.guard.full) and self._settle()
                if logs or failed:
                    record = self.meter.record(self.step, self.model, self.guard)
                    if recorder:
                        recorder.write(record)
                    say(self.meter.line(record))
                if failed:
                    break
                if saves:
                    self._save_if_possible(recorder)
                if due(self.preview_every, self.step):
                    self.meter.pause(self._preview)
            self._settle()
            self._save(recorder)
            self.saver.finish()
        if self.guard.exhausted:
            raise ValueError(
                f"{self.guard.streak} steps in a row had a loss or a gradient that is not finite; the state of step "
                f"{self.step} is saved: lower optimizer.lr, use trainer.precision=fp32, or raise trainer.patience"
            )
        return not self.stop.requested

    def _settle(self) -> bool:
        """Report the steps that were skipped; whether they are so many in a row that the run must end."""
        for entry in self.guard.settle():
            batches = [entry["step"] * self.accumulate + micro for micro in range(self.accumulate)]
            names = [n for b in batches for n in self.modality.batch_names(self.batch_size, self.seed, b)]
            self.meter.skipped.append({**entry, "seed": self.seed, "batches": batches, "samples": names})
            launch.tell(
                f"step {entry['step']} skipped: loss {entry['loss']}, gradient norm {entry['gradient_norm']} "
                f"(seed {self.seed}, batches {batches}{''.join(f' {name}' for name in names[:8])})"
            )
        return self.guard.exhausted

    def _save(self, recorder: Recorder | None) -> None:
        self.ranks.all_or_raise(lambda: recorder.flush(sync=True) if recorder else None)
        self.save()

    def _save_if_possible(self, recorder: Recorder | None) -> None:
        try:
            self._save(recorder)
        except OSError as error:
            launch.tell(
                f"step {self.step} was not saved: {error}; training goes on, step {self.saver.saved} is safe"
            )

    def _train_step(self) -> dict[str, Any] | None:
        """One step; None if a stop was asked for before all its passes were through, which leaves all as it was."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.rate(self.step)
        passes, tallies, samples = [], [], 0
        values: list[Tensor] = []
        for micro in range(self.accumulate):
            if micro and self.stop.agreed():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            batch = self.batches(self.step * self.accumulate + micro).to(self.device)
            objective, losses, routings = self.losses(batch)
            self.mesh.sum_copies(self.model, last=micro == self.accumulate - 1)
            (objective / self.accumulate).backward()
            values.append(torch.stack(list(losses.values())))
            passes.append([routing.batch_stats for routing in routings])
            tallies.append(tally(routings))
            samples += batch.size
        numbers = dict(zip(losses, self.ranks.mean(torch.stack(values).mean(0)), strict=True))
        norm, good = self.guard.clip_gradients(self.model.parameters(), numbers["loss"])
        self.guard.note(self.step, good, numbers["loss"], norm)
        self.guard.step(self.optimizer, good)
        self.optimizer.zero_grad(set_to_none=True)
        with keeping(self.model.routers, good):
            self.model.update_routers(passes)
        self.ema.update(self.model, self.step)
        return {
            "good": good,
            "losses": numbers,
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "routings": routings,
            "samples": samples,
            "tally": self.ranks.total(torch.stack(tallies).sum(0)),
        }

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], list[Routing]]:
        """What is optimised on one batch, its parts by name, and the routings.

        The objective is the mean squared error plus the routers' own losses times their coefficients, summed
        over the layers as DiT-MoE does; their parts are means over the layers, without coefficients.
        """
        noised = batch.x0, batch.noise, batch.each
        x_t, target = (batch.shaped(of(*noised)) for of in (self.process.corrupt, self.process.target))
        torch.manual_seed(
            torch_generator("router", self.seed, batch.index).initial_seed()
        )  # for routers with noise
        sizes = () if batch.layout is None else (batch.layout,)
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output, routings = self.forward(x_t, batch.t, batch.y, *sizes)
        objective = batch.mean_square(output.float() - target)
        losses = {"loss": objective.detach()}
        for name in dict.fromkeys(name for routing in routings for name in routing.losses):
            parts = [routing.losses[name] for routing in routings if name in routing.losses]
            objective = objective + sum(part.coefficient * part.value for part in parts)
            losses[name] = torch.stack([part.value.detach().float() for part in parts]).mean()
        for router, routing in zip(self.model.routers, routings, strict=True):
            if routing.aux_prediction is not None:
                error = batch.mean_square(routing.aux_prediction.float() - target)
                objective = objective + router.aux_coefficient * error
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
        file = self.folder / "progress" / f"step-{self.step:07d}.png"
        with self.stop.breaking():
            try:
                self.preview(self.ema.model, file)
            except (OSError, ValueError) as error:  # samples of an untrained model may be no numbers
                launch.tell(f"{file} was not drawn: {error}")


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every > 0 and step % every == 0


def recompute_blocks(model: DiTMoE) -> None:
    """Let blocks keep their inputs alone, and compute what is within them again in the backward pass."""
    for block in model.blocks:
        block.forward = partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
