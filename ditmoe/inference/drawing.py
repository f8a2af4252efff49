"""Sampling from a model, or from a checkpoint to files."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from ditmoe.checkpoint import check_own
from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.config.restore import Restored
from ditmoe.config.trust import Trust
from ditmoe.config.words import shape_asked
from ditmoe.diffusion import Process, Sampling, denoise, draw_noise, make_scheduler, torch_generator
from ditmoe.distributed import launch, say
from ditmoe.distributed.threads import share_cores
from ditmoe.given import GIVEN, Given, Parts, in_turns
from ditmoe.inference.model_words import ModelWords, check_leads
from ditmoe.inference.request import understand
from ditmoe.inference.writing import (
    FURTHER,
    Further,
    check_others,
    folder_name,
    further_folder,
    ready_place,
    write_drawn,
)
from ditmoe.modality import Files, Modality, Samples
from ditmoe.moe import Traffic
from ditmoe.outside import check_number


def draw(
    model: nn.Module,
    modality: Modality,
    process: Process,
    scheduler: Any,
    sampling: Sampling,
    asked: Condition,
    *,
    seed: int,
    batch_size: int = 32,
    progress: bool = False,
    shape: Sequence[int] | None = None,
    numbers: Int[Tensor, " S"] | None = None,
    parts: Parts | None = None,
    given_guidance: float = 1.0,
    negative: Condition | None = None,
    weaker: nn.Module | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "S *sample"]:
    """Sample in the model's space. Sample i depends only on (seed, i) and on its condition.

    Args:
        asked: the condition of each sample.
        shape: shape of a sample; None is that of the training data, or of the given parts.
        numbers: i of each sample; None counts from 0.
        parts: given parts of the samples.
        negative: negative condition of each sample for guidance; None is the null condition.
        weaker: a weaker model for guidance in place of a negative condition (autoguidance), see `denoise`.
        on_step: called after each step with the number of steps done and the number expected so far. An error that it
            raises ends the sampling.
    """
    if parts is not None:
        shape = parts.given.x.shape[1:]
    shape = modality.sample_shape if shape is None else shape
    check_number("batch_size", batch_size, 1, whole=True)
    device = next(model.parameters()).device
    numbers = torch.arange(len(asked)) if numbers is None else numbers
    batches = [rows for rows in torch.arange(len(asked)).split(batch_size) if len(rows)]
    progressed = _Steps(len(batches) * sampling.steps, progress, on_step)

    def drawn(rows: Int[Tensor, " b"], given: Given | None, turn: int) -> Float[Tensor, "b *sample"]:
        if turn:
            progressed.expect(sampling.steps)
        indices, address = numbers[rows].tolist(), [turn] if turn else []
        own = shape if given is None else given.x.shape[1:]
        return denoise(
            model,
            process,
            make_scheduler(scheduler, process),
            draw_noise(indices, own, seed, turn).to(device),
            asked.take(rows).to(device),
            steps=sampling.steps,
            guidance=sampling.guidance,
            interval=sampling.interval,
            negative=None if negative is None else negative.take(rows).to(device),
            generators=[torch_generator("scheduler", seed, i, *address) for i in indices],
            given=None if given is None else given.to(device),
            given_guidance=given_guidance,
            weaker=weaker,
            first_block_cache=sampling.first_block_cache,
            on_step=progressed,
        )

    with closing(progressed):  # so that an error is not printed after the bar
        finished = [in_turns(partial(drawn, rows), parts, rows).cpu() for rows in batches]
    return torch.cat(finished) if finished else torch.empty(0, *shape)


def progress_bar(what: str, total: int, shown: bool) -> tqdm:
    """A progress bar on stderr, removed at the end; updated often on a terminal, rarely in a log file."""
    often = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file keeps every line
    return tqdm(total=total, desc=what, disable=not shown, leave=False, mininterval=often)


class _Steps:
    """Called after each sampler step: advances a bar on stderr, and calls `on_step` (see `draw`)."""

    def __init__(self, total: int, shown: bool, on_step: Callable[[int, int], None]) -> None:
        self.bar = progress_bar("sampling", total, shown)
        self.total, self.done, self.on_step = total, 0, on_step

    def __call__(self) -> None:
        self.done += 1
        self.bar.update()
        share_cores()
        self.on_step(self.done, self.total)

    def expect(self, steps: int) -> None:
        """Add to the expected number of steps."""
        self.total = self.bar.total = self.total + steps

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


def draw_from(
    restored: Restored,
    asked: Condition,
    *,
    scheduler: dict[str, Any] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    interval: Sequence[float] | None = None,
    first_block_cache: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    parts: Parts | None = None,
    given_guidance: float = 1.0,
    negative: Condition | None = None,
    weaker: nn.Module | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    **words: Any,
) -> Samples | None:
    """Generate samples in data units from a restored checkpoint.

    Under torchrun each process takes every n-th batch, so that all samples equal those of a single process bit for bit.
    Rank 0 returns all samples, the others None.

    Args:
        parts, given_guidance, negative, weaker, on_step: see `draw`.
        words: options of the modality for the shape of a sample.
    """
    ranks, numbers = launch.ranks(), torch.arange(len(asked))
    turns = [numbers.split(max(1, batch_size))[rank :: ranks.size] for rank in range(ranks.size)]
    shares = [torch.cat(batches) if batches else numbers[:0] for batches in turns]
    own = shares[ranks.rank]
    sampling = Sampling.of(restored.config, steps, guidance, interval, first_block_cache)
    if weaker is not None:
        check_leads(sampling)
    x = draw(
        restored.model,
        restored.modality,
        restored.process,
        build.make(scheduler or restored.config["scheduler"]),
        sampling,
        asked.take(own),
        seed=seed,
        batch_size=batch_size,
        progress=ranks.rank == 0,
        shape=shape_asked(restored.modality, words),
        numbers=own,
        parts=parts,
        given_guidance=given_guidance,
        negative=None if negative is None else negative.take(own),
        weaker=weaker,
        on_step=on_step,
    )
    if restored.traffic is not None:
        say(told_of(restored.traffic))
    if (drawn := ranks.collect(x)) is None:
        return None
    samples = restored.modality.samples(torch.cat(drawn)[torch.cat(shares).argsort()], asked)
    return samples if parts is None else replace(samples, data=parts.finish(samples.data))


def told_of(traffic: Traffic) -> str:
    """One line on the cost of offloading experts so far."""
    each = traffic.moved / max(1, traffic.fetched)
    return (
        f"experts: {traffic.fetched} of {traffic.chosen} chosen ones were fetched in {traffic.passes} passes through a "
        f"layer, {_bytes(traffic.moved)} in all, {_bytes(each)} each; at most {_bytes(traffic.most)} on the device"
    )


def _bytes(number: float) -> str:
    size, unit = next(
        (s, u) for s, u in ((2**30, "GiB"), (2**20, "MiB"), (1024, "KiB")) if number >= s or s == 1024
    )
    return f"{number / size:.3g} {unit}"


def sample_checkpoint(
    checkpoint: str | Path,
    num: int = 32,
    seed: int = 0,
    top_k: int | None = None,
    out: str | Path | None = None,
    trust: Trust = False,
    *,
    scheduler: dict[str, Any] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    interval: Sequence[float] | None = None,
    batch_size: int = 32,
    given: Any = None,
    given_guidance: float = 1.0,
    strength: float | None = None,
    meshes: bool = False,
    turntable: bool = False,
    guidance_model: str | Path | None = None,
    first_block_cache: float | None = None,
    weights: str | None = None,
    offload: str | None = None,
    expert_cache: float = 4.0,
    **words: Any,
) -> list[Path]:
    """Sample from a checkpoint and write the samples; returns the paths, the overview picture first.

    Under torchrun all processes sample; rank 0 writes, and the others return no paths.

    Args:
        out: a folder, or a .npz file for all samples. None: a folder in the run, named by condition and seed, so that
            sets do not mix.
        trust: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.
        given: the known part of each sample: paths of files, or arrays in data units (docs/given.md).
        given_guidance: guidance scale of the given part; 1: none.
        strength: noise level, as a share, from which given samples are changed; None: only the kept part is used.
        guidance_model, first_block_cache, weights, offload, expert_cache: see `ModelWords`.
        meshes: also write the surfaces of the samples, to `meshes` in their folder, or beside a .npz.
        turntable: also render each sample, and its surface, from all sides, to `turntables` likewise.
        words: options of the conditioning (`label="chair"`; without any of them, given samples have no class), and of
            the modality for the shape of samples and for given parts (`points=8192`).

    Raises:
        ValueError: for unknown options, if the modality writes no files, and if another process writes there.
        OSError: if the files cannot be written, which is checked before sampling.
    """
    Sampling.check(steps, guidance, interval)
    models = ModelWords(checkpoint, trust, guidance_model, first_block_cache, weights, offload, expert_cache)
    restored = models.restore(top_k)
    files = Files.of(restored.modality, "sample")
    further = Further.of(restored.modality, meshes, turntable)
    models.sampling(restored, steps, guidance, interval)
    weaker = models.restore_weaker(restored)
    request = understand(restored, num, seed, words, sample_checkpoint, batch_size=batch_size, weaker=weaker)
    folder = restored.folder / folder_name(request, given, seed)
    # The given inputs are kept for the page of the run.
    beside = None if out else restored.folder / GIVEN / folder.name
    if beside is not None:
        check_own([folder, beside.parent, beside, *(further_folder(folder, name) for name in FURTHER)])
    place = Path(out) if out else folder
    further.check_out(place)
    beyond = further.folders(place)
    own = place.suffix != ".npz" and place.is_relative_to(restored.folder)  # a run's folders are ditmoe's
    if not own:
        launch.ranks().all_or_raise(lambda: None if launch.rank() else check_others(place, *beyond))
    with launch.ranks().of_first(lambda: ready_place(place, *beyond)):
        # Last, as it reads files.
        request = request.with_given(given, given_guidance, strength)
        for line in () if request.parts is None else request.parts.told:
            say(line)
        how: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "guidance": guidance}
        how |= {"interval": interval, "weaker": weaker, "first_block_cache": first_block_cache}
        how |= request.options
        samples = draw_from(restored, request.asked, **how, seed=seed, batch_size=batch_size)
        if samples is None:
            return []
        paths = write_drawn(files, samples, request, place, beside, seed=seed, guidance=guidance)
        further.write(samples, place)
        return paths
