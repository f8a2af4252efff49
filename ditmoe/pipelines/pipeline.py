"""A trained or converted model as a diffusers pipeline.

pipe = ditmoe.Pipeline.from_pretrained("chairs/")        # a folder that `python -m ditmoe.export` wrote, or a run's
pipe(label="chair", num_samples=4, num_inference_steps=50, guidance_scale=1.5).samples
pipe("a chair with four legs", negative_prompt="an armchair")    # a text-conditional model
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import is_accelerate_available
from torch import Tensor

from ditmoe import checkpoint
from ditmoe.config import build
from ditmoe.config.trust import Trust
from ditmoe.diffusion import Sampling, try_scheduler
from ditmoe.diffusion.schedulers import EvenDDIMScheduler, FlowAncestralScheduler, FlowMapScheduler
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
from ditmoe.pipelines.hub import HUB, UPLOAD, folder_of, upload
from ditmoe.pipelines.index import INDEX, introduce, write_index
from ditmoe.pipelines.interface import own_config, process_options
from ditmoe.pipelines.output import Output, finished
from ditmoe.pipelines.request import Request
from ditmoe.pipelines.trusted_folder import LORA, check_folder, check_index

FIXED = {"use_safetensors": True, "trust_remote_code": False, "custom_pipeline": None}
"""Options of diffusers that callers may not change."""


class DiTMoEPipeline(Request, Adapters, DiffusionPipeline):
    """Generates images, point clouds or videos; the modality defines what a sample is.

    `python -m ditmoe.sample` with the same seed gives the same samples bit for bit. Device placement, offloading,
    progress bar, scheduler swaps and `save_pretrained` are those of diffusers, whose
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` also opens its folders.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  (diffusers adds it to a list)

    def __init__(self, transformer: Transformer, scheduler: Any, memory: Memory, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(memory=memory, transformer=transformer, scheduler=scheduler, vae=vae)
        self._modality = None
        folder, memory.folder = memory.folder, None  # once: other pipelines of these parts share the adapters
        if folder is not None and is_regular(folder.parent / LORA):
            self.load_lora_weights(folder.parent)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "scheduler":
            if not isinstance(value, SchedulerMixin):  # from_config of a deprecated class returns None
                raise ValueError(f"scheduler must be a scheduler of diffusers, got {value!r}")
            # A scheduler of another class made from this one's configuration must fit the process, too.
            options = process_options(value, self.process)
            value.register_to_config(**{k: v for k, v in options.items() if k not in value.config})

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "DiTMoEPipeline":  # type: ignore[override]
        """Open a folder that `export` or `save_pretrained` wrote, a run, or a "user/repository" of the hub.

        Nothing in it is executed. From a repository of the Hugging Face hub only the files that are read here are
        downloaded. A run is its folder, a checkpoint in it, or a starter model such as "starter/image".

        Args:
            revision, token, cache_dir, local_files_only, force_download: for a repository, as in `huggingface_hub`.
            text_encoder: for a text-conditional model whose encoder is not an installed package: a folder, a name on
                the hub, or a `ditmoe.text.Pretrained`. It must be the encoder of the training.
            trust: paths and hub names that a run's checkpoint may open, see `ditmoe.config.trust`.
            options: further options of diffusers, such as dtype and variant; for a run, dtype alone.

        Raises:
            FileNotFoundError, ValueError: with one line, if there is no pipeline, or it names code that is not trusted.
        """
        for option, only in FIXED.items():
            if (given := options.pop(option, only)) != only:
                raise ValueError(f"{option} must be {only}: a folder runs no code; got {given!r}")
        encoder = options.pop("text_encoder", None)
        try:
            is_run = not is_regular(Path(name) / INDEX) and checkpoint.exists(name)
            pipe = cls._of_run(name, **options) if is_run else cls._of_folder(name, **options)
            # so that data facts that cannot decode samples fail here, not after sampling
            _ = pipe.modality
            if encoder is not None:
                if not (use := getattr(pipe.transformer.conditioning, "use", None)):
                    raise ValueError("text_encoder must be left out: this model is not conditioned on text")
                use(encoder)
            return pipe
        except (torch.OutOfMemoryError, FileNotFoundError):
            raise
        except Exception as error:  # diffusers raises many kinds of errors, with long messages
            raise ValueError(printable(" ".join(str(error).split()))) from error

    @classmethod
    def _of_folder(cls, name: str | Path, **options: Any) -> "DiTMoEPipeline":
        of_hub = {option: options.pop(option) for option in HUB if option in options}
        folder = folder_of(name, options.get("variant"), **of_hub)
        check_folder(folder, options.get("variant"))
        options = {"low_cpu_mem_usage": is_accelerate_available()} | options
        pipe = super().from_pretrained(str(folder), **FIXED, **options)
        with build.describing(folder / "scheduler"):
            try_scheduler(pipe.scheduler, pipe.process)
        return pipe

    @classmethod
    def _of_run(cls, name: str | Path, trust: Trust = False, **options: Any) -> "DiTMoEPipeline":
        from ditmoe.pipelines.export import opened

        dtype = options.pop("torch_dtype", options.pop("dtype", None))
        if options:
            raise ValueError(
                f"{', '.join(options)} must be left out: {printable(name)} is a run, which takes dtype, "
                "text_encoder and trust"
            )
        pipe = opened(name, trust)
        return pipe if dtype is None else pipe.to(dtype)

    @classmethod
    def load_config(cls, *args: Any, **options: Any) -> Any:
        """The index, with the name of this class alone: by the name of its file, diffusers would run that."""
        config = super().load_config(*args, **options)
        return config | {"_class_name": cls.__name__} if isinstance(config, dict) else config

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> None:
        """Write the index, and the file that diffusers runs if a person trusts the folder."""
        super().save_config(save_directory, push_to_hub, **options)
        write_index(Path(save_directory))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """The components of an index, with `memory` first.

        `DiffusionPipeline.from_pretrained` calls this before it loads anything, so the checks apply there, too: classes
        are checked here, the folder when `memory` is loaded.
        """
        if "memory" in config_dict:
            check_index(config_dict, Path(INDEX))
        first, *others = super().extract_init_dict(config_dict, **options)
        return {name: first[name] for name in sorted(first, key="memory".__ne__)}, *others

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        safe_serialization: bool = True,
        *,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Save to a folder that `from_pretrained` opens, with diffusers' options: variants, shards.

        Active adapters are saved to a separate file and are active again after loading.

        Args:
            push_to_hub: also upload it, with a model card unless there is one; `repo_id` (default: the folder's name),
                `private`, `token`, `commit_message` and `create_pr` are those of diffusers.

        Raises:
            ValueError: for weights in a format other than safetensors.
            ConnectionError: with one line, if the hub does not take it.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization must be True: pickled weights run code, and from_pretrained refuses them"
            )
        of_hub = {option: options.pop(option) for option in UPLOAD if option in options}
        with own_config(self.scheduler, self.process), self.without_lora():
            super().save_pretrained(str(folder), **options)
        (Path(folder) / LORA).unlink(missing_ok=True)  # from an earlier pipeline in this folder
        if self.get_active_adapters():
            self.save_lora_weights(folder)
        if push_to_hub:
            repository = of_hub.pop("repo_id", Path(folder).absolute().name)
            kind = "diffusion" if self.modality is None else self.modality.name
            upload(Path(folder), repository, kind, self.memory.config.classes, **of_hub)

    def push_to_hub(self, repo_id: str, **options: Any) -> None:  # type: ignore[override]
        """Upload to a repository of the hub, with the options of `save_pretrained`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer."""
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
        """Generate samples.

        Args:
            label: a class by name or index, "none" for the null class, "random", or a list of these, one for each
                sample; None: all classes in turn. For a text-conditional model, any other text is a prompt.
            class_labels: the same under the name of diffusers' DiT pipeline.
            num_samples: number of samples, unless there is a list of labels.
            num_images_per_prompt, num_videos_per_prompt: number of consecutive samples for each of these.
            num_inference_steps, guidance_scale, guidance_interval: None: as exported. The interval is the times, from
                data (0) to noise (1000), at which guidance is on.
            timesteps, sigmas: a custom decreasing schedule, if the scheduler supports it; it is not shifted. For flow
                matching, times below 1000 or noise levels below 1.
            eta: share of fresh noise, if the scheduler supports it (DDIM, flow_ancestral).
            generator: one, or a list with one for each sample, as in diffusers. The initial noise of all samples is
                drawn first, then the scheduler's noise batch by batch. With a stochastic scheduler (flow_ancestral,
                ddpm), samples from a single generator depend on batch_size; those from a list do not.
            seed: used without a generator: the initial noise and the scheduler's noise of sample i depend on (seed, i)
                only, as in `python -m ditmoe.sample`.
            latents: initial noise of standard deviation 1 and of the model's shape (S, *sample).
            batch_size: samples per batch.
            output_type: "pil": images, lists of images for videos, arrays for other modalities. "np": (S, H, W, 3) in
                [0, 1], videos (S, T, H, W, 3), point clouds in data units (colours and normals after x, y, z). "pt":
                the same as tensors, with channels before H. "latent": in the model's space.
            return_dict: whether to return an `Output` or a tuple of its fields.
            given: the known part of each sample: a path or paths, or arrays in data units (docs/given.md).
            given_guidance: guidance scale of the given parts.
            strength: noise level, as a share, from which given samples are changed.
            prompt: for a text-conditional model: a sentence, or a list with one for each sample.
            negative_prompt: condition of the second prediction of guidance, in place of the null condition.
            height, width, num_frames: the modality's `size` and `frames` under diffusers' names.
            top_k: experts per token; None: as in training.
            guidance_model: another pipeline, with a weaker model of the same samples, for autoguidance.
            first_block_cache: threshold below which later blocks are not recomputed (docs/sampling.md); None: as
                exported, usually off.
            callback_on_step_end: called after each step of each batch with the pipeline, the step's index, its time
                and {"latents": ...}; returns such a dictionary, or None. It may set `pipe._guidance_scale`, and
                `pipe._interrupt = True` to stop: samples of batches that did not start remain noise.
            callback_on_step_end_tensor_inputs: names of the tensors for the callback.
            words: options of the modality, for another shape than in training, such as `points=8192`, and for given
                parts, such as `keep=[0, 9]`.

        Raises:
            ValueError: with one line, for an unknown label or option, an invalid value, or a scheduler that does not
                support the model's process.
        """
        overrides: dict[str, Any] = {"interval": guidance_interval, "first_block_cache": first_block_cache}
        sampling = Sampling.of(self.memory.config.config, **overrides)
        steps = sampling.steps if num_inference_steps is None else num_inference_steps
        guidance = sampling.guidance if guidance_scale is None else guidance_scale
        copies = one_of(
            num_images_per_prompt=num_images_per_prompt, num_videos_per_prompt=num_videos_per_prompt
        )
        copies = 1 if copies is None else copies
        self.check_inputs(output_type, guidance, steps, seed, num_samples=num_samples, batch_size=batch_size,
                          num_images_per_prompt=copies)  # fmt: skip

        num_samples, steps, batch_size, seed = map(int, (num_samples, steps, batch_size, seed))  # not NumPy's
        guidance = float(guidance)
        label = one_of(label=label, class_labels=class_labels)
        label, prompts = self._prompts(label, prompt, negative_prompt)
        sizes = size_words(self.modality, height=height, width=width, num_frames=num_frames)
        of_condition, of_shape, of_given = self._split(merged(words, sizes) | prompts)
        self._shape(num_samples * int(copies), batch_size, of_shape)  # before there is a label of each
        asked, negative = self._asked(num_samples, int(copies), seed, label, of_condition)
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
        batches = torch.arange(len(asked)).split(min(batch_size, len(asked)))
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
introduce(
    DiTMoEPipeline,
    *(Transformer, Memory, EvenDDIMScheduler, FlowAncestralScheduler, FlowMapScheduler),
)
