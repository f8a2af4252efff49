"""The steps of a pipeline call, from its arguments to samples."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.config.limits import check_samples, check_work
from ditmoe.config.words import GivenWords, parts_asked, shape_asked, split_words
from ditmoe.diffusion import check_scheduler, denoise, draw_noise, torch_generator
from ditmoe.given import Given, Parts, in_turns
from ditmoe.pipelines.asked import check_counts, check_generator, check_returned, check_sampling, own_noise
from ditmoe.pipelines.interface import Interface
from ditmoe.pipelines.output import OUTPUTS

logger = logging.get_logger(__name__)


class Request(Interface):
    """The steps of a call; a base class of the pipeline, for internal use."""

    trusted = False
    """Whether to skip the limit on multiply-adds per sample (`ditmoe.config.limits.check_work`)."""
    _execution_device: torch.device

    def check_inputs(self, output_type: str, guidance: Any, steps: Any, seed: Any, **counts: Any) -> None:
        """Raises ValueError for invalid arguments, and if an untrusted model would need excessive work per sample."""
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        check_counts(**counts)
        check_sampling(steps, guidance, seed)
        check_scheduler(self.scheduler, self.process)
        if not self.trusted:
            check_work(self.transformer.net, self.memory.config.shape, int(steps), "set pipe.trusted = True")

    def _watch(self, callback: Any, inputs: Any) -> Any:
        """The function that the sampling loop calls after each step; None without a callback."""
        if callback is None:
            return None
        if not callable(callback):
            raise ValueError(f"callback_on_step_end must be a function, got {callback!r}")
        inputs = getattr(callback, "tensor_inputs", inputs)  # diffusers' PipelineCallback
        if not isinstance(inputs, list | tuple):
            raise ValueError(f"callback_on_step_end_tensor_inputs must be a list of names, got {inputs!r}")
        if unknown := [name for name in inputs if name not in self._callback_tensor_inputs]:
            known = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be among {known}, got {unknown[0]!r}")

        def watch(step: int, time: Tensor, x: Tensor) -> tuple[Tensor, bool]:
            changed = callback(self, step, time, dict.fromkeys(inputs, x))
            if isinstance(changed, Mapping) and "latents" in changed:
                check_returned(changed["latents"], x)
                x = changed["latents"]
            return x, self._interrupt

        return watch

    def _prompts(self, label: Any, prompt: Any, negative: Any) -> tuple[Any, dict[str, Any]]:
        """The label, and the prompts as options of the conditioning; a label that is not a class is a prompt.

        Raises:
            ValueError: for a prompt, if the model is not conditioned on text.
        """
        for name, value in {"prompt": prompt, "negative_prompt": negative}.items():
            if value is not None and "prompt" not in self.transformer.conditioning.words:
                raise ValueError(f"{name} must be left out: this model is not conditioned on text")
        if prompt is None and label is not None and "prompt" in self.transformer.conditioning.words:
            classes = self.memory.config.classes
            own = {*classes, *(f"#{index}" for index in range(len(classes))), "none", "random"}
            each = [label] if isinstance(label, str) else label
            if isinstance(each, list | tuple) and not all(isinstance(one, int) or one in own for one in each):
                label, prompt = None, label
        prompts = {"prompt": prompt, "negative": negative}
        return label, {name: value for name, value in prompts.items() if value is not None}

    def _split(self, words: dict[str, Any]) -> list[dict[str, Any]]:
        """Options split by owner: conditioning, modality (shape), and given parts."""
        modality = self.modality
        owners = [
            self.transformer.conditioning,
            *([] if modality is None else [modality, GivenWords(modality)]),
        ]
        options = inspect.signature(type(self).__call__).parameters
        return [*split_words(words, *owners, options=options), {}, {}][:3]

    def _asked(
        self, num: int, each: int, seed: int, label: Any, words: Mapping[str, Any]
    ) -> tuple[Condition, Condition | None]:
        """The conditions, each repeated `each` times in sequence, and the negative conditions of guidance."""
        conditioning, classes = self.transformer.conditioning, self.memory.config.classes
        asked = conditioning.ask(num, classes, torch_generator("labels", seed), label=label, **words)
        negative = conditioning.away(asked, **words)
        if each > 1:
            rows = torch.arange(len(asked)).repeat_interleave(each)
            asked, negative = asked.take(rows), None if negative is None else negative.take(rows)
        return asked, negative

    def _parts(
        self, given: Any, of_shape: Any, of_given: Any, strength: float | None, guidance: float
    ) -> Parts | None:
        """The given parts; the modality's notes on them go to diffusers' log.

        Raises:
            ValueError: if the pipeline has no modality.
        """
        if given is None and not of_given and strength is None and guidance == 1:
            return None
        if self.modality is None:
            raise ValueError("given must be left out: this pipeline has no modality and returns latents")
        trained = self.memory.admitted.get("given", 0)
        parts = parts_asked(self.modality, given, of_shape, of_given, trained, strength, guidance)
        for line in () if parts is None else parts.told:
            logger.warning(line)
        return parts

    def _shape(self, num: int, batch_size: int, words: dict[str, Any]) -> tuple[int, ...]:
        """Shape of a sample in the model's space; raises ValueError if the request does not fit into memory."""
        shape = tuple(self.memory.config.shape)
        if words and self.modality is not None:
            shape = shape_asked(self.modality, words)
        check_samples(shape, num, batch_size)
        return shape

    def prepare_latents(
        self,
        num: int,
        generator: Any,
        seed: int,
        shape: tuple[int, ...],
        turn: int = 0,
        latents: Any = None,
    ) -> tuple[Tensor, Any]:
        """Initial noise of all samples and the generators for the scheduler's noise, separate for each turn."""
        own = None if latents is None else own_noise(latents, (num, *shape))
        check_generator(generator, num)
        if generator is None:
            address = [turn] if turn else []
            each = [torch_generator("scheduler", seed, i, *address) for i in range(num)]
            return draw_noise(range(num), shape, seed, turn) if own is None else own, each
        if own is not None:
            return own, generator
        device = self._execution_device
        return randn_tensor((num, *shape), generator=generator, device=device, dtype=torch.float32), generator

    def _drawn(
        self,
        rows: Tensor,
        asked: Condition,
        negative: Condition | None,
        parts: Parts | None,
        start: tuple[Tensor, Any],
        prepare: Callable[..., tuple[Tensor, Any]],
        **options: Any,
    ) -> Tensor:
        """Samples of a batch; the initial noise if a callback has stopped sampling before.

        Args:
            rows: indices of the batch's samples.
            start: initial noise of all samples, and generators, for the first turn.
            prepare: makes the same for each further turn.
            options: further options of `denoise`.
        """
        if self._interrupt:
            return start[0][rows].cpu()
        device = self._execution_device

        def draw(given: Given | None, turn: int) -> Tensor:
            noise, generators = start
            if given is not None and turn:
                noise, generators = prepare(tuple(given.x.shape[1:]), turn)
            if isinstance(generators, list):
                generators = [generators[i] for i in rows.tolist()]
            return denoise(
                self.transformer,
                self.process,
                self.scheduler,
                noise[rows].to(device),
                asked.take(rows).to(device),
                guidance=lambda: self._guidance_scale,
                negative=None if negative is None else negative.take(rows).to(device),
                generators=generators,
                given=None if given is None else given.to(device),
                **options,
            )

        return in_turns(draw, parts, rows).cpu()
