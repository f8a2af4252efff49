"""LoRA on a pipeline with diffusers' method names, for matrices and stacked experts; peft is not needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ditmoe.nn import lora
from ditmoe.outside import check_number, printable
from ditmoe.pipelines import lora_files
from ditmoe.pipelines.hub import HUB, lora_of


class Adapters:
    """A base class of the pipeline that loads, selects, weights, fuses and saves LoRA adapters.

    The model's weights do not change before `fuse_lora`; `unload_lora_weights` restores them bit for bit.
    """

    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        **options: Any,
    ) -> None:
        """Add an adapter and activate it; other adapters do not change.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder or a repository of the hub with one, or
                its tensors.
            adapter_name: None: "default", "default_1" and so on.
            weight_name: name of the file in the folder; None: `pytorch_lora_weights.safetensors`.
            options: for a repository, those of `from_pretrained`.

        Raises:
            FileNotFoundError, ValueError: with one line, if the file is missing or does not fit this model.
        """
        if unknown := [option for option in options if option not in HUB]:
            raise ValueError(f"load_lora_weights takes {', '.join(HUB)}, got {unknown[0]}")
        place = pretrained_model_name_or_path_or_dict
        place = lora_of(place, weight_name or lora_files.LORA, **options)
        net, state = self.transformer.net, lora_files.read(place, weight_name)
        own = self._names()
        free = (f"default_{i}" if i else "default" for i in range(len(own) + 1))
        name = adapter_name or next(each for each in free if each not in own)
        if not isinstance(name, str) or name != printable(name) or name in own:
            raise ValueError(f"adapter_name must be printable and not in use, got {name!r}")
        here = {lora.plain_name(each)[0] for each, _ in net.named_parameters()}
        for place, (down, up) in state.items():
            if place not in here or not lora.adaptable(net, place):
                raise ValueError(f"LoRA of {printable(place)} fits no matrix of this model")
            module, last = lora.owner(net, place)
            shape = tuple(getattr(module, last).shape)
            if lora.product_shape(down.shape, up.shape) != shape:
                got = f"{tuple(up.shape)} by {tuple(down.shape)}"
                raise ValueError(f"LoRA of {printable(place)} must be of shape {shape}, got {got}")
            kind = getattr(module, last).dtype
            if lora.overflows(down.to(kind), up.to(kind)):
                raise ValueError(
                    f"LoRA of {printable(place)} must have a finite product B A in {kind}, got infinity"
                )
        for place, (down, up) in state.items():
            weight = getattr(*lora.owner(net, place))
            own_down, own_up = (x.to(weight.device, weight.dtype) for x in (down, up))
            low = lora.LowRank(own_down, own_up, name=name)
            lora.add(net, place, low.requires_grad_(False))

    def save_lora_weights(self, save_directory: str | Path, weight_name: str | None = None) -> Path:
        """Write the active adapters, several of them as their sum, to a safetensors file; returns its path.

        Raises:
            ValueError: if no adapter is active.
        """
        import torch

        state = {}
        for place, _, _, lows in lora.adapted(self.transformer.net):
            if active := [low for low in lows if low.scale]:
                down = torch.cat([low.lora_A for low in active], dim=-2)
                state[place] = down, torch.cat([low.scale * low.lora_B for low in active], dim=-1)
        if not state:
            raise ValueError("save_lora_weights needs an active adapter, got none")
        return lora_files.write(save_directory, lora_files.file_state(state), weight_name)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all adapters, by component; an empty dictionary without any."""
        return {"transformer": names} if (names := self._names()) else {}

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters with a weight other than 0."""
        return list(dict.fromkeys(low.name for low in self._lows() if low.scale))

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Activate these adapters with these weights, by default 1, and deactivate all others.

        Raises:
            ValueError: for an unknown name, a weight that is not a number, or a wrong number of weights.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = 1.0 if adapter_weights is None else adapter_weights
        each = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
        if len(each) != len(names):
            raise ValueError(
                f"adapter_weights must be one for each of {len(names)} adapters, got {len(each)}"
            )
        for name, weight in zip(names, each, strict=True):
            check_number(f"the weight of adapter {printable(name)}", weight)
        self._check_loaded(names)
        chosen = dict(zip(names, each, strict=True))
        for low in self._lows():
            low.scale, low.disabled = float(chosen.get(low.name, 0.0)), None

    def disable_lora(self) -> None:
        """Deactivate all adapters; `enable_lora` activates them again with their weights."""
        for low in self._lows():
            low.disabled = low.scale if low.disabled is None else low.disabled
            low.scale = 0.0

    def enable_lora(self) -> None:
        """Undo `disable_lora`."""
        for low in self._lows():
            if low.disabled is not None:
                low.scale, low.disabled = low.disabled, None

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Merge adapters into the weights, which removes their cost; `unfuse_lora` undoes it.

        The weights before are kept on the CPU until `unfuse_lora` or `unload_lora_weights`.

        Args:
            components: ["transformer"]; None: the same.
            safe_fusing: an adapter whose product is not finite is never loaded, so this changes nothing.
            adapter_names: None: the active ones.
        """
        _check_components(components)
        check_number("lora_scale", lora_scale)
        names = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        self._check_loaded(names)
        kept: dict[str, Any] = vars(self.transformer).setdefault("fused", {})
        for place, _, _, lows in lora.adapted(self.transformer.net):
            if fused := [low for low in lows if low.name in names]:
                weight = lora.original(self.transformer.net, place).detach()
                before, earlier = kept.get(place) or (weight.to("cpu", copy=True), [])
                kept[place] = before, [*earlier, *((low, low.scale) for low in fused)]
                for low in fused:
                    low.scale *= lora_scale
        self._remove(names, merge=True)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Undo all `fuse_lora`: weights as before, bit for bit, and the adapters beside them."""
        _check_components(components)
        net, present = self.transformer.net, self._names()
        for place, (before, lows) in vars(self.transformer).pop("fused", {}).items():
            weight = lora.original(net, place)
            weight.data.copy_(before)
            for low, scale in lows:
                low.scale = scale
                if low.name not in present:  # it may have been loaded anew
                    lora.add(net, place, low.to(weight))

    @property
    def num_fused_loras(self) -> int:
        """Number of adapters that are merged into the weights and can be taken out again."""
        fused = vars(self.transformer).get("fused", {}).values()
        return len({low.name for _, lows in fused for low, _ in lows})

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove these adapters.

        Raises:
            ValueError: for an unknown name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_loaded(names)
        self._remove(names)

    def unload_lora_weights(self) -> None:
        """Remove all adapters; the original weights remain, with what was fused into them."""
        lora.remove(self.transformer.net, merge=False)
        vars(self.transformer).pop("fused", None)

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Remove all adapters within this context, so that parameters have their original names."""
        net = self.transformer.net
        kept = [(place, lows) for place, _, _, lows in lora.adapted(net)]
        lora.remove(net, merge=False)
        try:
            yield
        finally:
            for place, lows in kept:
                for low in lows:
                    lora.add(net, place, low)

    def _lows(self) -> list[lora.LowRank]:
        return [low for *_, lows in lora.adapted(self.transformer.net) for low in lows]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(low.name for low in self._lows()))

    def _check_loaded(self, names: Sequence[Any]) -> None:
        for name in names:
            if name not in (own := self._names()):
                known = ", ".join(own) or "none"
                raise ValueError(f"adapter_names must be loaded adapters ({known}), got {name!r}")

    def _remove(self, names: Sequence[str], merge: bool = False) -> None:
        """Remove these adapters alone, merged into the weights or not."""
        net, others = self.transformer.net, []
        for place, _, _, lows in lora.adapted(net):
            others += [(place, low, low.scale) for low in lows if low.name not in names]
        for _, low, _ in others:
            low.scale = 0.0
        lora.remove(net, merge=merge)
        for place, low, scale in others:
            low.scale = scale
            lora.add(net, place, low)


def _check_components(components: Any) -> None:
    if components is not None and list(components) != ["transformer"]:
        raise ValueError(f"components must be ['transformer'], got {components!r}")
