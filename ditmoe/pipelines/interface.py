"""The diffusers interface of a pipeline besides its call: sampling state, class names, autoencoder."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from diffusers.configuration_utils import FrozenDict

from ditmoe.conditioning.class_label import label_index
from ditmoe.config import build
from ditmoe.diffusion import Process
from ditmoe.modality import Modality


class Interface:
    """Properties and methods with diffusers' names; a base class of the pipeline."""

    transformer: Any
    memory: Any
    scheduler: Any
    vae: Any
    _callback_tensor_inputs: ClassVar[Sequence[str]] = ["latents"]
    _guidance_scale, _interrupt = 1.0, False
    _modality: tuple[Any, Modality | None] | None

    @property
    def modality(self) -> Modality | None:
        """The modality; None for a converted model without an autoencoder, which returns latents."""
        if self._modality is None or self._modality[0] is not self.vae:  # it may have been replaced
            self._modality = self.vae, self.memory.modality(self.vae)
        return self._modality[1]

    @property
    def process(self) -> Process:
        """The diffusion process, which defines the model's prediction."""
        return build.make_whole(self.memory.admitted["process"])

    @property
    def guidance_scale(self) -> float:
        """The scale during sampling; a callback may set `_guidance_scale`, and 1 turns guidance off."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether each step evaluates a second, unconditional prediction; False where guidance was distilled."""
        inside = self.transformer.step_embedding is not None and self.transformer.step_embedding.weights
        return self._guidance_scale != 1 and not inside

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last sampling."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a callback stopped sampling by `_interrupt = True`."""
        return self._interrupt

    @property
    def labels(self) -> dict[str, int]:
        """Class names and their indices."""
        return {name: index for index, name in enumerate(self.memory.config.classes)}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class indices by name, for `class_labels`.

        Raises:
            ValueError: with one line, for an unknown name.
        """
        return [
            label_index(self.memory.config.classes, one)
            for one in ([label] if isinstance(label, str) else label)
        ]

    def enable_vae_slicing(self) -> None:
        """Decode one sample at a time to save memory."""
        self._autoencoder("enable_slicing")()

    def disable_vae_slicing(self) -> None:
        """Decode all samples of a batch at once."""
        self._autoencoder("disable_slicing")()

    def enable_vae_tiling(self) -> None:
        """Decode large samples in overlapping tiles, which saves memory and changes the result slightly."""
        self._autoencoder("enable_tiling")()

    def disable_vae_tiling(self) -> None:
        """Decode each sample as a whole."""
        self._autoencoder("disable_tiling")()

    def _autoencoder(self, method: str) -> Callable[[], None]:
        if not callable(found := getattr(self.vae, method, None)):
            what = (
                "this pipeline has no vae"
                if self.vae is None
                else f"its vae, {type(self.vae).__name__}, does not"
            )
            raise ValueError(f"{method} needs an autoencoder of diffusers that supports it: {what}")
        return found


def process_options(scheduler: Any, process: Process) -> dict[str, Any]:
    """Options of the process for a scheduler's configuration, including those for other scheduler classes."""
    options = process.scheduler_options()
    shift = scheduler.config.get("shift")
    return options | ({"flow_shift": shift} if options.get("use_flow_sigmas") and shift is not None else {})


@contextmanager
def own_config(scheduler: Any, process: Process) -> Iterator[None]:
    """Within this context, remove options for other scheduler classes from the configuration, so none is saved."""
    full, known = scheduler.config, inspect.signature(type(scheduler).__init__).parameters
    foreign = set() if scheduler.compatibles else process_options(scheduler, process).keys() - known.keys()
    scheduler._internal_dict = FrozenDict(
        {name: value for name, value in full.items() if name not in foreign}
    )
    try:
        yield
    finally:
        scheduler._internal_dict = full
