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
"""What samples are: class indices, or all that may be asked for."""


@dataclass(frozen=True)
class Reader:
    """The making of a batch in two steps, of which worker processes can do the first ahead (`trainer.workers`).

    Attributes:
        read: the arguments of `Modality.batch`, or of `NativeSizes.packed_batch` where there are `rows`, -> what is
            read of the data: arrays, tensors and plain values. It and they are sent by pickle; it touches no GPU.
        finish: what was read -> what `batch`, or `packed_batch`, returns. It stays where the model is.
        files: whether files are opened and decoded, which is worth processes; what lies in memory is not.
    """

    read: Callable[..., Any]
    finish: Callable[[Any], tuple[Any, Any]]
    files: bool = False


class Modality(ABC):
    """What makes a sample an image, a cloud or a clip: all that training and drawing need.

    A class that fulfils this alone is trained, drawn from in Python and exported. What else it can do it says by
    further contracts among its bases: `Files`, `Metric`, `Preparation`, `Surfaces`, `Turntables`, `CodecTraining`,
    `PublishedAutoencoder`, `NativeSizes`. A command that needs one refuses a modality without it in one line;
    training goes without.

    A modality is built from its YAML (`configs/modality/<name>.yaml`), whose options are the arguments of its
    constructor, and one more, `data_facts`, is None or what a checkpoint remembers. The data set is read when it is
    first asked for, so that drawing from a checkpoint needs no data.
    """

    name: ClassVar[str]
    words: ClassVar[Mapping[str, str]] = {}
    """What a person may say of the shape of a sample (`length=64` on the command line): word -> what it means, by
    which messages list it. `shape_of` takes the words as arguments."""
    opens: ClassVar[Sequence[str]] = ()
    """Options, with dots where they are nested, that open a path or a name on the hub: a checkpoint's are not obeyed
    unless the person's command allows it. Each class that a YAML names states its own so (`ditmoe.config.trust`)."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """What a checkpoint must remember of the data (class names, normalisation, what was fitted).

        Tensors and plain values (numbers, text, true, false, None), nested in dicts and lists. Given back as the
        argument `data_facts`: the same values, with lists where there were tuples.
        """

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:  # noqa: B027  (most learn nothing)
        """Take from facts of the same run what would else be learnt of its data again, when the run goes on."""

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into them and `len(classes)` is the null class."""

    def class_name(self, label: int) -> str:
        """Of a label; the null class is "any"."""
        return self.classes[label] if 0 <= label < len(self.classes) else "any"

    def sample_names(self, labels: Sequence[int]) -> list[str]:
        """Names of generated samples: their class and number, fit for files."""
        return [f"{file_name(self.class_name(label))}-{i:04d}" for i, label in enumerate(labels)]

    def understood(self) -> str:
        """What was understood of the data, in a few lines that are printed before training: how many samples, which
        classes and splits and from what they come, what was ignored, what is too small to measure. "": nothing to say.
        """
        return ""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model sees it."""

    def shape_of(self, **words: Any) -> tuple[int, ...]:
        """Shape of a sample that is asked for by some of `words`, without any that of the training data.

        A class with `words` has them as arguments, whose annotations say what may come: `length: int | None = None`.

        Raises:
            ValueError: if they do not fit.
        """
        return self.sample_shape

    @abstractmethod
    def tokens(self, hidden_size: int) -> Tokens:
        """A patchifier for a model of this width."""

    @abstractmethod
    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B *sample"], Asked]:
        """Normalised training samples, and what they are; a function of its arguments alone, so that runs resume."""

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Sequence[str]:
        """Names of the samples in that batch, if they are cheap to tell; they are asked for when it went wrong."""
        return ()

    def reader(self) -> Reader:
        """How batches are made in two steps; by default all is read by `batch`, and nothing is left to do.

        To be given by a modality whose `batch` reads files and then encodes them on a GPU, or that cannot be sent to
        other processes as a whole.
        """
        from ditmoe.modality.contracts import NativeSizes  # which are of modalities

        native = isinstance(self, NativeSizes) and self.rows
        return Reader(self.packed_batch if native else self.batch, _as_it_is)  # type: ignore[attr-defined]

    @abstractmethod
    def decode(self, x: Float[Tensor, "S *sample"]) -> np.ndarray:
        """From the model's space to data units, (S, *sample)."""

    def samples(self, x: Float[Tensor, "S *sample"], asked: Condition) -> Samples:
        """What the model drew when this was asked for, in data units, with labels and names."""
        labels = asked.labels(len(self.classes))
        names = [f"sample-{i:04d}" for i in range(len(x))]
        if labels is not None:
            names = self.sample_names(labels.tolist())
        return Samples(self.decode(x), None if labels is None else labels.numpy(), names, asked)


def _as_it_is(read: Any) -> Any:
    return read
