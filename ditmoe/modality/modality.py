"""The core of the contract: what training and drawing need of a modality."""

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
"""What is asked for: class indices, or a `Condition`."""


@dataclass(frozen=True)
class Reader:
    """A batch made in two steps, the first of which worker processes can do ahead of time (`trainer.workers`).

    Attributes:
        read: takes the arguments of `Modality.batch`, or of `NativeSizes.packed_batch` if there are `rows`, and reads
            the data: arrays, tensors and plain values. It and its result are pickled; it does not use a GPU.
        finish: takes what was read and returns what `batch` or `packed_batch` does. It runs in the trainer's process.
        files: whether `read` opens and decodes files, so that processes are worth their start.
    """

    read: Callable[..., Any]
    finish: Callable[[Any], tuple[Any, Any]]
    files: bool = False


class Modality(ABC):
    """What makes a sample an image, a cloud or a clip: all that training and sampling need.

    A model of a class with these methods can be trained, sampled from Python, and exported. Further contracts among
    its bases add more: `Files`, `Metric`, `Encoding`, `Preparation`, `Surfaces`, `Turntables`, `CodecTraining`,
    `PublishedAutoencoder`, `NativeSizes`, `Captions`, `GivenParts`. A command that needs one that is missing says so in
    one line and stops; training leaves out what it needs it for.

    A modality is built from its YAML (`configs/modality/<name>.yaml`), whose options are the arguments of its
    constructor. One further argument, `data_facts`, is None or what a checkpoint remembers of the data. The data set is
    read on first use, so that sampling from a checkpoint needs no data.
    """

    name: ClassVar[str]
    words: ClassVar[Mapping[str, str]] = {}
    """Options of a command that set the shape of a sample (`length=64`): name -> meaning, as messages list it. They are
    the arguments of `shape_of`."""
    opens: ClassVar[Sequence[str]] = ()
    """Options, with dots where they are nested, that name a path or a repository on the hub. Those of a checkpoint are
    followed only if the command allows it. Each class that a YAML names has such a list (`ditmoe.config.trust`)."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """What a checkpoint must remember of the data: class names, normalisation, what was fitted.

        Tensors and plain values (numbers, text, booleans, None), nested in dicts and lists. They come back as the
        argument `data_facts`, with lists in place of tuples.
        """

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:  # noqa: B027  (most learn nothing)
        """When a run resumes: take from its facts what would otherwise be fitted to the data again."""

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into them, and `len(classes)` is the null class."""

    def class_name(self, label: int) -> str:
        """The name of a label's class; that of the null class is "any"."""
        return self.classes[label] if 0 <= label < len(self.classes) else "any"

    def sample_names(self, labels: Sequence[int]) -> list[str]:
        """Names of generated samples, by class and number, safe as names of files."""
        return [f"{file_name(self.class_name(label))}-{i:04d}" for i, label in enumerate(labels)]

    def understood(self) -> str:
        """A few lines, printed before training: how many samples, classes and splits were found and by what rule, what
        was ignored, and what is too small to be measured. May be empty.
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
        """Normalised training samples and their conditions. Depends on its arguments alone, so that runs can resume."""

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Sequence[str]:
        """Names of the samples of that batch, if they are cheap to find, for messages when it goes wrong."""
        return ()

    def reader(self) -> Reader:
        """How batches are made in two steps; by default `batch` does all of it in the first.

        For a modality whose `batch` reads files and then encodes them on a GPU, or that cannot be pickled as a whole.
        """
        from ditmoe.modality.contracts import NativeSizes  # imports this module

        native = isinstance(self, NativeSizes) and self.rows
        return Reader(self.packed_batch if native else self.batch, _unchanged)  # type: ignore[attr-defined]

    @abstractmethod
    def decode(self, x: Float[Tensor, "S *sample"]) -> np.ndarray:
        """From the model's space to data units, (S, *sample)."""

    def check_facts(self) -> None:  # noqa: B027
        """Raise ValueError for facts of a checkpoint that `decode` would fail by, after the work of drawing."""

    def samples(self, x: Float[Tensor, "S *sample"], asked: Condition) -> Samples:
        """Samples that a model drew for these conditions, in data units, with labels and names."""
        labels = asked.labels(len(self.classes))
        names = [f"sample-{i:04d}" for i in range(len(x))]
        if labels is not None:
            names = self.sample_names(labels.tolist())
        return Samples(self.decode(x), None if labels is None else labels.numpy(), names, asked)


def _unchanged(read: Any) -> Any:
    return read
