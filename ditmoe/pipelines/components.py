"""What a pipeline is made of: models of diffusers, built from the configuration that lies beside their weights.

Folders name the room and these classes: `__module__` says so to diffusers.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
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
from ditmoe.pipelines.trusted_folder import INDEX, check_folder
from ditmoe.pretrained import weights


class Part(ModelMixin, ConfigMixin):
    """A model of diffusers that is loaded whole: diffusers would leave what a file lacks at random values."""

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Any:  # type: ignore[override]
        check_fits(cls, Path(folder), options.get("variant"))
        return super().from_pretrained(folder, **options)


class Transformer(Part, PeftAdapterMixin):
    """The backbone, `net`, as a model of diffusers: `transformer(x, t, y)` is `net(x, t, y)`.

    `enable_gradient_checkpointing` computes blocks twice in place of keeping what is within them. `to(dtype)` casts all
    weights and buffers, which then take that memory; samples stay in float32 all the same, and so does `Memory`.

    Args:
        config: what builds it: "model", "router", "conditioning", and either "modality" (a run) or "tokens" and
            "num_classes" (a converted model).
        data_facts: what the modality must know of its data, plain values.
        tensors: path -> [shape, type] of those facts that are tensors; their values are the memory's.
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
        """What embeds what is asked for."""
        return self.net.conditioning

    @property
    def tokens(self) -> Tokens:
        """What cuts samples into tokens; the sampler asks it where something is given."""
        return self.net.tokens

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """What `enable_gradient_checkpointing` calls: blocks keep their inputs alone, and are computed again."""
        self.gradient_checkpointing = enable
        for block in self.net.blocks:
            vars(block).pop("forward", None)
            if enable and gradient_checkpointing_func is not None:
                block.forward = partial(gradient_checkpointing_func, block.forward)

    @property
    def step_embedding(self) -> StepEmbedding | None:
        """What a model that was distilled for few steps is told of them."""
        return self.net.step_embedding

    def forward(self, x: Tensor, t: Tensor, y: Any, cache: FirstBlockCache | None = None) -> Any:
        """Predictions in the type of x, whatever that of the weights is, and the routings."""
        # As in training: samples keep their digits, products do not.
        half = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, self.dtype, enabled=half):
            output, routings = self.net(x if half else x.to(self.dtype), t, y, cache=cache)
        return output.to(x.dtype), routings


class Memory(Part):
    """What a model must remember beside its weights: how its samples become data, and how they are drawn.

    Args:
        config: "process" and "sampling"; "modality", unless it is to give latents alone.
        data_facts: of the modality, plain values.
        tensors: path -> [shape, type] of those facts that are tensors (a codec's), which are its buffers.
        shape, classes: of a sample as the model sees it; names of the classes.
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
            raise ValueError(f"{file} must have a list of names that can be shown as its classes")
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
        self.register_buffer("empty", torch.zeros(1))  # without any tensor there would be no file

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> "Memory":
        """In float32 whatever the transformer is in: a rounded codec would blur every picture.

        A whole pipeline's folder is looked through first, since diffusers' own `from_pretrained` comes here, too.
        """
        if is_regular((whole := Path(folder).absolute().parent) / INDEX):
            check_folder(whole, options.get("variant"))
        kept = {name: value for name, value in options.items() if name not in ("dtype", "torch_dtype")}
        return super().from_pretrained(folder, **kept)

    def _apply(self, fn: Any, recurse: bool = True) -> "Memory":
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(kept, recurse)

    def modality(self, autoencoder: Any = None) -> Modality | None:
        """The modality, with its facts and this autoencoder."""
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
            raise ValueError(f"{modality.name} has no autoencoder to be replaced")
        return modality
