"""What some modalities can do beside the core of the contract. Each command asks for the contracts that it needs."""

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
    """Something that a modality can do beside the core; its class has each such contract as a base."""

    does: ClassVar[str]
    """The predicate in "modalities that write files"."""

    @classmethod
    def of(cls: type[Kind], modality: Modality, command: str) -> Kind:
        """The modality, typed as this contract, for a command that needs it.

        Raises:
            ValueError: if its class does not have this contract.
        """
        cls.check(type(modality), command)  # type: ignore[attr-defined]
        return modality  # type: ignore[return-value]

    @classmethod
    def check(cls, kind: type[Modality], command: str) -> None:
        """Raises ValueError, as `of` does, if a modality's class does not have this contract."""
        if not issubclass(kind, cls):
            raise ValueError(
                f"python -m ditmoe.{command} is for modalities that {cls.does}: {kind.name} does not (`{cls.__name__}`)"
            )


class Files(Contract):
    """Samples in files and in pictures: for `sample`, `view`, sets made elsewhere, and previews in training."""

    does = "write files"
    suffixes: ClassVar[tuple[str, ...]]
    """File suffixes, in lower case, that `ditmoe.view` opens with this modality."""

    @abstractmethod
    def read(self, path: Path) -> Samples:
        """A set made elsewhere: a file or a folder of files."""

    @abstractmethod
    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a picture of all and the files of each sample, in their order and called as `samples.file_names()` has
        it, or one file of all if `folder` ends in .npz; returns the paths, that of the picture first.
        """

    @abstractmethod
    def save_picture(self, samples: Samples, file: Path) -> None:
        """All samples in one picture, labelled."""

    @classmethod
    @abstractmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        """Open files in a window, or draw them into `out` where there is no display; returns a line that says which."""

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown | None:
        """One sample for a page (`ditmoe.report`), from the files that `write` made of it; None to list these files.

        Raises:
            OSError, ValueError: if they cannot be read.
        """
        return None


class Metric(Contract):
    """The distance of a generated set from a real one: for `evaluate`, and for the end of a training."""

    does = "have a metric"

    @abstractmethod
    def reference(self, split: str) -> Samples:
        """A split of the data ("train", "val", "test") in data units, as the evaluation protocol takes it."""

    @abstractmethod
    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        """Measure one set against another; with `train`, the report has rows for the oracle and for memorisation."""

    def check_evaluation(self, split: str = "test") -> None:
        """Check before a training that its samples can be measured against a split, without reading samples.

        Raises:
            ValueError: if there are too few samples, or an option or weights are missing.
        """


class Encoding(Contract):
    """From data units to the model's space: for `analyze`, which gives held-out samples to a model."""

    does = "encode samples"

    @abstractmethod
    def encode(self, data: np.ndarray) -> Float[Tensor, "S *sample"]:
        """Samples of one shape, from data units to the model's space; the inverse of `decode`."""


class Preparation(Contract):
    """Own files turned into a data set: for `prepare`."""

    does = "prepare data"

    @abstractmethod
    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        """Turn files into a data set that this modality trains on; prints a summary.

        With `check`, only read them and write down which are damaged, if the modality can.
        """


class Surfaces(Contract):
    """Samples whose points lie on surfaces that can be reconstructed: for `mesh`, and `sample meshes=true`."""

    does = "have surfaces"

    @abstractmethod
    def mesh(self, source: Path, out: Path, turntable: bool = False, most: int | None = None) -> list[Path]:
        """Write the surface of each sample of a file or a folder into a folder, and a picture of all; prints a summary.

        Args:
            turntable: also draw each from all sides.
            most: refuse more samples than this before the first, since each takes a while; None is no limit.

        Returns:
            What was written, the picture first.

        Raises:
            ValueError, OSError: one line.
        """

    def check_out(self, out: Path) -> None:
        """Check that `mesh` may write into a folder, before there is anything to write; by default it may.

        Raises:
            ValueError: if other files lie there.
        """


class Turntables(Contract):
    """Samples that have more than one side: for `sample turntable=true`."""

    does = "draw samples from all sides"

    @abstractmethod
    def write_turntables(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a GIF and an MP4 of each sample that turns, by its name, into a folder; returns the paths."""


class CodecTraining(Contract):
    """An autoencoder that is trained before the model: for `train_codec`."""

    does = "train an autoencoder"

    @abstractmethod
    def train_codec(self, out: Path, seed: int = 0, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Train the modality's own autoencoder into a folder; shows progress.

        The same call resumes an earlier one. Returns False if `stopped` returned True before the end.
        """


class PublishedAutoencoder(Contract):
    """An autoencoder of diffusers between data and model, which `export` saves beside the model."""

    does = "use a published autoencoder"
    autoencoders: ClassVar[Sequence[str]]
    """Names of the classes of diffusers that it may be of."""

    @property
    @abstractmethod
    def autoencoder(self) -> Any:
        """The model of diffusers, whose weights are not in the checkpoint; None if the configuration has none."""

    @abstractmethod
    def attach(self, autoencoder: Any) -> None:
        """Use this loaded autoencoder instead of the one that the configuration names; None: do not load that one."""


class NativeSizes(Contract):
    """Training on samples at their own sizes, packed into rows of tokens."""

    does = "have samples of many sizes"

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of packed rows in a training batch (`packed_batch`); 0 if all samples have one size (`batch`)."""

    @abstractmethod
    def packed_batch(self, seed: int, row: int) -> tuple[list[Float[Tensor, "C ..."]], Asked]:
        """Training samples of different sizes, within a budget of tokens, and their conditions."""


class Captions(Contract):
    """Samples with captions: for a conditioning on text.

    With its option `captions`, conditions in `batch`, `packed_batch` and `reference` (`Samples.asked`) hold captions
    (`ditmoe.conditioning.text_rows`) beside class indices. Where a sample has several, one is drawn by the address of
    the batch.
    """

    does = "have captions"

    @property
    @abstractmethod
    def caption_words(self) -> Sequence[str]:
        """Words of the training captions in lower case, the most frequent first; kept in `data_facts`."""

    @abstractmethod
    def captions_of_split(self, split: str) -> Iterable[str]:
        """The distinct captions of a split; of endless data, those of a finite part, as the modality states."""


class GivenParts(Contract):
    """Samples of which a part is given: to be continued, connected, filled in, completed or changed."""

    does = "take given parts"
    given_words: ClassVar[Mapping[str, str]] = {}
    """Options of `sample` that go with `given`: name -> meaning. They are arguments of `parts`."""
    given_files: ClassVar[Sequence[str]] = ()
    """Those of `given_words` that name a file."""
    given_per: ClassVar[Mapping[str, float]] = {}
    """Which parts training gives, each in a share of the batches: "frame" is whole frames along the first axis of the
    tokens, "token" is any tokens. Empty if what is given only ever lies beside the samples."""

    def draw_beside(
        self, x0: Float[Tensor, "B *sample"], rngs: Sequence[np.random.Generator]
    ) -> Mapping[str, Tensor]:
        """What training gives beside the samples, drawn for each by its own generator."""
        return {}

    @abstractmethod
    def parts(
        self, given: Any, *, shape: Mapping[str, Any], told: bool, strength: float | None = None, **words: Any
    ) -> Parts:
        """Read what is given and place it in the samples to be drawn.

        Args:
            given: paths of files, or arrays in data units.
            shape: those of `Modality.words` that were set.
            told: whether the model was trained with given parts.
            strength: the future `Given.strength`, or None.
            words: those of `given_words` that were set.

        Raises:
            ValueError: if these do not fit each other; the message says what would.
        """
