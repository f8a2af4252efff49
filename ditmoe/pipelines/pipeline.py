"""A trained or converted model as a pipeline of diffusers.

pipe = ditmoe.Pipeline.from_pretrained("chairs/")        # a folder that `python -m ditmoe.export` wrote
pipe(label="chair", num_samples=4, num_inference_steps=50, guidance_scale=1.5).samples
pipe("a chair with four legs", negative_prompt="an armchair")    # of a model of text
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from torch import Tensor

from ditmoe.config import build
from ditmoe.diffusion import Sampling, try_scheduler
from ditmoe.outside import is_regular, printable
from ditmoe.pipelines.adapters import Adapters
from ditmoe.pipelines.asked import (
    merged,
    one_of,
    own_schedule,
    size_words,
    step_options,
    weaker_of,
    with_top_k,
)
from ditmoe.pipelines.components import Memory, Transformer
from ditmoe.pipelines.hub import HUB, folder_of
from ditmoe.pipelines.interface import own_config, process_options
from ditmoe.pipelines.output import Output, finished
from ditmoe.pipelines.request import Request
from ditmoe.pipelines.trusted_folder import INDEX, LORA, check_folder, check_index

FIXED = {"use_safetensors": True, "trust_remote_code": False, "custom_pipeline": None}
"""What diffusers may not be told otherwise."""


class DiTMoEPipeline(Request, Adapters, DiffusionPipeline):
    """Draws images, clouds or clips: one class for all, since the modality knows what a sample is.

    `python -m ditmoe.sample` with the same seed gives the same samples bit for bit. Moving, offloading, progress bar,
    scheduler swaps and `save_pretrained` are those of diffusers. Where this class was imported,
    `diffusers.DiffusionPipeline.from_pretrained` knows it and opens the same folders.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  (diffusers adds it to a list)

    def __init__(self, transformer: Transformer, scheduler: Any, memory: Memory, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(memory=memory, transformer=transformer, scheduler=scheduler, vae=vae)
        self._modality = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "scheduler":
            # One that is made from this one's configuration, of whatever class, is to fit the process, too.
            options = process_options(value, self.process)
            value.register_to_config(**{k: v for k, v in options.items() if k not in value.config})

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "DiTMoEPipeline":  # type: ignore[override]
        """Open what `export` or `save_pretrained` wrote, a folder or "user/repository" of the Hugging Face hub.

        Nothing in it is executed. Of a repository the files alone are fetched that are read here.

        Args:
            revision, token, cache_dir, local_files_only, force_download: of a repository, as everywhere on the hub.
            text_encoder: of a model of text whose encoder is no installed package: a folder or a name on the hub, or
                a `ditmoe.text.Pretrained`. It must be the one of the training.
            options: further ones of diffusers, such as dtype and variant.

        Raises:
            FileNotFoundError, ValueError: one line, if there is none, or it names code that is not trusted.
        """
        for option, only in FIXED.items():
            if (given := options.pop(option, only)) != only:
                raise ValueError(f"{option} must be {only}: a folder runs no code; got {given!r}")
        of_hub = {option: options.pop(option) for option in HUB if option in options}
        folder = folder_of(name, options.get("variant"), **of_hub)
        check_folder(folder, options.get("variant"))
        encoder = options.pop("text_encoder", None)
        options = {"low_cpu_mem_usage": is_accelerate_available()} | options
        try:
            pipe = super().from_pretrained(str(folder), **FIXED, **options)
            with build.describing(folder / "scheduler"):
                try_scheduler(pipe.scheduler, pipe.process)
            # facts that no sample could be decoded by are told here, not after the work of drawing
            _ = pipe.modality
            if encoder is not None:
                if not (use := getattr(pipe.transformer.conditioning, "use", None)):
                    raise ValueError("text_encoder is for models of text")
                use(encoder)
            if is_regular(folder / LORA):
                pipe.load_lora_weights(folder)
            return pipe
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # diffusers fails in many ways, and explains in paragraphs
            raise ValueError(printable(" ".join(str(error).split()))) from error

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Of an index, what is to be loaded; `DiffusionPipeline.from_pretrained` asks for it before it loads anything.

        So the gate holds there, too: classes are refused here, and the folder by the memory, which comes first.
        """
        if "memory" in config_dict:
            check_index(config_dict, Path(INDEX))
        first, *others = super().extract_init_dict(config_dict, **options)
        return {name: first[name] for name in sorted(first, key="memory".__ne__)}, *others

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True, **options: Any) -> None:  # type: ignore[override]
        """Save it into a folder that `from_pretrained` opens, as diffusers does: variants, shards, `push_to_hub`.

        Adapters that are active lie beside the weights, in a file of their own, and are active when it is opened.

        Raises:
            ValueError: for weights in any other format than safetensors.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization must be True: pickled weights run code, and from_pretrained refuses them"
            )
        with own_config(self.scheduler, self.process), self.without_lora():
            super().save_pretrained(folder, **options)
        (Path(folder) / LORA).unlink(missing_ok=True)  # of what was saved there before
        if self.get_active_adapters():
            self.save_lora_weights(folder)

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer."""
        return self.transformer.dtype

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
        class_labels: Any = None,
        num_images_per_prompt: int | None = None,
        num_videos_per_prompt: int | None = None,
        latents: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        top_k: int | None = None,
        guidance_model: Any = None,
        first_block_cache: float | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **words: Any,
    ) -> Any:
        """Draw samples.

        Args:
            label: a class by name or index, "none" for the null class, "random", or a list of them, one for each
                sample; None takes all classes in turn. Of a model of text, what is no class is a prompt.
            class_labels: the same by the name that diffusers' DiT gives it.
            num_samples: how many, unless there is a list of labels.
            num_images_per_prompt, num_videos_per_prompt: how many of each of these, one after the other.
            num_inference_steps, guidance_scale, guidance_interval: None takes what the model was exported with; the
                last are the times, from data (0) to noise (1000), at which guidance is on.
            timesteps, sigmas: in place of even steps, where the scheduler takes them; nothing shifts them. Of a flow
                they are times below 1000 or shares of noise below 1, which fall.
            eta: share of fresh noise, where the scheduler takes it (DDIM, flow_ancestral).
            generator: one, or a list with one for each sample: diffusers' way. All starting noise is drawn from it
                first, then what the scheduler adds, batch after batch: with such a scheduler (flow_ancestral, ddpm)
                samples from a single generator depend on batch_size, those from a list do not.
            seed: without a generator: starting noise and a scheduler's of sample i depend on (seed, i) alone, as in
                `python -m ditmoe.sample`.
            latents: starting noise of one's own, of deviation 1 and the model's shape (S, *sample).
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
            height, width, num_frames: the modality's `size` and `frames` by diffusers' names.
            top_k: experts that a token takes, if it is not to be as in training.
            guidance_model: another pipeline, of a weaker model of the same samples, that guidance leads away from.
            first_block_cache: threshold below which later blocks are not run anew (docs/sampling.md); None takes what
                the model was exported with, mostly none.
            callback_on_step_end: called after each step of each batch with the pipeline, the number of the step, its
                time and {"latents": ...}; returns such a dictionary, or None. It may set `pipe._guidance_scale`, and
                `pipe._interrupt = True` to end there: samples whose batch did not begin are left as noise.
            callback_on_step_end_tensor_inputs: what it is to be given.
            words: the modality's own, for samples of another shape than in training, as `points=8192`, and of what is
                given, as `keep=[0, 9]`.

        Raises:
            ValueError: for an unknown label or word, an option that makes no sense, or a scheduler that cannot follow
                the model's process; one line.
        """
        said: dict[str, Any] = {"interval": guidance_interval, "first_block_cache": first_block_cache}
        sampling = Sampling.of(self.memory.config.config, **said)  # of a folder: one line
        steps = sampling.steps if num_inference_steps is None else num_inference_steps
        guidance = sampling.guidance if guidance_scale is None else guidance_scale
        copies = one_of(
            num_images_per_prompt=num_images_per_prompt, num_videos_per_prompt=num_videos_per_prompt
        )
        copies = 1 if copies is None else copies
        self.check_inputs(output_type, guidance, num_samples=num_samples, num_inference_steps=steps,
                          batch_size=batch_size, num_images_per_prompt=copies)  # fmt: skip

        label = one_of(label=label, class_labels=class_labels)
        label, prompts = self._prompts(label, prompt, negative_prompt)
        sizes = size_words(self.modality, height=height, width=width, num_frames=num_frames)
        of_condition, of_shape, of_given = self._split(merged(words, sizes) | prompts)
        asked, negative = self._asked(num_samples, copies, seed, label, of_condition)
        shape = self._shape(len(asked), batch_size, of_shape)
        parts = self._parts(given, of_shape, of_given, strength, given_guidance)
        if parts is not None:
            shape = tuple(parts.given.x.shape[1:])
            if label is None and not self.transformer.conditioning.is_told(of_condition):
                asked = asked.nothing

        prepare = partial(self.prepare_latents, len(asked), generator, seed)
        start = prepare(shape, latents=latents)
        schedule = own_schedule(timesteps=timesteps, sigmas=sigmas)
        options: dict[str, Any] = {
            "steps": steps,
            "interval": sampling.interval,
            "first_block_cache": sampling.first_block_cache,
            "given_guidance": given_guidance,
            "schedule": schedule,
            "step_options": step_options(self.scheduler, eta),
            "weaker": weaker_of(self, guidance_model, guidance),
            "watch": self._watch(callback_on_step_end, callback_on_step_end_tensor_inputs),
        }

        self._guidance_scale, self._interrupt = float(guidance), False
        batches = torch.arange(len(asked)).split(batch_size)
        total = len(batches) * (len(next(iter(schedule.values()))) if schedule else steps)
        with self.progress_bar(total=total) as bar, with_top_k(self.transformer.net, top_k):
            drawn = [
                self._drawn(rows, asked, negative, parts, start, prepare, on_step=bar.update, **options)
                for rows in batches
            ]

        samples = finished(
            torch.cat(drawn), self.modality, output_type, None if parts is None else parts.finish
        )
        self.maybe_free_model_hooks()
        labels = asked.labels(len(self.memory.config.classes))
        return Output(samples=samples, labels=labels) if return_dict else (samples, labels)


Pipeline = DiTMoEPipeline
# A folder names its pipeline's class, which diffusers looks for among its own: there is no other way to tell it.
vars(diffusers)[DiTMoEPipeline.__name__] = DiTMoEPipeline
