"""A trained or converted model as a pipeline of diffusers.

pipe = ditmoe.Pipeline.from_pretrained("chairs/")        # a folder that `python -m ditmoe.export` wrote
pipe(label="chair", num_samples=4, num_inference_steps=50, guidance_scale=1.5).samples
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe import build, scheduler, weights
from ditmoe.modality import Modality, Samples
from ditmoe.process import Process
from ditmoe.sample import make_labels
from ditmoe.sampler import denoise, draw_noise
from ditmoe.seeding import torch_generator

OUTPUTS = ("pil", "np", "pt", "latent")


class Transformer(ModelMixin, ConfigMixin):
    """The backbone, `net`, as a model of diffusers: `transformer(x, t, y)` is `net(x, t, y)`.

    Args:
        config: what builds it: "model", "router", and either "modality" (a run) or "tokens" and "num_classes" (a
            converted model).
        facts: what the modality must know of its data, plain values.
    """

    _no_split_modules = ["Block"]  # noqa: RUF012

    @register_to_config
    def __init__(self, config: dict[str, Any], facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        build.check_trusted(config, Path("transformer/config.json"))
        if "modality" in config:
            self.net = build.make_model(config, build.make_modality(config, facts))
        else:
            self.net = weights.make(config)

    @property
    def num_classes(self) -> int:
        return self.net.num_classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Any:
        """Predictions in the type of x, whatever that of the weights is, and the routings."""
        output, routings = self.net(x.to(self.dtype), t, y)
        return output.to(x.dtype), routings


class Memory(ModelMixin, ConfigMixin):
    """What a model must remember beside its weights: how its samples become data, and how they are drawn.

    Args:
        config: "process" and "sampling"; "modality", unless it is to give latents alone.
        facts: of the modality, plain values.
        tensors: name -> shape of those facts that are tensors (a codec's), which are its buffers.
        shape, classes: of a sample as the model sees it; names of the classes.
    """

    @register_to_config
    def __init__(
        self,
        config: dict[str, Any],
        facts: dict[str, Any],
        tensors: dict[str, list[int]],
        shape: list[int],
        classes: list[str],
    ) -> None:
        super().__init__()
        build.check_trusted(config, Path("memory/config.json"))
        self.names = sorted(tensors)  # JSON sorts them too
        for index, name in enumerate(self.names):
            self.register_buffer(f"fact{index}", torch.zeros(tensors[name]))
        self.register_buffer("empty", torch.zeros(1))  # without any tensor there would be no file

    def modality(self, autoencoder: Any = None) -> Modality | None:
        """The modality, with its facts and this autoencoder."""
        if "modality" not in self.config.config:
            return None
        facts = dict(self.config.facts)
        codec = {name: getattr(self, f"fact{i}").float().cpu() for i, name in enumerate(self.names)}
        modality = build.make_modality(self.config.config, facts | ({"codec": codec} if codec else {}))
        if autoencoder is not None:
            modality.attach(autoencoder)
        return modality


@dataclass
class Output(BaseOutput):
    """What a pipeline drew.

    Attributes:
        samples: pictures (PIL), arrays (S, *sample) or tensors, as asked for.
        labels: (S,) class indices.
    """

    samples: Any
    labels: Tensor


class Pipeline(DiffusionPipeline):
    """Draws images, clouds or clips: one class for all, since the modality knows what a sample is.

    `python -m ditmoe.sample` with the same seed gives the same samples bit for bit. Moving, offloading, progress bar,
    scheduler swaps and `save_pretrained` are those of diffusers. LoRA is not: diffusers' adapters serve linear layers,
    and the experts are stacked tensors.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  (diffusers adds it to a list)

    def __init__(self, transformer: Transformer, scheduler: Any, memory: Memory, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, memory=memory, vae=vae)
        self._modality = memory.modality(vae)  # at once: what it remembers should keep its digits

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Pipeline":  # type: ignore[override]
        """Open a folder that `export` or `save_pretrained` wrote; nothing in it is executed.

        Raises:
            FileNotFoundError, ValueError: one line, if there is none, or it names code that is not trusted.
        """
        check_folder(Path(folder))
        options = {"low_cpu_mem_usage": False} | options
        if isinstance(dtype := options.get("torch_dtype"), torch.dtype):
            options["torch_dtype"] = {"default": dtype, "memory": torch.float32}
        return super().from_pretrained(str(folder), use_safetensors=True, **options)

    @property
    def modality(self) -> Modality | None:
        """What samples are; None where a converted model came without an autoencoder, and gives latents."""
        return self._modality

    @property
    def process(self) -> Process:
        """What the model predicts."""
        return build.make(dict(self.memory.config.config["process"]))

    @torch.no_grad()
    def __call__(
        self,
        label: str | int | Sequence[str | int] | None = None,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw samples.

        Args:
            label: a class by name or index, one for each sample, "none" for the null class; None takes all classes
                in turn.
            num_samples: how many, unless there is a list of labels.
            num_inference_steps, guidance_scale: None takes what the model was exported with.
            generator: of the noise, as everywhere in diffusers. Without one, sample i depends on (seed, i) alone.
            batch_size: samples at a time.
            output_type: "pil" (pictures; arrays of what is none), "np" (data units), "pt" (the same as tensors), or
                "latent" (as the model has them).
            return_dict: an `Output`, or its parts.

        Raises:
            ValueError: for an unknown label, or an option that makes no sense; one line.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        labels = self._labels(label, num_samples)
        sampling = self.memory.config.config["sampling"]
        steps = sampling["steps"] if num_inference_steps is None else num_inference_steps
        guidance = sampling["guidance"] if guidance_scale is None else guidance_scale
        if min(steps, batch_size) < 1:
            raise ValueError(
                f"num_inference_steps and batch_size must be at least 1, got {steps} and {batch_size}"
            )
        batches, parts = torch.arange(len(labels)).split(batch_size), []
        with self.progress_bar(total=len(batches) * steps) as bar:
            for rows in batches:
                noise, generators = self._noise(rows.tolist(), generator, seed)
                x = denoise(
                    self.transformer,
                    self.process,
                    self.scheduler,
                    noise.to(self._execution_device),
                    labels[rows].to(self._execution_device),
                    steps=steps,
                    guidance=guidance,
                    interval=sampling.get("interval", (0.0, 1000.0)),
                    generators=generators,
                    on_step=bar.update,
                )
                parts.append(x.cpu())
        samples = self._finished(torch.cat(parts), labels, output_type)
        self.maybe_free_model_hooks()
        return Output(samples=samples, labels=labels) if return_dict else (samples, labels)

    def _labels(self, label: Any, num: int) -> Tensor:
        classes = self.memory.config.classes
        if isinstance(label, Sequence) and not isinstance(label, str):
            return torch.cat([self._labels(one, 1) for one in label])
        return make_labels(classes, num, label)

    def _noise(self, indices: list[int], generator: Any, seed: int) -> tuple[Tensor, Any]:
        shape = tuple(self.memory.config.shape)
        if generator is None:
            noise = draw_noise(indices, shape, seed)
            return noise, [torch_generator("scheduler", seed, i) for i in indices]
        if isinstance(generator, list):
            generator = [generator[i] for i in indices]
        return randn_tensor((len(indices), *shape), generator=generator, dtype=torch.float32), generator

    def _finished(self, x: Tensor, labels: Tensor, output_type: str) -> Any:
        if output_type == "latent" or self.modality is None:
            return x
        samples: Samples = self.modality.decode(x, labels)
        if output_type == "pt":
            return torch.from_numpy(samples.data)
        if output_type == "pil" and samples.data.ndim == 4 and samples.data.dtype == "uint8":
            return self.numpy_to_pil(samples.data / 255)
        return samples.data


def check_folder(folder: Path) -> None:
    """Refuse a folder that names anything but our classes and those of diffusers, before any is looked up.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} must be a folder that export wrote, but it holds no model_index.json"
        )
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON, or is damaged") from error
    for name, value in index.items():
        if isinstance(value, list) and value != [None, None] and not _is_known(name, value):
            raise ValueError(f"{file} names what is not trusted, refused: {name} = {value}")
    for part in ("transformer", "scheduler", "memory"):
        if part not in index:
            raise ValueError(f"{file} was not written by export: it lacks {part}")


def _is_known(name: str, value: list[Any]) -> bool:
    module, kind = value if len(value) == 2 else (None, None)
    ours = {"transformer": Transformer, "memory": Memory}
    if name in ours:
        return (module, kind) == (ours[name].__module__, ours[name].__name__)
    if name == "scheduler" and module == scheduler.__name__:
        return isinstance(getattr(scheduler, str(kind), None), type)
    suffix = {"scheduler": "Scheduler", "vae": ""}.get(name)
    prefix = {"scheduler": "", "vae": "Autoencoder"}.get(name)
    return (
        module == "diffusers"
        and isinstance(kind, str)
        and suffix is not None
        and kind.startswith(str(prefix))
        and kind.endswith(suffix)
        and hasattr(diffusers, kind)
    )
