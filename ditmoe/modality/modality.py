"""The core of the contract: what training and sampling need of a modality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.modality.samples import Samples
from ditmoe.modality.tokens import Tokens
from ditmoe.outside import file_name

Asked = Condition | Int[Tensor, " B"]
"""Conditions: class indices, or a `Condition`."""


@dataclass(frozen=True)
class Reader:
    """A batch made in two steps, the first of which worker processes can do ahead of time (`trainer.workers`).

    Attributes:
        read: takes the arguments of `Modality.batch`, or of `NativeSizes.packed_batch` if there are `rows`, and reads
            the data: arrays, tensors and plain values. It and its result are pickled; it does not use a GPU.
        finish: converts the data read to the result of `batch` or `packed_batch`. It runs in the trainer's process.
        files: whether `read` opens and decodes files, so that worker processes pay off.
    """

    read: Callable[..., Any]
    finish: Callable[[Any], tuple[Any, Any]]
    files: bool = False


class Modality(ABC):
    """A kind of sample, such as images, clouds or clips: all that training and sampling need.

    A model for a class with these methods can be trained, sampled from Python, and exported. Further contracts as bases
    add more: `Files`, `Metric`, `Encoding`, `Preparation`, `Surfaces`, `Turntables`, `CodecTraining`,
    `PublishedAutoencoder`, `NativeSizes`, `Captions`, `GivenParts`. A command that needs a missing one says so in one
    line and stops; training skips what needs it.

    A modality is built from its YAML (`configs/modality/<name>.yaml`), whose options are the arguments of its
    constructor. A further argument, `data_facts`, is None or the facts about the data kept in a checkpoint. The data
    set is read on first use, so that sampling from a checkpoint needs no data.
    """

    name: ClassVar[str]
    words: ClassVar[Mapping[str, str]] = {}
    """Options of a command that set the shape of a sample (`length=64`): name -> meaning, as messages list it. They are
    the arguments of `shape_of`."""
    opens: ClassVar[Sequence[str]] = ()
    """Options (dotted if nested) that name a path or a hub repository. Those of a checkpoint are followed only if the
    command allows it. Each class that a YAML names has such a list (`ditmoe.config.trust`)."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """Facts about the data to keep in checkpoints: class names, normalisation, fitted state.

        Tensors and plain values (numbers, text, booleans, None), nested in dicts and lists. They are passed back as
        the argument `data_facts`, with lists in place of tuples.
        """

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:  # noqa: B027  (most learn nothing)
        """When a run resumes: restore from its facts what would otherwise be fitted to the data again."""

    def adopt_facts(self, data_facts: Mapping[str, Any]) -> str:
        """When a run starts from the weights of another: adopt the facts that these depend on, such as a fitted codec.

        Returns what was adopted, or why not, in a line; "" if there was nothing to adopt.
        """
        return ""

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into them, and `len(classes)` is the null class."""

    def class_name(self, label: int) -> str:
        """The name of a label's class; that of the null class is "any"."""
        return self.classes[label] if 0 <= label < len(self.classes) else "any"

    def sample_names(self, labels: Sequence[int]) -> list[str]:
        """Names of generated samples, by class and number, safe as file names."""
        return [f"{file_name(self.class_name(label))}-{i:04d}" for i, label in enumerate(labels)]

    def understood(self) -> str:
        """A few lines, printed before training: how many samples, classes and splits were found and by what rule, what
        was ignored, and what is too small to be evaluated. May be empty.
        """
        return ""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model sees it."""

    def shape_of(self, **words: Any) -> tuple[int, ...]:
        """Shape of a sample for the given `words`; without any, that of the training data.

        A class with `words` has them as arguments, annotated with their types: `length: int | None = None`.

        Raises:
            ValueError: if there is no sample of such a shape.
        """
        return self.sample_shape

    @abstractmethod
    def tokens(self, hidden_size: int) -> Tokens:
        """The patchifier for a model of this width."""

    @abstractmethod
    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B *sample"], Asked]:
        """Normalised training samples and their conditions. Depends only on its arguments, so that runs can resume."""

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Sequence[str]:
        """Names of the samples of that batch, if cheap to find, for error messages."""
        return ()

    def reader(self) -> Reader:
        """The two steps that make batches; by default `batch` does everything in the first.

        For a modality whose `batch` reads files and then encodes them on a GPU, or that cannot be pickled as a whole.
        """
        from ditmoe.modality.contracts import NativeSizes  # imports this module

        native = isinstance(self, NativeSizes) and self.rows
        return Reader(self.packed_batch if native else self.batch, _unchanged)  # type: ignore[attr-defined]

    @abstractmethod
    def decode(self, x: Float[Tensor, "S *sample"]) -> np.ndarray:
        """From the model's space to data units, (S, *sample)."""

    def refined(self, data: np.ndarray) -> np.ndarray:
        """Decoded samples of a model, improved where the modality can; by default unchanged."""
        return data

    def check_facts(self) -> None:  # noqa: B027
        """Raise ValueError for checkpoint facts with which `decode` would fail, only after sampling is done."""

    def samples(self, x: Float[Tensor, "S *sample"], asked: Condition) -> Samples:
        """Convert a model's samples for these conditions to data units, with labels and names."""
        labels = asked.labels(len(self.classes))
        names = [f"sample-{i:04d}" for i in range(len(x))]
        if labels is not None:
            names = self.sample_names(labels.tolist())
        return Samples(self.refined(self.decode(x)), None if labels is None else labels.numpy(), names, asked)


def _unchanged(read: Any) -> Any:
    return read
