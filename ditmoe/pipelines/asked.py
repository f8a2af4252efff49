"""What the arguments of a pipeline's call mean: diffusers' own words beside those of a modality and a conditioning."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.checkpoint import manifest
from ditmoe.config.weaker import Meaning
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.moe.router import check_top_k
from ditmoe.outside import check_number

SIZES = {"height": "size", "width": "size", "num_frames": "frames"}
"""diffusers' words of a shape -> the words of modalities."""


def check_counts(**counts: Any) -> None:
    """Raises ValueError unless all are whole numbers from 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")


def one_of(**values: Any) -> Any:
    """What is said in one of several words that mean the same, None if it is not.

    Raises:
        ValueError: if several say it.
    """
    said = {name: value for name, value in values.items() if value is not None}
    if len(said) > 1:
        raise ValueError(f"only one of {' and '.join(said)} can be said: they mean the same")
    return next(iter(said.values()), None)


def size_words(modality: Modality | None, **sizes: int | None) -> dict[str, Any]:
    """Words of a modality for diffusers' height, width and num_frames; a side that is not said is that of training.

    Raises:
        ValueError: one line, for samples that have no such sides.
    """
    said = {name: value for name, value in sizes.items() if value is not None}
    for name in said:
        check_number(name, said[name], 1, whole=True)
        if modality is None:
            raise ValueError(f"{name} needs the modality: this pipeline knows of latents alone")
        if SIZES[name] not in modality.words:
            known = ", ".join(modality.words) or "none"
            raise ValueError(
                f"{name} is no word of {modality.name}; words for the shape of its samples: {known}"
            )
    words: dict[str, Any] = {"frames": said["num_frames"]} if "num_frames" in said else {}
    if "height" in said or "width" in said:
        trained: Sequence[int] | None = getattr(modality, "size", None)
        if trained is None and not {"height", "width"} <= said.keys():
            raise ValueError("height and width must be said together")
        height, width = trained or (0, 0)
        words["size"] = [said.get("height", height), said.get("width", width)]
    return words


def merged(words: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Words of a modality, said in two ways.

    Raises:
        ValueError: for one that is said in both.
    """
    if both := sorted(words.keys() & others.keys()):
        raise ValueError(f"{both[0]} is said twice: by itself, and by {', '.join(SIZES)}")
    return {**words, **others}


def own_schedule(**times: Sequence[float] | None) -> dict[str, Sequence[float]]:
    """Times in place of even steps, by their names, as far as there are any."""
    return {name: each for name, each in times.items() if each is not None}


def step_options(scheduler: Any, eta: float | None) -> dict[str, Any]:
    """Further arguments of a scheduler's `step`.

    Raises:
        ValueError: for an eta other than 0 that the scheduler does not take.
    """
    import inspect

    if eta is None:
        return {}
    check_number("eta", eta, 0, 1)
    if "eta" in inspect.signature(scheduler.step).parameters:
        return {"eta": eta}
    if eta:
        raise ValueError(
            f"scheduler {type(scheduler).__name__} takes no eta: its step adds no such noise; got {eta}"
        )
    return {}


def own_noise(latents: Any, shape: Sequence[int]) -> Float[Tensor, "S *sample"]:
    """Starting noise that a person brings, of deviation 1, in float32.

    Raises:
        ValueError: one line, unless it has the shape (S, *sample), and finite numbers.
    """
    if not isinstance(latents, Tensor) or tuple(latents.shape) != tuple(shape):
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor of shape {tuple(shape)}, got {got}")
    if not latents.isfinite().all():
        raise ValueError("latents must be finite numbers")
    return latents.detach().to("cpu", torch.float32)


def weaker_of(pipe: Any, other: Any, guidance: float) -> Any:
    """The model of another pipeline that guidance is to lead away from; None for none.

    Raises:
        ValueError: one line, unless it is a pipeline of the same samples, on the same device, and guidance is on.
    """
    if other is None:
        return None
    kind = type(other).__name__
    if not isinstance(other, type(pipe)):
        raise ValueError(f"guidance_model must be a pipeline: Pipeline.from_pretrained(folder), got {kind}")
    if guidance == 1:
        raise ValueError(
            "guidance_scale must be another than 1 with guidance_model, from which it leads away"
        )
    if pipe.device != other.device:
        raise ValueError(f"guidance_model must be on {pipe.device} as the pipeline is, got {other.device}")
    meaning_of(pipe).check_weaker(meaning_of(other), "that pipeline")
    return other.transformer


def meaning_of(pipe: Any) -> Meaning:
    """What a pipeline's model predicts, of which samples."""
    memory, section = pipe.memory, pipe.memory.admitted.get("modality") or {}
    tensors = {name: getattr(memory, f"fact{i}").cpu() for i, name in enumerate(memory.names)}
    facts = manifest.join(dict(memory.config.data_facts), tensors) | {"classes": list(memory.config.classes)}
    conditioning = pipe.transformer.config.config.get("conditioning")
    return Meaning(str(section.get("_target_")), memory.config.shape, facts, pipe.process, conditioning)


@contextmanager
def with_top_k(model: DiTMoE, top_k: int | None) -> Iterator[None]:
    """Within it each token takes another number of experts than in training.

    Raises:
        ValueError: if the router does not choose by it when sampling, or has fewer experts.
    """
    if top_k is None:
        yield
        return
    routers: list[Any] = [
        own for router in model.routers for own in (getattr(router, "inner", None) or [router])
    ]
    if not routers or not all(router.top_k_in_sampling for router in routers):
        raise ValueError(
            "top_k cannot be changed: the router of this model does not choose by it when sampling"
        )
    trained = [(router.top_k, router.active) for router in routers]
    check_top_k(top_k, min(router.num_experts for router in routers))
    try:
        for router in routers:
            router.top_k, router.active = top_k, float(top_k)
        yield
    finally:
        for router, (number, active) in zip(routers, trained, strict=True):
            router.top_k, router.active = number, active
