"""Checks and conversions of the arguments of a pipeline call."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.checkpoint import manifest
from ditmoe.config.weaker import Meaning
from ditmoe.diffusion.sampling import MOST_GUIDANCE
from ditmoe.diffusion.timesteps import MOST_STEPS
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.moe.router import check_top_k
from ditmoe.outside import check_number

SIZES = {"height": "size", "width": "size", "num_frames": "frames"}
"""Shape arguments of diffusers and the modality options that they set."""


def check_counts(**counts: Any) -> None:
    """Raises ValueError unless all are positive integers; NumPy's, too."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")


def check_sampling(steps: Any, guidance: Any, seed: Any) -> None:
    """Raises ValueError unless steps, guidance scale and seed are numbers that the command would take."""
    check_counts(num_inference_steps=steps)
    check_number("num_inference_steps", int(steps), 1, MOST_STEPS, whole=True)
    if not isinstance(guidance, Real) or isinstance(guidance, bool):
        raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
    exact = guidance if isinstance(guidance, int) else float(guidance)
    check_number("guidance_scale", exact, -MOST_GUIDANCE, MOST_GUIDANCE)
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")


def check_generator(generator: Any, num: int) -> None:
    """Raises ValueError unless it is None, a generator, or a list of one for each of `num` samples."""
    if generator is None:
        return
    each = generator if isinstance(generator, list) else [generator]
    wrong = [type(one).__name__ for one in each if not isinstance(one, torch.Generator)]
    if wrong or (isinstance(generator, list) and len(each) != num):
        got = wrong[0] if wrong else len(each)
        raise ValueError(f"generator must be one, or a list of one for each of {num} samples, got {got}")


def one_of(**values: Any) -> Any:
    """The value of the one given argument among synonyms; None if none is given.

    Raises:
        ValueError: if several are given.
    """
    chosen = {name: value for name, value in values.items() if value is not None}
    if len(chosen) > 1:
        raise ValueError(f"only one of {' and '.join(chosen)} may be given: they mean the same")
    return next(iter(chosen.values()), None)


def check_returned(latents: Any, before: Tensor) -> None:
    """Raises ValueError unless the latents that a callback returned can take the place of those that it was given."""
    fits = isinstance(latents, Tensor) and latents.shape == before.shape and latents.device == before.device
    if not fits or not latents.is_floating_point():
        kind = type(latents).__name__
        got = (
            f"{latents.dtype} {tuple(latents.shape)} on {latents.device}"
            if isinstance(latents, Tensor)
            else kind
        )
        raise ValueError(
            f"callback_on_step_end must return latents of shape {tuple(before.shape)} on {before.device}, got {got}"
        )


def size_words(modality: Modality | None, **sizes: int | None) -> dict[str, Any]:
    """The modality's options for diffusers' height, width and num_frames; a missing side is that of training.

    Raises:
        ValueError: with one line, if the modality has no such sizes.
    """
    chosen = {name: value for name, value in sizes.items() if value is not None}
    for name in chosen:
        check_number(name, chosen[name], 1, whole=True)
        if modality is None:
            raise ValueError(f"{name} must be left out: this pipeline has no modality and returns latents")
        if SIZES[name] not in modality.words:
            known = ", ".join(modality.words) or "none"
            raise ValueError(
                f"{name} must be left out: the options for the shape of {modality.name} samples are {known}"
            )
    words: dict[str, Any] = {"frames": chosen["num_frames"]} if "num_frames" in chosen else {}
    if "height" in chosen or "width" in chosen:
        trained: Sequence[int] | None = getattr(modality, "size", None)
        if trained is None and not {"height", "width"} <= chosen.keys():
            raise ValueError("height and width must be given together")
        height, width = trained or (0, 0)
        words["size"] = [chosen.get("height", height), chosen.get("width", width)]
    return words


def merged(words: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The union of two sets of options.

    Raises:
        ValueError: if an option is in both.
    """
    if both := sorted(words.keys() & others.keys()):
        raise ValueError(f"{both[0]} must be given once, got it by name and by {', '.join(SIZES)}")
    return {**words, **others}


def own_schedule(**times: Any) -> dict[str, Sequence[float]]:
    """The given custom schedules (timesteps or sigmas), by name.

    Raises:
        ValueError: for one that is no list.
    """
    chosen = {name: each for name, each in times.items() if each is not None}
    for name, each in chosen.items():
        if not hasattr(each, "__len__"):
            raise ValueError(f"{name} must be a list of 1 to {MOST_STEPS} numbers, got {each!r}")
    return chosen


def step_options(scheduler: Any, eta: float | None) -> dict[str, Any]:
    """Additional arguments of a scheduler's `step`.

    Raises:
        ValueError: for an eta other than 0 if the scheduler does not take one.
    """
    import inspect

    if eta is None:
        return {}
    check_number("eta", eta, 0, 1)
    if "eta" in inspect.signature(scheduler.step).parameters:
        return {"eta": eta}
    if eta:
        raise ValueError(
            f"eta must be 0 or left out: scheduler {type(scheduler).__name__} takes no eta, got {eta}"
        )
    return {}


def own_noise(latents: Any, shape: Sequence[int]) -> Float[Tensor, "S *sample"]:
    """The caller's initial noise, of standard deviation 1, in float32 on the CPU.

    Raises:
        ValueError: with one line, unless it has the shape (S, *sample) and finite values.
    """
    if not isinstance(latents, Tensor) or tuple(latents.shape) != tuple(shape):
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor of shape {tuple(shape)}, got {got}")
    if not latents.isfinite().all():
        raise ValueError("latents must be finite numbers")
    return latents.detach().to("cpu", torch.float32)


def weaker_of(pipe: Any, other: Any, guidance: float) -> Any:
    """The weaker model of another pipeline for autoguidance; None for none.

    Raises:
        ValueError: with one line, unless it is a pipeline for the same samples on the same device and guidance is on.
    """
    if other is None:
        return None
    kind = type(other).__name__
    if not isinstance(other, type(pipe)):
        raise ValueError(f"guidance_model must be a pipeline: Pipeline.from_pretrained(folder), got {kind}")
    if guidance == 1:
        raise ValueError("guidance_scale must differ from 1 with guidance_model, which has no effect at 1")
    if pipe.device != other.device:
        raise ValueError(f"guidance_model must be on {pipe.device} like the pipeline, got {other.device}")
    meaning_of(pipe).check_weaker(meaning_of(other), "that pipeline")
    return other.transformer


def meaning_of(pipe: Any) -> Meaning:
    """The prediction and the data of a pipeline's model, for comparison with another model."""
    memory, section = pipe.memory, pipe.memory.admitted.get("modality") or {}
    tensors = {name: getattr(memory, f"fact{i}").cpu() for i, name in enumerate(memory.names)}
    facts = manifest.join(dict(memory.config.data_facts), tensors) | {"classes": list(memory.config.classes)}
    conditioning = pipe.transformer.config.config.get("conditioning")
    return Meaning(str(section.get("_target_")), memory.config.shape, facts, pipe.process, conditioning)


@contextmanager
def with_top_k(model: DiTMoE, top_k: int | None) -> Iterator[None]:
    """Change the number of experts per token within this context; None: leave it.

    Raises:
        ValueError: if the router does not choose by `top_k` when sampling, or has fewer experts.
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
