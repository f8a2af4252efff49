"""A trained or converted model as a pipeline of diffusers.

pipe = ditmoe.Pipeline.from_pretrained("chairs/")        # a folder that `python -m ditmoe.export` wrote
pipe(label="chair", num_samples=4, num_inference_steps=50, guidance_scale=1.5).samples
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput, is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe.checkpoint.atomic import recover
from ditmoe.config import build
from ditmoe.config.limits import check_request
from ditmoe.config.words import shape_asked, split_words
from ditmoe.diffusion import (
    Process,
    Sampling,
    check_scheduler,
    denoise,
    draw_noise,
    torch_generator,
    try_scheduler,
)
from ditmoe.modality import Modality
from ditmoe.pipelines.components import Memory, Transformer
from ditmoe.pipelines.trusted_folder import check_folder

OUTPUTS = ("pil", "np", "pt", "latent")
FIXED = {"use_safetensors": True, "trust_remote_code": False, "custom_pipeline": None}
"""What diffusers may not be told otherwise."""


@dataclass
class Output(BaseOutput):
    """What a pipeline drew.

    Attributes:
        samples: pictures (PIL), arrays (S, *sample) or tensors, as asked for.
        labels: (S,) class indices; None where no classes are asked for.
    """

    samples: Any
    labels: Tensor | None = None

    @property
    def images(self) -> Any:
        """The samples, by the name that most pipelines give them."""
        return self.samples


class Pipeline(DiffusionPipeline):
    """Draws images, clouds or clips: one class for all, since the modality knows what a sample is.

    `python -m ditmoe.sample` with the same seed gives the same samples bit for bit. Moving, offloading, progress bar,
    scheduler swaps, LoRA (see `Transformer`) and `save_pretrained` are those of diffusers.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  (diffusers adds it to a list)

    def __init__(self, transformer: Transformer, scheduler: Any, memory: Memory, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, memory=memory, vae=vae)
        self._modality: tuple[Any, Modality | None] | None = None
        if scheduler.compatibles:
            # A scheduler made from this one's configuration should fit the process, too.
            options = self.process.scheduler_options()
            scheduler.register_to_config(**{k: v for k, v in options.items() if k not in scheduler.config})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Pipeline":  # type: ignore[override]
        """Open a folder that `export` or `save_pretrained` wrote; nothing in it is executed.

        Raises:
            FileNotFoundError, ValueError: one line, if there is none, or it names code that is not trusted.
        """
        for name, only in FIXED.items():
            if (given := options.pop(name, only)) != only:
                raise ValueError(f"{name} must be {only}: a folder runs no code; got {given!r}")
        recover(Path(folder))
        check_folder(Path(folder), options.get("variant"))
        options = {"low_cpu_mem_usage": is_accelerate_available()} | options
        try:
            pipe = super().from_pretrained(str(folder), **FIXED, **options)
            with build.describing(Path(folder) / "scheduler"):
                try_scheduler(pipe.scheduler, pipe.process)
            return pipe
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # diffusers fails in many ways, and explains in paragraphs
            raise ValueError(" ".join(str(error).split())) from error

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer."""
        return self.transformer.dtype

    @property
    def modality(self) -> Modality | None:
        """What samples are; None where a converted model came without an autoencoder, and gives latents."""
        if self._modality is None or self._modality[0] is not self.vae:  # it may have been replaced
            self._modality = self.vae, self.memory.modality(self.vae)
        return self._modality[1]

    @property
    def process(self) -> Process:
        """What the model predicts."""
        return build.make(self.memory.admitted["process"])

    @torch.no_grad()
    def __call__(
        self,
        label: str | int | Sequence[str | int] | np.ndarray | Tensor | None = None,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        **words: Any,
    ) -> Any:
        """Draw samples.

        Args:
            label: a class by name or index, "none" for the null class, "random", or a list of them, one for each
                sample; None takes all classes in turn.
            num_samples: how many, unless there is a list of labels.
            num_inference_steps, guidance_scale: None takes what the model was exported with.
            generator: one, or a list with one for each sample: diffusers' way. All starting noise is drawn from it
                first, then what the scheduler adds, batch after batch: with such a scheduler (flow_ancestral, ddpm)
                samples from a single generator depend on batch_size, those from a list do not.
            seed: without a generator: starting noise and a scheduler's of sample i depend on (seed, i) alone, as in
                `python -m ditmoe.sample`.
            batch_size: samples at a time.
            output_type: "pil": pictures, lists of pictures for clips, arrays of what is neither. "np": (S, H, W, 3) in
                [0, 1], clips (S, T, H, W, 3), clouds in data units (colours and normals behind x, y, z). "pt": the same
                as tensors, channels before H. "latent": as the model has them.
            return_dict: an `Output`, or its parts.
            words: the modality's own, for samples of another shape than in training, as `points=8192`.

        Raises:
            ValueError: for an unknown label or word, an option that makes no sense, or a scheduler that cannot follow
                the model's process; one line.
        """
        sampling = Sampling.of(self.memory.config.config)  # of a folder: what is missing or none is one line
        steps = sampling.steps if num_inference_steps is None else num_inference_steps
        guidance = sampling.guidance if guidance_scale is None else guidance_scale
        self._check(output_type, num_samples=num_samples, num_inference_steps=steps, batch_size=batch_size)
        if not isinstance(guidance, Real):
            raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
        classes, random = self.memory.config.classes, torch_generator("labels", seed)
        wanted, of_shape = self._split(words)
        asked = self.transformer.conditioning.ask(num_samples, classes, random, label=label, **wanted)
        shape = self._shape(len(asked), batch_size, of_shape)
        noise, generators = self._noise(len(asked), generator, seed, shape)
        device, batches, parts = self._execution_device, torch.arange(len(asked)).split(batch_size), []
        with self.progress_bar(total=len(batches) * steps) as bar:
            for rows in batches:
                own = [generators[i] for i in rows.tolist()] if isinstance(generators, list) else generators
                x = denoise(
                    self.transformer,
                    self.process,
                    self.scheduler,
                    noise[rows].to(device),
                    asked.take(rows).to(device),
                    steps=steps,
                    guidance=float(guidance),
                    interval=sampling.interval,
                    generators=own,
                    on_step=bar.update,
                )
                parts.append(x.cpu())
        samples = self._finished(torch.cat(parts), output_type)
        self.maybe_free_model_hooks()
        labels = asked.labels(len(classes))
        return Output(samples=samples, labels=labels) if return_dict else (samples, labels)

    def _check(self, output_type: str, **counts: Any) -> None:
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        for name, value in counts.items():
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        check_scheduler(self.scheduler, self.process)

    def _split(self, words: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is asked for, and of which shape."""
        owners = [self.transformer.conditioning, *([] if self.modality is None else [self.modality])]
        options = inspect.signature(type(self).__call__).parameters
        asked, *of_shape = split_words(words, *owners, options=options)
        return asked, of_shape[0] if of_shape else {}

    def _shape(self, num: int, batch_size: int, words: dict[str, Any]) -> tuple[int, ...]:
        """Of a sample as the model sees it, if this machine can hold so many."""
        if not words or self.modality is None:
            return tuple(self.memory.config.shape)
        check_request(self.modality, num, int(batch_size), **words)
        return shape_asked(self.modality, words)

    def _noise(self, num: int, generator: Any, seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
        if generator is None:
            return draw_noise(range(num), shape, seed), [
                torch_generator("scheduler", seed, i) for i in range(num)
            ]
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"generator must be one, or one for each of {num} samples, got {len(generator)}")
        device = self._execution_device
        return randn_tensor((num, *shape), generator=generator, device=device, dtype=torch.float32), generator

    def _finished(self, x: Tensor, output_type: str) -> Any:
        if output_type == "latent" or self.modality is None:
            return x
        data = self.modality.decode(x)
        if data.dtype != np.uint8:
            return torch.from_numpy(data) if output_type == "pt" else data
        if output_type == "pil":
            pictures = [self.numpy_to_pil(clip / 255) for clip in (data if data.ndim == 5 else [data])]
            return pictures if data.ndim == 5 else pictures[0]
        floats = data.astype(np.float32) / 255
        return torch.from_numpy(floats).movedim(-1, -3) if output_type == "pt" else floats
