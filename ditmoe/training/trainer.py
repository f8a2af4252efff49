"""The training loop, which can be stopped and resumed at any step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditmoe import checkpoint
from ditmoe.checkpoint import Saver
from ditmoe.conditioning import Condition
from ditmoe.diffusion import Losses, Objective, Prediction, Process, torch_generator
from ditmoe.distributed import launch, say
from ditmoe.distributed.threads import share_cores
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.moe import Routing
from ditmoe.nn import Layout
from ditmoe.parallel import Mesh
from ditmoe.training.batch import Batch
from ditmoe.training.batches import Batches, GivenShares
from ditmoe.training.computing import choose_precision, keep_freed_memory, recompute_blocks, repeat_exactly
from ditmoe.training.distillation import FURTHER, Teaching
from ditmoe.training.ema import EMA
from ditmoe.training.grad_guard import Guard, keeping
from ditmoe.training.loss_by_time import sums_by_time
from ditmoe.training.meter import Meter
from ditmoe.training.options import Options
from ditmoe.training.parameter_groups import ParameterGroups
from ditmoe.training.read_ahead import ReadAhead, default_workers
from ditmoe.training.router_stats import tally
from ditmoe.training.run_log import Recorder
from ditmoe.training.run_state import FolderLock, RunState, not_finite
from ditmoe.training.signals import Stop


class Trainer:
    """Trains a model on a modality.

    Random numbers are seeded by (seed, step), so the state of a run is its weights, optimiser and step; a resumed run
    equals an uninterrupted one bit for bit on a CPU.

    Args:
        objective: the training objective.
        optimizer: makes one over groups of parameters.
        folder: of checkpoints, log and pictures.
        carried: content of checkpoints besides the state: "config", "facts" and "command".
        preview: samples a picture with the EMA weights into a file; called every `preview_every` steps. None: never.
        options: of the run, in groups.
        parameters: learning rates and weight decay by parameter; None: one group.
        mesh: the distribution over devices; None: one process. Every rank has a trainer.
        given: share of the samples with given parts, see `ditmoe.given`.
        teaching: distillation targets; None: the process's target.
    """

    def __init__(
        self,
        model: DiTMoE,
        process: Process,
        objective: Objective,
        modality: Modality,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        folder: Path,
        carried: dict[str, Any],
        preview: Callable[[nn.Module, Path], None] | None,
        options: Options,
        seed: int,
        parameters: ParameterGroups | None = None,
        mesh: Mesh | None = None,
        given: float = 0.0,
        teaching: Teaching | None = None,
    ) -> None:
        if options.deterministic:
            repeat_exactly()
        self.mesh, self.options, self.seed = mesh or Mesh(), options, seed
        self.model, self.process, self.objective, self.modality = model, process, objective, modality
        self.folder, self.preview = folder, preview
        drawn = options.batch_size, options.condition_dropout, model.conditioning.read, options.time_per
        shares = GivenShares(given, options.given_hidden, options.given_noisy)
        further = 0 if teaching is None else FURTHER
        self.batches = Batches(modality, model.tokens, process, self.mesh, seed, *drawn, shares, further)
        self.ranks = self.mesh.ranks
        self.device = self.mesh.device or next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.autocast_dtype = choose_precision(options.precision, self.device)
        self.ema = EMA(model, options.ema_decay)
        if options.recompute:
            recompute_blocks(model)
        self.forward = self.mesh.compile(model, options.compile_mode) if options.compile else model
        self.mesh.spread(model, self.autocast_dtype)
        self.mesh.spread(self.ema.model)
        self.teaching = teaching
        if teaching is not None and teaching.teacher is not None:
            self.mesh.spread(teaching.teacher)
        parameters = parameters or ParameterGroups()
        self.optimizer, self.base_rates = parameters.optimizer(optimizer, model, self.mesh)
        self.guard = Guard(options, self.device, self.mesh.gradient_norm)
        self.meter = Meter(options.steps, self.ranks)
        self.state = RunState(model, self.ema, self.optimizer, self.meter, self.guard, carried)
        self.saver = Saver(folder, self.ranks, options.background_save, options.keep_last, options.keep_every)
        self.lock = FolderLock(folder, self.ranks)
        self.stop = Stop(self.ranks)
        self.step = 0

    def save(self) -> None:
        """Write a checkpoint, and remove those beyond the number to keep.

        Raises:
            OSError: if it cannot be written; earlier ones are unchanged.
            ValueError: if it has non-finite values; nothing is written then.
        """
        if self.saver.begun < self.step:
            parts = self.state.parts()
            self._check_finite(parts)
            self.saver.save(self.step, parts)
        else:  # the save may have been interrupted before pruning
            self.saver.prune()

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Resume from a checkpoint, within `exclusive_lock`."""
        self.state.fill(found)
        self.step = self.saver.saved = self.saver.begun = found.plain["step"]
        if self.mesh.rank == 0:
            checkpoint.restate(found, config=self.state.carried["config"])

    def exclusive_lock(self) -> AbstractContextManager[None]:
        """Lock the run's folder, to be held before resuming from it or writing into it.

        Raises:
            ValueError: on all ranks, if another process is training in it.
        """
        return self.lock.held()

    def run(self) -> bool:
        """Train up to `steps`; False if a signal asked to stop first. Saves in both cases."""
        options = self.options
        with (
            self.stop.listening(),
            self.exclusive_lock(),
            self._reading_ahead(),
            # Another number of threads changes the rounding of sums, also in previews, and recompiles graphs.
            share_cores.held() if options.deterministic or options.compile else nullcontext(),
            Recorder(self.folder, self.step) if self.mesh.rank == 0 else nullcontext() as recorder,
        ):
            while self.step < options.steps and not self.stop.agreed():
                numbers = self._train_step()
                if numbers is None:
                    break
                self.step += 1
                self.meter.add(numbers)
                share_cores()
                logs = due(options.log_every, self.step) or self.step == options.steps
                saves = due(options.save_every, self.step) and self.step < options.steps
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
                if self.preview and due(options.preview_every, self.step):
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

    @contextmanager
    def _reading_ahead(self) -> Iterator[None]:
        """Within the context, workers prefetch the batches of the next steps; on exit they are stopped."""
        workers, plain = self.options.workers, self.batches.source
        if workers is None:
            workers = default_workers(self.batches.reader, self.device)
        with ReadAhead(plain, self.options.steps * self.options.accumulate, workers) as self.batches.source:
            try:
                yield
            finally:
                self.batches.source = plain

    def _settle(self) -> bool:
        """Report skipped steps; returns whether so many are consecutive that the run must end."""
        size, passes = self.options.batch_size, self.options.accumulate
        for entry in self.guard.settle():
            batches = [entry["step"] * passes + micro for micro in range(passes)]
            names = [name for b in batches for name in self.modality.batch_names(size, self.seed, b)]
            self.meter.skipped.append({**entry, "seed": self.seed, "batches": batches, "samples": names})
            launch.tell(
                f"step {entry['step']} skipped: loss {entry['loss']}, gradient norm {entry['gradient_norm']} "
                f"(seed {self.seed}, batches {batches}{''.join(f' {name}' for name in names[:8])})"
            )
        return self.guard.exhausted

    def _save(self, recorder: Recorder | None) -> None:
        self.ranks.all_or_raise(lambda: recorder.flush(sync=True) if recorder else None)
        self.save()

    def _check_finite(self, parts: Mapping[str, Any]) -> None:
        """Refuse, on all ranks, to write a state that cannot be resumed: it would replace a good checkpoint."""
        wrong = not_finite(parts)
        if (wrong := self.ranks.first_error(None if wrong is None else ValueError(wrong))) is None:
            return
        self.saver.finish()
        safe = f"step {self.saver.saved} is safe" if self.saver.saved else "there is no earlier checkpoint"
        raise ValueError(
            f"step {self.step} is not saved, since {wrong} holds numbers that are not finite; {safe}: lower "
            f"optimizer.lr, use trainer.precision=fp32, or choose a new name="
        )

    def _save_if_possible(self, recorder: Recorder | None) -> None:
        try:
            self._save(recorder)
        except OSError as error:
            launch.tell(
                f"step {self.step} was not saved: {error}; training continues, step {self.saver.saved} is safe"
            )

    def _train_step(self) -> dict[str, Any] | None:
        """Do one step; None if stopped before all its passes were done, which leaves the state unchanged."""
        factor, accumulate = self.options.rate(self.step), self.options.accumulate
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        if self.options.compile_mode is not None:  # CUDA graphs may overwrite outputs of earlier steps
            torch.compiler.cudagraph_mark_step_begin()
        tallies, samples = [], 0
        passes: list[list[Mapping[str, Tensor]]] = []
        values: list[Tensor] = []
        by_time: list[Tensor] = []
        for micro in range(accumulate):
            if micro and self.stop.agreed():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            batch = self.batches(self.step * accumulate + micro).to(self.device, self.model.reads_times)
            if accumulate > 1:
                self.model.before_pass(passes)
            losses, routings = self.losses(batch)
            self.mesh.sum_copies(self.model, last=micro == accumulate - 1)
            (losses.total / accumulate).backward()
            values.append(torch.stack(list(losses.parts.values())))
            by_time.append(sums_by_time(losses))
            passes.append([routing.batch_stats for routing in routings])
            tallies.append(tally(routings, self.device))
            samples += batch.size
        numbers = dict(zip(losses.parts, self.ranks.mean(torch.stack(values).mean(0)), strict=True))
        norm, good = self.guard.clip_gradients(self.model.parameters(), numbers["loss"])
        self.guard.note(self.step, good, numbers["loss"], norm)
        self.guard.step(self.optimizer, good)
        self.optimizer.zero_grad(set_to_none=True)
        with keeping(self.model.routers, good):
            self.model.update_routers(passes)
        self.ema.update(self.model, self.step)
        counts, sums = torch.stack(tallies).sum(0), torch.stack(by_time).sum(0)
        totals = self.ranks.total(torch.cat([counts.flatten(), sums.flatten()]))  # in one call
        return {
            "good": good,
            "losses": numbers,
            "gradient_norm": norm,
            "learning_rate": self.optimizer.defaults["lr"] * factor,
            "routings": routings,
            "samples": samples,
            "tally": totals[: counts.numel()].view_as(counts),
            "by_time": totals[counts.numel() :].view_as(sums),
        }

    def losses(self, batch: Batch) -> tuple[Losses, list[Routing]]:
        """The objective's losses of one batch, and the routings."""
        if self.teaching is None:
            noised = batch.x0, batch.noise, batch.each
            x_t, target = (of(*noised) for of in (self.process.corrupt, self.process.target))
        else:
            batch, x_t, target = self.teaching(batch, self.ema.model, partial(self._predict, batch.layout))
        x_t, target = batch.shaped(x_t), batch.shaped(target)
        # Seeds routers with noise.
        torch.manual_seed(torch_generator("router", self.seed, batch.index).initial_seed())
        sizes = () if batch.layout is None else (batch.layout,)
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output, routings = self.forward(x_t, batch.t, batch.asked, *sizes)
        mask = None if batch.mask is None else batch.shaped(batch.mask)
        t = batch.shaped(batch.each)
        return self.objective(Prediction(output, target, t, batch.share, mask, routings)), routings

    def _predict(
        self, layout: Layout | None, model: nn.Module, x: Tensor, t: Tensor, asked: Condition
    ) -> Tensor:
        """The output of another model on rows of a batch with this layout, or on samples."""
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output = model(x, t, asked)[0] if layout is None else model(x[None], t, asked, layout)[0][0]
        return output.float()

    def _preview(self) -> None:
        assert self.preview
        file = self.folder / "progress" / f"step-{self.step:07d}.png"
        with self.stop.breaking():
            try:
                self.preview(self.ema.model, file)
            except (OSError, ValueError) as error:  # an untrained model may give non-finite samples
                launch.tell(f"{file} was not drawn: {error}")


def due(every: int, step: int) -> bool:
    """Whether something done every `every` steps is due after this one."""
    return every > 0 and step % every == 0
