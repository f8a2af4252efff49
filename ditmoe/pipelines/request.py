"""What a call of a pipeline asks for and what it draws, step by step."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.config.limits import check_request, check_work
from ditmoe.config.words import GivenWords, parts_asked, shape_asked, split_words
from ditmoe.diffusion import check_scheduler, denoise, draw_noise, torch_generator
from ditmoe.given import Given, Parts, in_turns
from ditmoe.pipelines.asked import check_counts, own_noise
from ditmoe.pipelines.interface import Interface
from ditmoe.pipelines.output import OUTPUTS

logger = logging.get_logger(__name__)


class Request(Interface):
    """The steps of a call, from its arguments to samples; a base of the pipeline, which alone calls them."""

    trusted = False
    """Whether a sample may take any number of multiply-adds (`ditmoe.config.limits.check_work`)."""
    _execution_device: torch.device

    def check_inputs(self, output_type: str, guidance: Any, num_inference_steps: Any, **counts: Any) -> None:
        """Refuse what no model could do, and what a model of a stranger might do for ever, before anything is drawn."""
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        check_counts(**counts, num_inference_steps=num_inference_steps)
        check_scheduler(self.scheduler, self.process)
        if not isinstance(guidance, Real):
            raise ValueError(f"guidance_scale must be a number, got {guidance!r}")
        if not self.trusted:
            shape = self.memory.config.shape
            check_work(self.transformer.net, shape, num_inference_steps, "set pipe.trusted = True")

    def _watch(self, callback: Callable[..., Any] | None, inputs: Sequence[str]) -> Any:
        """What the loop calls after each step for a person's callback."""
        if callback is None:
            return None
        inputs = getattr(callback, "tensor_inputs", inputs)  # diffusers' PipelineCallback
        if unknown := [name for name in inputs if name not in self._callback_tensor_inputs]:
            known = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be of {known}, got {unknown[0]!r}")

        def watch(step: int, time: Tensor, x: Tensor) -> tuple[Tensor, bool]:
            changed = callback(self, step, time, dict.fromkeys(inputs, x))
            x = changed.get("latents", x) if isinstance(changed, Mapping) else x
            return x, self._interrupt

        return watch

    def _prompts(self, label: Any, prompt: Any, negative: Any) -> tuple[Any, dict[str, Any]]:
        """The label, and sentences as words of the conditioning: what stands first is a prompt where it is no class."""
        if prompt is None and label is not None and "prompt" in self.transformer.conditioning.words:
            classes = self.memory.config.classes
            own = {*classes, *(f"#{index}" for index in range(len(classes))), "none", "random"}
            each = [label] if isinstance(label, str) else label
            if isinstance(each, list | tuple) and not all(isinstance(one, int) or one in own for one in each):
                label, prompt = None, label
        said = {"prompt": prompt, "negative": negative}
        return label, {name: value for name, value in said.items() if value is not None}

    def _split(self, words: dict[str, Any]) -> list[dict[str, Any]]:
        """What is asked for, of which shape, and what is said of what is given."""
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
        """What is asked for, `each` times one after the other, and what guidance leads away from."""
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
        """What is given, as the modality understands it; what was changed for that goes to diffusers' log."""
        if given is None and not of_given and strength is None and guidance == 1:
            return None
        if self.modality is None:
            raise ValueError("given needs the modality: this pipeline knows of latents alone")
        trained = self.memory.admitted.get("given", 0)
        parts = parts_asked(self.modality, given, of_shape, of_given, trained, strength, guidance)
        for line in () if parts is None else parts.told:
            logger.warning(line)
        return parts

    def _shape(self, num: int, batch_size: int, words: dict[str, Any]) -> tuple[int, ...]:
        """Of a sample as the model sees it, if this machine can hold so many."""
        if not words or self.modality is None:
            return tuple(self.memory.config.shape)
        check_request(self.modality, num, int(batch_size), **words)
        return shape_asked(self.modality, words)

    def prepare_latents(
        self,
        num: int,
        generator: Any,
        seed: int,
        shape: tuple[int, ...],
        turn: int = 0,
        latents: Any = None,
    ) -> tuple[Tensor, Any]:
        """Starting noise of all samples, and the generators of a scheduler's; each turn has its own."""
        own = None if latents is None else own_noise(latents, (num, *shape))
        if generator is None:
            address = [turn] if turn else []
            each = [torch_generator("scheduler", seed, i, *address) for i in range(num)]
            return draw_noise(range(num), shape, seed, turn) if own is None else own, each
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"generator must be one, or one for each of {num} samples, got {len(generator)}")
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
        """Samples of a batch, which stay noise where a callback has ended the drawing before.

        Args:
            rows: which samples are the batch.
            start: starting noise of all samples, and generators, as `prepare` makes them anew for each further turn.
            options: further ones of `denoise`.
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
