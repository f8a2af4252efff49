"""A trained or converted model as a pipeline of diffusers.

pipe = ditmoe.Pipeline.from_pretrained("chairs/")        # a folder that `python -m ditmoe.export` wrote
pipe(label="chair", num_samples=4, num_inference_steps=50, guidance_scale=1.5).samples
pipe("a chair with four legs", negative_prompt="an armchair")    # of a model of text
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
from diffusers.utils import BaseOutput, is_accelerate_available, logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe.checkpoint.atomic import recover
from ditmoe.config import build
from ditmoe.config.limits import check_request
from ditmoe.config.words import GivenWords, parts_asked, shape_asked, split_words
from ditmoe.diffusion import (
    Process,
    Sampling,
    check_scheduler,
    denoise,
    draw_noise,
    torch_generator,
    try_scheduler,
)
from ditmoe.given import Given, Parts
from ditmoe.modality import Modality
from ditmoe.pipelines.components import Memory, Transformer
from ditmoe.pipelines.trusted_folder import check_folder

logger = logging.get_logger(__name__)
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

        Args:
            text_encoder: of a model of text whose encoder is no installed package: a folder or a name on the hub, or
                a `ditmoe.text.Pretrained`. It must be the one of the training.

        Raises:
            FileNotFoundError, ValueError: one line, if there is none, or it names code that is not trusted.
        """
        for name, only in FIXED.items():
            if (given := options.pop(name, only)) != only:
                raise ValueError(f"{name} must be {only}: a folder runs no code; got {given!r}")
        recover(Path(folder))
        check_folder(Path(folder), options.get("variant"))
        encoder = options.pop("text_encoder", None)
        options = {"low_cpu_mem_usage": is_accelerate_available()} | options
        try:
            pipe = super().from_pretrained(str(folder), **FIXED, **options)
            with build.describing(Path(folder) / "scheduler"):
                try_scheduler(pipe.scheduler, pipe.process)
            if encoder is not None:
                if not (use := getattr(pipe.transformer.conditioning, "use", None)):
                    raise ValueError("text_encoder is for models of text")
                use(encoder)
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
        guidance_interval: Sequence[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        given: Any = None,
        given_guidance: float = 1.0,
        strength: float | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **words: Any,
    ) -> Any:
        """Draw samples.

        Args:
            label: a class by name or index, "none" for the null class, "random", or a list of them, one for each
                sample; None takes all classes in turn. Of a model of text, what is no class is a prompt.
            num_samples: how many, unless there is a list of labels.
            num_inference_steps, guidance_scale, guidance_interval: None takes what the model was exported with; the
                last are the times, from data (0) to noise (1000), at which guidance is on.
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
            given: what is there already of each sample: a path or paths, or arrays in data units (docs/given.md).
            given_guidance: how much more samples follow it than the model does by itself.
            strength: share of the way to noise from which what is given is changed.
            prompt: of a model of text: a sentence, or a list of them, one for each sample.
            negative_prompt: what guidance leads away from, in place of no sentence.
            words: the modality's own, for samples of another shape than in training, as `points=8192`, and of what is
                given, as `keep=[0, 9]`.

        Raises:
            ValueError: for an unknown label or word, an option that makes no sense, or a scheduler that cannot follow
                the model's process; one line.
        """
        config = self.memory.config.config
        sampling = Sampling.of(
            config, interval=guidance_interval
        )  # of a folder: what is missing or none is one line
        steps = sampling.steps if num_inference_steps is None else num_inference_steps
        guidance = sampling.guidance if guidance_scale is None else guidance_scale
        self._check(output_type, num_samples=num_samples, num_inference_steps=steps, batch_size=batch_size)
        if not isinstance(guidance, Real):
            raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
        classes, random = self.memory.config.classes, torch_generator("labels", seed)
        label, said = self._prompts(label, prompt, negative_prompt)
        wanted, of_shape, of_given = self._split(words | said)
        asked = self.transformer.conditioning.ask(num_samples, classes, random, label=label, **wanted)
        negative = self.transformer.conditioning.away(asked, **wanted)
        shape = self._shape(len(asked), batch_size, of_shape)
        trained = self.memory.admitted.get("given", 0)
        parts = None
        if given is not None or of_given or strength is not None or given_guidance != 1:
            parts = self._parts(given, of_shape, of_given, trained, strength, given_guidance)
        if parts is not None:
            shape = tuple(parts.given.x.shape[1:])
            if label is None and not self.transformer.conditioning.is_told(wanted):
                asked = asked.nothing
        noise, generators = self._noise(len(asked), generator, seed, shape)
        device, batches, drawn = self._execution_device, torch.arange(len(asked)).split(batch_size), []
        with self.progress_bar(total=len(batches) * steps) as bar:
            for rows in batches:

                def denoised(noise: Tensor, of: Any, given: Given | None, rows: Tensor = rows) -> Tensor:
                    own = [of[i] for i in rows.tolist()] if isinstance(of, list) else of
                    return denoise(
                        self.transformer,
                        self.process,
                        self.scheduler,
                        noise[rows].to(device),
                        asked.take(rows).to(device),
                        steps=steps,
                        guidance=float(guidance),
                        interval=sampling.interval,
                        negative=None if negative is None else negative.take(rows).to(device),
                        generators=own,
                        given=None if given is None else given.to(device),
                        given_guidance=given_guidance,
                        on_step=bar.update,
                    )

                x = denoised(noise, generators, None if parts is None else parts.given.take(rows))
                turn = 0
                while parts is not None and (following := parts.more(x)) is not None:
                    turn += 1
                    more, join = following
                    fresh = self._noise(len(asked), generator, seed, tuple(more.x.shape[1:]), turn)
                    x = join(denoised(*fresh, more))
                drawn.append(x.cpu())
        samples = self._finished(torch.cat(drawn), output_type, parts)
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

    def _prompts(self, label: Any, prompt: Any, negative: Any) -> tuple[Any, dict[str, Any]]:
        """The label, and sentences as words of the conditioning: what stands first is a prompt where it is no class."""
        if prompt is None and label is not None and "prompt" in self.transformer.conditioning.words:
            own = {*self.memory.config.classes, "none", "random"}
            each = [label] if isinstance(label, str) else label
            if isinstance(each, list | tuple) and not all(isinstance(one, int) or one in own for one in each):
                label, prompt = None, label
        said = {"prompt": prompt, "negative": negative}
        return label, {name: value for name, value in said.items() if value is not None}

    def _split(self, words: dict[str, Any]) -> list[dict[str, Any]]:
        """What is asked for, of which shape, and what is said of what is given."""
        modality = self.modality
        owners = [
            self.transformer.conditioning,
            *([] if modality is None else [modality, GivenWords(modality)]),
        ]
        options = inspect.signature(type(self).__call__).parameters
        return [*split_words(words, *owners, options=options), {}, {}][:3]

    def _parts(self, given: Any, of_shape: Any, of_given: Any, trained: float, *others: Any) -> Parts | None:
        """What is given, as the modality understands it; what was changed for that goes to diffusers' log."""
        if self.modality is None:
            raise ValueError("given needs the modality: this pipeline knows of latents alone")
        parts = parts_asked(self.modality, given, of_shape, of_given, trained, *others)
        for line in () if parts is None else parts.told:
            logger.warning(line)
        return parts

    def _shape(self, num: int, batch_size: int, words: dict[str, Any]) -> tuple[int, ...]:
        """Of a sample as the model sees it, if this machine can hold so many."""
        if not words or self.modality is None:
            return tuple(self.memory.config.shape)
        check_request(self.modality, num, int(batch_size), **words)
        return shape_asked(self.modality, words)

    def _noise(
        self, num: int, generator: Any, seed: int, shape: tuple[int, ...], turn: int = 0
    ) -> tuple[Tensor, Any]:
        if generator is None:
            address = [turn] if turn else []
            return draw_noise(range(num), shape, seed, turn), [
                torch_generator("scheduler", seed, i, *address) for i in range(num)
            ]
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"generator must be one, or one for each of {num} samples, got {len(generator)}")
        device = self._execution_device
        return randn_tensor((num, *shape), generator=generator, device=device, dtype=torch.float32), generator

    def _finished(self, x: Tensor, output_type: str, parts: Parts | None = None) -> Any:
        if output_type == "latent" or self.modality is None:
            return x
        data = self.modality.decode(x)
        data = data if parts is None else parts.finish(data)
        if data.dtype != np.uint8:
            return torch.from_numpy(data) if output_type == "pt" else data
        if output_type == "pil":
            pictures = [self.numpy_to_pil(clip / 255) for clip in (data if data.ndim == 5 else [data])]
            return pictures if data.ndim == 5 else pictures[0]
        floats = data.astype(np.float32) / 255
        return torch.from_numpy(floats).movedim(-1, -3) if output_type == "pt" else floats
