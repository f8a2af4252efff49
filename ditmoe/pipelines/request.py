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
from ditmoe.config.limits import check_request
from ditmoe.config.words import GivenWords, parts_asked, shape_asked, split_words
from ditmoe.diffusion import check_scheduler, draw_noise, torch_generator
from ditmoe.given import Parts
from ditmoe.pipelines.asked import check_counts, own_noise
from ditmoe.pipelines.interface import Interface
from ditmoe.pipelines.output import OUTPUTS

logger = logging.get_logger(__name__)


class Request(Interface):
    """The steps of a call, from its arguments to samples; a base of the pipeline, which alone calls them."""

    _execution_device: torch.device

    def _check(self, output_type: str, guidance: Any, **counts: Any) -> None:
        """Refuse what no model could do, before anything is drawn."""
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        check_counts(**counts)
        check_scheduler(self.scheduler, self.process)
        if not isinstance(guidance, Real):
            raise ValueError(f"guidance_scale must be a number, got {guidance!r}")

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
            own = {*self.memory.config.classes, "none", "random"}
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

    def _noise(
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
        start: tuple[Tensor, Any],
        denoised: Callable[..., Tensor],
        parts: Parts | None,
        noise: Callable[..., tuple[Tensor, Any]],
    ) -> Tensor:
        """Samples of a batch, which stay noise where a callback has ended the drawing before.

        What is given may ask for further turns, which go on from what the last one drew.
        """
        if self._interrupt:
            return start[0][rows].cpu()
        x = denoised(rows, *start, None if parts is None else parts.given.take(rows))
        turn = 0
        while parts is not None and (following := parts.more(x)) is not None:
            turn += 1
            more, join = following
            x = join(denoised(rows, *noise(tuple(more.x.shape[1:]), turn), more))
        return x.cpu()
