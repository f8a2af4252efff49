"""Drawing samples from a model, or from a checkpoint into files."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from ditmoe.checkpoint import check_own
from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.config.limits import check_request
from ditmoe.config.restore import Restored, restore
from ditmoe.config.trust import Trust
from ditmoe.config.words import shape_asked, split_words
from ditmoe.diffusion import Process, Sampling, denoise, draw_noise, make_scheduler, torch_generator
from ditmoe.distributed import launch
from ditmoe.modality import Files, Modality, Samples
from ditmoe.outside import check_number, file_name


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
) -> Float[Tensor, "S *sample"]:
    """Draw what is asked for, in the model's space; sample i depends on (seed, i) and what is asked of it alone.

    Args:
        shape: of a sample; None is that of the training data.
        numbers: i of each sample; None counts from 0.
    """
    shape = modality.sample_shape if shape is None else shape
    check_number("batch_size", batch_size, 1, whole=True)
    device = next(model.parameters()).device
    numbers = torch.arange(len(asked)) if numbers is None else numbers
    batches = [rows for rows in torch.arange(len(asked)).split(batch_size) if len(rows)]
    often = 0.1 if sys.stderr.isatty() else 10  # a log file is no screen
    bar = tqdm(
        total=len(batches) * sampling.steps,
        desc="sampling",
        disable=not progress,
        leave=False,
        mininterval=often,
    )
    done = [torch.empty(0, *shape)]
    for rows in batches:
        indices = numbers[rows].tolist()
        samples = denoise(
            model,
            process,
            make_scheduler(scheduler, process),
            draw_noise(indices, shape, seed).to(device),
            asked.take(rows).to(device),
            steps=sampling.steps,
            guidance=sampling.guidance,
            interval=sampling.interval,
            generators=[torch_generator("scheduler", seed, i) for i in indices],
            on_step=bar.update,
        )
        done.append(samples.cpu())
    bar.close()
    return torch.cat(done)


def ask(restored: Restored, num: int, seed: int, **words: Any) -> Condition:
    """What the words of a command ask the model of a checkpoint for."""
    return restored.model.conditioning.ask(
        num, restored.modality.classes, torch_generator("labels", seed), **words
    )


def draw_from(
    restored: Restored,
    asked: Condition,
    *,
    scheduler: dict[str, Any] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    **words: Any,
) -> Samples | None:
    """Draw samples in data units from a restored checkpoint, of the shape that the modality's own words ask for.

    Under torchrun the processes take whole batches in turns, so that each sample is to the bit what one process draws;
    the first gets all samples, the others None.
    """
    ranks, numbers = launch.ranks(), torch.arange(len(asked))
    turns = [numbers.split(max(1, batch_size))[rank :: ranks.size] for rank in range(ranks.size)]
    shares = [torch.cat(batches) if batches else numbers[:0] for batches in turns]
    own = shares[ranks.rank]
    sampling = Sampling.of(restored.config, steps, guidance)
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
    )
    if (parts := ranks.collect(x)) is None:
        return None
    x = torch.cat(parts)[torch.cat(shares).argsort()]
    return restored.modality.samples(x, asked)


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
    batch_size: int = 32,
    **words: Any,
) -> list[Path]:
    """Draw from a checkpoint and write the samples; returns the paths, the picture first.

    Under torchrun all processes draw; the first writes, the others return no paths.

    Args:
        out: a folder, or a .npz that holds all samples. Without it each class and seed has a folder of its own, so
            that sets do not mix.
        trust: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.
        words: what to draw, in the conditioning's words (`label="chair"`), and of which shape, in the modality's own
            (`points=8192`).

    Raises:
        ValueError: for words that neither knows, and if it writes no files.
    """
    restored = restore(checkpoint, top_k, trusted=trust)
    modality, files = restored.modality, Files.of(restored.modality, "sample")
    owners = restored.model.conditioning, modality
    wanted, of_shape = split_words(words, *owners, options=inspect.signature(sample_checkpoint).parameters)
    check_request(modality, num, batch_size, **of_shape)
    asked = ask(restored, num, seed, **wanted)
    told = [str(value) for value in wanted.values() if value is not None]
    folder = restored.folder / file_name("-".join(["samples", *told, f"seed{seed}"]))
    if not out:
        check_own([folder])
    how: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "guidance": guidance}
    samples = draw_from(restored, asked, **how, seed=seed, batch_size=batch_size, **of_shape)
    if samples is None:
        return []
    return files.write(samples, Path(out) if out else folder)
