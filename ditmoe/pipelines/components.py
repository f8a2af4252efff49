"""The components of a pipeline: diffusers models, built from the configuration beside their weights.

`__module__` makes diffusers write `ditmoe.pipelines` as their module into `model_index.json`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import is_accelerate_available
from torch import Tensor

from ditmoe.checkpoint import manifest
from ditmoe.checkpoint.fit import check_fits
from ditmoe.conditioning import Conditioning
from ditmoe.config import build, facts, trust
from ditmoe.config.limits import check_shape
from ditmoe.diffusion import Sampling
from ditmoe.modality import Modality, PublishedAutoencoder, Tokens
from ditmoe.model import StepEmbedding
from ditmoe.nn import FirstBlockCache
from ditmoe.outside import check_number, is_regular, printable
from ditmoe.pipelines.hub import HUB, folder_of
from ditmoe.pipelines.index import INDEX
from ditmoe.pipelines.trusted_folder import check_folder
from ditmoe.pretrained import weights


class Part(ModelMixin, ConfigMixin):
    """A diffusers model whose file must have all weights; diffusers would leave missing ones at random values."""

    folder: Path | None = None
    """The folder that it was loaded from."""

    @classmethod
    def from_pretrained(cls, name: Any, subfolder: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Load from a folder, or from a `subfolder` of a pipeline's folder or repository on the hub."""
        of_hub = {option: options.pop(option) for option in HUB if option in options}
        variant = options.get("variant")
        folder = (folder_of(name, variant, **of_hub) if subfolder else Path(name)) / (subfolder or "")
        cls._check(folder, variant)
        part = super().from_pretrained(
            str(folder), **({"low_cpu_mem_usage": is_accelerate_available()} | options)
        )
        part.folder = folder
        return part

    @classmethod
    def _check(cls, folder: Path, variant: str | None) -> None:
        check_fits(cls, folder, variant)


class Transformer(Part, PeftAdapterMixin):
    """The backbone, `net`, as a diffusers model: `transformer(x, t, y)` is `net(x, t, y)`.

    `enable_gradient_checkpointing` recomputes the activations within blocks instead of keeping them. `to(dtype)` casts
    all weights and buffers; samples and `Memory` stay in float32.

    Args:
        config: sections "model", "router", "conditioning", and either "modality" (a run) or "tokens" and
            "num_classes" (a converted model).
        data_facts: plain values of the modality's data facts.
        tensors: path -> [shape, type] of data facts that are tensors; their values are in `Memory`.
    """

    __module__ = "ditmoe.pipelines"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        config: dict[str, Any],
        data_facts: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        file = Path("transformer/config.json")
        config = trust.admit(config, list(config), file)
        with build.describing(file):
            if "modality" in config:
                facts.check_known(data_facts, f"the facts of {file}")
                zeros = manifest.join(data_facts or {}, facts.blank(tensors or {}))
                self.net = build.make_model(config, build.make_modality(config, zeros))
            else:
                self.net = weights.make(config)

    @property
    def conditioning(self) -> Conditioning:
        """The embedding of the condition."""
        return self.net.conditioning

    @property
    def tokens(self) -> Tokens:
        """Conversion between samples and tokens; the sampler uses it for given parts."""
        return self.net.tokens

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """Called by `enable_gradient_checkpointing`: blocks keep only their inputs and are recomputed."""
        self.gradient_checkpointing = enable
        for block in self.net.blocks:
            vars(block).pop("forward", None)
            if enable and gradient_checkpointing_func is not None:
                block.forward = partial(gradient_checkpointing_func, block.forward)

    @property
    def step_embedding(self) -> StepEmbedding | None:
        """The step embedding of a model distilled for few steps; else None."""
        return self.net.step_embedding

    def forward(self, x: Tensor, t: Tensor, y: Any, cache: FirstBlockCache | None = None) -> Any:
        """Predictions in the dtype of x, whatever that of the weights, and the routings."""
        # As in training: matrix products in half precision, samples in float32.
        half = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, self.dtype, enabled=half):
            output, routings = self.net(x if half else x.to(self.dtype), t, y, cache=cache)
        return output.to(x.dtype), routings


class Memory(Part):
    """What a pipeline needs besides the model's weights: modality, data facts, process and sampling options.

    Args:
        config: sections "process" and "sampling", and "modality" unless the pipeline returns latents.
        data_facts: plain values of the modality's data facts.
        tensors: path -> [shape, type] of data facts that are tensors (a codec's); they are buffers of this model.
        shape: of a sample in the model's space.
        classes: their names.
    """

    __module__ = "ditmoe.pipelines"

    @register_to_config
    def __init__(
        self,
        config: dict[str, Any],
        data_facts: dict[str, Any],
        tensors: dict[str, Any],
        shape: list[int],
        classes: list[str],
    ) -> None:
        super().__init__()
        file = Path("memory/config.json")
        self.admitted = trust.admit(config, list(config), file)
        facts.check_known(data_facts, "facts")
        if not isinstance(classes, list) or not all(type(n) is str and printable(n) == n for n in classes):
            raise ValueError(f"{file} must have a list of printable names as its classes")
        facts.check_known({"classes": classes}, str(file))
        with build.describing(file):
            check_shape(shape)
            zeros = facts.blank(tensors)
            manifest.join(data_facts, zeros)  # paths must fit
            self.names = sorted(zeros)  # JSON sorts them too
            for index, name in enumerate(self.names):
                self.register_buffer(f"fact{index}", zeros[name])
            check_number("given", self.admitted.get("given", 0), 0, 1)
            build.make_whole(self.admitted["process"])
            Sampling(**self.admitted["sampling"])
        self.register_buffer("empty", torch.zeros(1))  # without any tensor no file would be written

    @classmethod
    def from_pretrained(cls, name: Any, subfolder: str | None = None, **options: Any) -> "Memory":
        """Load in float32 whatever the dtype of the transformer: a rounded codec would blur every image."""
        for option in ("dtype", "torch_dtype"):
            options.pop(option, None)
        return super().from_pretrained(name, subfolder, **options)

    @classmethod
    def _check(cls, folder: Path, variant: str | None) -> None:
        """Checks the whole pipeline's folder first, since diffusers' own `from_pretrained` also comes here."""
        if is_regular((whole := folder.absolute().parent) / INDEX):
            check_folder(whole, variant)
        super()._check(folder, variant)

    def _apply(self, fn: Any, recurse: bool = True) -> "Memory":
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(kept, recurse)

    def modality(self, autoencoder: Any = None) -> Modality | None:
        """The modality with its data facts and this autoencoder; None if the pipeline returns latents."""
        if "modality" not in self.admitted:
            return None
        tensors = {name: getattr(self, f"fact{i}").cpu() for i, name in enumerate(self.names)}
        with build.describing("memory/config.json"):
            data_facts = manifest.join(dict(self.config.data_facts), tensors)
            modality = build.make_modality(self.admitted, data_facts)
            modality.check_facts()
        if isinstance(modality, PublishedAutoencoder):
            modality.attach(autoencoder)
        elif autoencoder is not None:
            raise ValueError(f"vae must be None: modality {modality.name} takes none")
        return modality
