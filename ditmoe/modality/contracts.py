"""What some modalities can do beside the core of the contract; commands ask for what they need of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ditmoe.given import Parts
from ditmoe.modality.modality import Asked, Modality
from ditmoe.modality.samples import Report, Samples, Shown

Kind = TypeVar("Kind")


class Contract(ABC):
    """What some modalities can do beside the core; each one is a base of the modality's class."""

    does: ClassVar[str]
    """Of modalities, as in "modalities that write files"."""

    @classmethod
    def of(cls: type[Kind], modality: Modality, command: str) -> Kind:
        """The modality as what a command needs.

        Raises:
            ValueError: one line, if its class does not fulfil this contract.
        """
        cls.check(type(modality), command)  # type: ignore[attr-defined]
        return modality  # type: ignore[return-value]

    @classmethod
    def check(cls, kind: type[Modality], command: str) -> None:
        """Raises ValueError, if a modality's class does not fulfil this contract, as `of` does."""
        if not issubclass(kind, cls):
            raise ValueError(
                f"python -m ditmoe.{command} is for modalities that {cls.does}: {kind.name} does not (`{cls.__name__}`)"
            )


class Files(Contract):
    """Samples as files and as pictures: for `sample`, `view`, sets made elsewhere, and pictures while training."""

    does = "write files"
    suffixes: ClassVar[tuple[str, ...]]
    """File endings that `ditmoe.view` opens with this modality, in small letters."""

    @abstractmethod
    def read(self, path: Path) -> Samples:
        """A set made elsewhere: a file or a folder of files."""

    @abstractmethod
    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Write one set of files per sample and a picture of all, or all into one file where `folder` ends in .npz;
        returns the paths, the picture first.
        """

    @abstractmethod
    def save_picture(self, samples: Samples, file: Path) -> None:
        """All samples in one picture, labelled."""

    @classmethod
    @abstractmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        """Open files in a window, or draw them into `out` where there is none; returns one line that says so."""

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown | None:
        """One sample of a page (`ditmoe.report`), from the files that `write` made of it; None: a page lists them.

        Raises:
            OSError, ValueError: if they cannot be read.
        """
        return None


class Metric(Contract):
    """How far a generated set is from a real one: for `evaluate`, and the numbers at the end of a training."""

    does = "have a metric"

    @abstractmethod
    def reference(self, split: str) -> Samples:
        """A split of the data ("train", "val", "test") in data units, drawn by the evaluation protocol."""

    @abstractmethod
    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        """Measure one set against another; `train` adds the oracle and the memorisation rows."""

    def check_evaluation(self, split: str = "test") -> None:
        """Look whether a run could be measured against a split when it has ended, without reading the samples.

        Raises:
            ValueError: if it could not, since there are too few samples, or an option or weights are missing.
        """


class Encoding(Contract):
    """From data units to the model's space: for what is asked of a model about held-out samples, as `analyze` does."""

    does = "encode samples"

    @abstractmethod
    def encode(self, data: np.ndarray) -> Float[Tensor, "S *sample"]:
        """Samples in data units as the model sees them, what `decode` undoes; all have one shape."""


class Preparation(Contract):
    """A person's own files as a data set: for `prepare`."""

    does = "prepare data"

    @abstractmethod
    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        """Turn a person's own files into a data set that this modality trains on; prints a summary.

        With `check`, only look them through and write down what is wrong, where the modality knows how.
        """


class Surfaces(Contract):
    """Samples that are points of surfaces, which can be put together: for `mesh`, and `sample meshes=true`."""

    does = "have surfaces"

    @abstractmethod
    def mesh(self, source: Path, out: Path, turntable: bool = False, most: int | None = None) -> list[Path]:
        """Write the surface of each sample of a file or a folder into a folder, and a picture of all; prints a summary.

        Args:
            turntable: draw each from all sides, too.
            most: samples that there may be; of more none is begun with, since each takes a while. None: any number.

        Returns:
            What was written, the picture first.

        Raises:
            ValueError, OSError: one line.
        """

    def check_out(self, out: Path) -> None:
        """Look whether `mesh` could write into a folder, before there is anything to write; by default into any.

        Raises:
            ValueError: one line, if other things lie there.
        """


class Turntables(Contract):
    """Samples that have more than one side: for `sample turntable=true`."""

    does = "draw samples from all sides"

    @abstractmethod
    def write_turntables(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a GIF and an MP4 of each sample that turns, by its name, into a folder; returns the paths."""


class CodecTraining(Contract):
    """An autoencoder that is trained by itself before the model: for `train_codec`."""

    does = "train an autoencoder"

    @abstractmethod
    def train_codec(self, out: Path, seed: int = 0, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Train the modality's own autoencoder alone into a folder; shows progress.

        The same call goes on where an earlier one ended. False, if `stopped` said so before the end.
        """


class PublishedAutoencoder(Contract):
    """An autoencoder of diffusers between data and model, which `export` saves beside the model."""

    does = "use a published autoencoder"
    autoencoders: ClassVar[Sequence[str]]
    """Classes of diffusers that may be it."""

    @property
    @abstractmethod
    def autoencoder(self) -> Any:
        """The model of diffusers whose weights are in no checkpoint; None if the configuration has no such."""

    @abstractmethod
    def attach(self, autoencoder: Any) -> None:
        """Use this loaded autoencoder in place of the one that the configuration names; None: load none from there."""


class NativeSizes(Contract):
    """Training on samples at their own sizes, packed into rows of tokens."""

    does = "have samples of many sizes"

    @property
    @abstractmethod
    def rows(self) -> int:
        """Packed rows of a training batch, from `packed_batch`; 0: samples have one size, from `batch`."""

    @abstractmethod
    def packed_batch(self, seed: int, row: int) -> tuple[list[Float[Tensor, "C ..."]], Asked]:
        """Training samples of different sizes, together no more than a budget of tokens, and what they are."""


class Captions(Contract):
    """Samples that sentences describe: for a conditioning that reads text.

    With its option `captions` on, the class gives in `batch`, `packed_batch` and `reference` (`Samples.asked`)
    conditions whose values are class indices, as ever, and captions (`ditmoe.conditioning.text_rows`); of several
    captions of a sample the batch's address draws one.
    """

    does = "have captions"

    @property
    @abstractmethod
    def caption_words(self) -> Sequence[str]:
        """Words of the training captions, in small letters, the most frequent first; kept in `data_facts`."""

    @abstractmethod
    def captions_of_split(self, split: str) -> Iterable[str]:
        """Each distinct caption of a split; of data without end those of a sample of them that is said to be one."""


class GivenParts(Contract):
    """Samples of which some is there already: to be continued, connected, filled in, completed, changed."""

    does = "take given parts"
    given_words: ClassVar[Mapping[str, str]] = {}
    """What a person may say of them beside `given`: word -> what it means. `parts` takes the words as arguments."""
    given_files: ClassVar[Sequence[str]] = ()
    """Those of `given_words` that name a file."""
    given_per: ClassVar[Mapping[str, float]] = {}
    """Of which places training gives some, and in what share of the batches: "frame", along the first axis of the
    tokens, "token", of all of them. Empty: what is given lies beside the samples alone."""

    def draw_beside(
        self, x0: Float[Tensor, "B *sample"], rngs: Sequence[np.random.Generator]
    ) -> Mapping[str, Tensor]:
        """What training gives beside samples, each drawn by its own generator."""
        return {}

    @abstractmethod
    def parts(
        self, given: Any, *, shape: Mapping[str, Any], told: bool, strength: float | None = None, **words: Any
    ) -> Parts:
        """What a person gave, for samples of the shape that the modality's own words ask for.

        Args:
            given: paths of files, or arrays in data units.
            shape: of `words`, those that are not None.
            told: whether the model was trained with given parts.
            strength: None, or how far what is given is forgotten, which `Given.strength` is to be.
            words: of `given_words`, those that are not None.

        Raises:
            ValueError: one line that says what would be right.
        """
