"""Published diffusers autoencoders: how they are loaded, and how their latents are normalised."""

from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.checkpoint.fit import CONFIG, check_fits
from ditmoe.outside import printable, read_json
from modalities.latent.codec import Codec, Latents, Pixels, is_finite


class Published(Codec):
    """A diffusers autoencoder, whose weights are referenced by path and never stored in checkpoints.

        z = (raw - mean) scale

    mean and scale are latents_mean and scaling_factor / latents_std per channel if the model has these statistics,
    else shift_factor and scaling_factor. A posterior is replaced by its mode: encoding is deterministic.

    Args:
        path: a folder that `save_pretrained` wrote, a name on the Hugging Face hub, or the loaded model itself.
        subfolder: subfolder of `path` that has the model ("vae" in a pipeline's folder).

    Raises:
        ValueError: if it is not an autoencoder of a `known` class, or cannot be loaded.
    """

    known: ClassVar[Sequence[str]]
    opens: ClassVar[Sequence[str]] = ("path",)
    mean: Tensor
    scale: Tensor
    model: Any

    def __init__(self, path: str | PathLike | nn.Module, subfolder: str | None = None) -> None:
        super().__init__()
        model: Any = path
        if not isinstance(path, nn.Module):
            model = load(fspath(path), subfolder, self.known)
        check_finite(model)  # also for a model loaded from a pipeline's folder
        self.model = model.eval().requires_grad_(False)
        axes, config = len(self.stride), model.config
        mean, deviation = (statistic(model, name) for name in ("latents_mean", "latents_std"))
        self.register_buffer("mean", _spread(config.get("shift_factor") if mean is None else mean, 0.0, axes))
        scale = _spread(config.get("scaling_factor"), 1.0, axes) / _spread(deviation, 1.0, axes)
        self.register_buffer("scale", scale)
        self.check_range()

    def check_range(self) -> None:
        """Raise ValueError if the statistics are of no use; the model is not tried, which may take long."""
        if not (is_finite(self.mean) and is_finite(self.scale) and is_finite(1 / self.scale)):
            raise ValueError("the statistics of an autoencoder's latents must be finite, and its scale not 0")

    def encode(self, x: Pixels) -> Latents:
        self.shape(x.shape[2:])
        return (self._raw(x).to(x) - self.mean) * self.scale

    def decode(self, z: Latents) -> Pixels:
        raw = (z / self.scale + self.mean).to(self._place(), self.model.dtype)
        with torch.no_grad():
            return self._pixels(raw).to(z)

    def _place(self) -> torch.device:
        """The model's execution device, which differs from where its weights are while a pipeline offloads it."""
        return getattr(getattr(self.model, "_hf_hook", None), "execution_device", None) or self.model.device

    @torch.no_grad()
    def modes(self, x: Float[Tensor, "N C *size"]) -> Float[Tensor, "N L *cells"]:
        """Encode by the model's own `encode`, taking the mode where it gives a posterior."""
        out = self.model.encode(x.to(self._place(), self.model.dtype))
        if hasattr(out, "latent_dist"):
            return out.latent_dist.mode()
        return out.latents if hasattr(out, "latents") else out.latent

    @abstractmethod
    def _raw(self, x: Pixels) -> Latents:
        """Latents in the model's own scale."""

    @abstractmethod
    def _pixels(self, raw: Latents) -> Pixels:
        """Decode latents in the model's own scale to pixels."""


def load(path: str, subfolder: str | None, known: Sequence[str]) -> Any:
    """Load a model of one of these diffusers classes.

    Raises:
        ValueError: with one line, if it cannot be loaded.
    """
    import diffusers

    options = {"subfolder": subfolder} if subfolder else {}
    where = Path(path, subfolder or "")
    try:
        if (own := Path(path).is_dir()) and not isinstance(config := read_json(where / CONFIG), dict):
            raise ValueError(f"{CONFIG} must hold a JSON object, got {type(config).__name__}")
        name = diffusers.AutoencoderKL.load_config(path, **options).get("_class_name")
        if name in known:
            kind = getattr(diffusers, name)
            if own:  # a hub repository has only its name, which the hub checks
                check_fits(kind, where)
            return kind.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False, **options)
    except Exception as error:  # a configuration can fail in many ways
        raise ValueError(
            f"codec.path must hold an autoencoder of diffusers, got {where}: {_first(error)}"
        ) from error
    raise ValueError(f"codec.path must hold one of {', '.join(known)}, got {path} with {printable(name)}")


def check_finite(model: nn.Module) -> None:
    """Raise ValueError if weights are not finite: outputs would be black, without any error."""
    for name, value in model.state_dict().items():
        if not is_finite(value):
            raise ValueError(f"an autoencoder's weights must be finite, got others in {name}")


def statistic(model: Any, name: str) -> Any:
    """latents_mean or latents_std of a model, per channel; some models keep them among their weights.

    Cosmos has one value per latent frame of its training clips: these are averaged.
    """
    value = model.config.get(name)
    value = dict(model.named_buffers(recurse=False)).get(name) if value is None else value
    if value is None:
        return None
    value, channels = torch.as_tensor(value, dtype=torch.float32), model.config.get("latent_channels")
    return value.view(channels, -1).mean(1) if channels and value.numel() > channels else value


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _spread(value: Any, default: float, axes: int) -> Float[Tensor, "1 _ *ones"]:
    try:
        tensor = torch.as_tensor(default if value is None else value, dtype=torch.float32)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"an autoencoder's statistics must be numbers, got {printable(value)[:60]}"
        ) from error
    return tensor.reshape(1, -1, *[1] * axes)
