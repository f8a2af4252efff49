"""What users of diffusers look for on a pipeline beside the call: the state of a drawing, names of classes, the vae."""

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
    """Properties and small methods by the names that pipelines of diffusers give them; a base of the pipeline."""

    transformer: Any
    memory: Any
    scheduler: Any
    vae: Any
    _callback_tensor_inputs: ClassVar[Sequence[str]] = ["latents"]
    _guidance_scale, _interrupt = 1.0, False
    _modality: tuple[Any, Modality | None] | None

    @property
    def modality(self) -> Modality | None:
        """What samples are; None where a converted model came without an autoencoder, and gives latents."""
        if self._modality is None or self._modality[0] is not self.vae:  # it may have been replaced
            self._modality = self.vae, self.memory.modality(self.vae)
        return self._modality[1]

    @property
    def process(self) -> Process:
        """What the model predicts."""
        return build.make_whole(self.memory.admitted["process"])

    @property
    def guidance_scale(self) -> float:
        """Of the drawing that is going on; a callback may set `_guidance_scale`, and 1 turns guidance off."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether each step asks for a second prediction, of which nothing is asked; it may be inside the model."""
        inside = self.transformer.step_embedding is not None and self.transformer.step_embedding.weights
        return self._guidance_scale != 1 and not inside

    @property
    def num_timesteps(self) -> int:
        """Steps of the drawing that is going on, or of the last."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the drawing by `_interrupt = True`."""
        return self._interrupt

    @property
    def labels(self) -> dict[str, int]:
        """Names of the classes and their indices."""
        return {name: index for index, name in enumerate(self.memory.config.classes)}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Indices of classes by their names, for `class_labels`.

        Raises:
            ValueError: one line, for a name that no class has.
        """
        return [
            label_index(self.memory.config.classes, one)
            for one in ([label] if isinstance(label, str) else label)
        ]

    def enable_vae_slicing(self) -> None:
        """Decode one sample at a time, which takes less memory."""
        self._autoencoder("enable_slicing")()

    def disable_vae_slicing(self) -> None:
        """Decode all samples of a batch at once."""
        self._autoencoder("disable_slicing")()

    def enable_vae_tiling(self) -> None:
        """Decode large samples in tiles that overlap, which takes less memory and changes the picture a little."""
        self._autoencoder("enable_tiling")()

    def disable_vae_tiling(self) -> None:
        """Decode each sample as a whole."""
        self._autoencoder("disable_tiling")()

    def _autoencoder(self, method: str) -> Callable[[], None]:
        if not callable(found := getattr(self.vae, method, None)):
            what = (
                "this pipeline has no vae"
                if self.vae is None
                else f"its vae, {type(self.vae).__name__}, cannot"
            )
            raise ValueError(f"{method} is for pipelines with an autoencoder of diffusers that can: {what}")
        return found


def process_options(scheduler: Any, process: Process) -> dict[str, Any]:
    """What a scheduler should remember of the process, though its own class may not need it."""
    options = process.scheduler_options()
    shift = scheduler.config.get("shift")
    return options | ({"flow_shift": shift} if options.get("use_flow_sigmas") and shift is not None else {})


@contextmanager
def own_config(scheduler: Any, process: Process) -> Iterator[None]:
    """Within it a scheduler's configuration lacks what only schedulers of other classes take: no file needs it."""
    told, known = scheduler.config, inspect.signature(type(scheduler).__init__).parameters
    foreign = set() if scheduler.compatibles else process_options(scheduler, process).keys() - known.keys()
    scheduler._internal_dict = FrozenDict(
        {name: value for name, value in told.items() if name not in foreign}
    )
    try:
        yield
    finally:
        scheduler._internal_dict = told
