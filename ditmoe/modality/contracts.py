"""Optional contracts of modalities beyond the core. Each command asks for the contracts that it needs."""

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
    """An optional capability of a modality, whose class inherits from each such contract."""

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
        """Raise ValueError, as `of` does, if a modality's class does not have this contract."""
        if not issubclass(kind, cls):
            raise ValueError(
                f"python -m ditmoe.{command} is for modalities that {cls.does}: {kind.name} does not (`{cls.__name__}`)"
            )


class Files(Contract):
    """Samples in files and in pictures: for `sample`, `view`, external sets, and previews in training."""

    does = "write files"
    suffixes: ClassVar[tuple[str, ...]]
    """File suffixes, in lower case, that `ditmoe.view` opens with this modality."""

    @abstractmethod
    def read(self, path: Path) -> Samples:
        """Read an external set: a file or a folder of files."""

    @abstractmethod
    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a picture of all to samples.png, then each sample's files in order, named by `samples.file_names()`, or
        one file of all if `folder` ends in .npz; returns the paths, that of the picture first.
        """

    @abstractmethod
    def save_picture(self, samples: Samples, file: Path) -> None:
        """Save all samples in one picture, labelled; by `modalities.shared.save_png`, whose mark lets a later call
        replace it (`ditmoe.outside.check_ours`)."""

    @classmethod
    @abstractmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        """Open files in a window, or draw them into `out` if there is no display; returns a line that says which."""

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown | None:
        """One sample for a page (`ditmoe.report`), from the files that `write` made of it; None: only list the files.

        Raises:
            OSError, ValueError: if they cannot be read.
        """
        return None


class Metric(Contract):
    """The distance of a generated set from a real one: for `evaluate`, and for the end of training."""

    does = "have a metric"

    @abstractmethod
    def reference(self, split: str) -> Samples:
        """A split of the data ("train", "val", "test") in data units, as the evaluation protocol requires."""

    @abstractmethod
    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        """Evaluate one set against another; with `train`, the report has rows for the oracle and for memorisation."""

    def check_prompts(self, prompts: Sequence[str] | None) -> None:
        """Check before sampling that samples of these captions, or of none, can be evaluated.

        Raises:
            ValueError: if the evaluation needs captions, or opens what is not there.
        """

    def check_evaluation(self, split: str = "test") -> None:
        """Check before training that its samples can be evaluated against a split, without reading samples.

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

        With `check`, only read them and record which are damaged, if supported.
        """


class Surfaces(Contract):
    """Samples whose points lie on surfaces that can be reconstructed: for `mesh`, and `sample meshes=true`."""

    does = "have surfaces"

    @abstractmethod
    def mesh(self, source: Path, out: Path, turntable: bool = False, most: int | None = None) -> list[Path]:
        """Write the surface of each sample of a file or a folder into a folder, and a picture of all; prints a summary.

        Args:
            turntable: also draw each from all sides.
            most: refuse more samples than this at the start, since each takes a while; None: no limit.

        Returns:
            The paths written, the picture first.

        Raises:
            ValueError, OSError: one line.
        """

    def check_out(self, out: Path) -> None:
        """Check in advance that `mesh` may write into a folder; by default it may.

        Raises:
            ValueError: if there are other files.
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
    """A diffusers autoencoder between data and model, which `export` saves with the model."""

    does = "use a published autoencoder"
    autoencoders: ClassVar[Sequence[str]]
    """Names of the supported diffusers classes."""

    @property
    @abstractmethod
    def autoencoder(self) -> Any:
        """The diffusers model, whose weights are not in the checkpoint; None if the configuration has none."""

    @abstractmethod
    def attach(self, autoencoder: Any) -> None:
        """Use this loaded autoencoder instead of the configured one; None: do not load that one."""


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
    (`ditmoe.conditioning.text_rows`) besides class indices. If a sample has several, one is drawn, seeded by the
    address of the batch.
    """

    does = "have captions"

    @property
    @abstractmethod
    def caption_words(self) -> Sequence[str]:
        """Words of the training captions in lower case, the most frequent first; kept in `data_facts`."""

    @abstractmethod
    def captions_of_split(self, split: str) -> Iterable[str]:
        """The distinct captions of a split; for endless data, those of a finite part that the modality defines."""


class GivenParts(Contract):
    """Samples with given parts: to be continued, connected, filled in, completed or edited."""

    does = "take given parts"
    given_words: ClassVar[Mapping[str, str]] = {}
    """Options of `sample` that go with `given`: name -> meaning. They are arguments of `parts`."""
    given_files: ClassVar[Sequence[str]] = ()
    """Those of `given_words` that name a file."""
    given_per: ClassVar[Mapping[str, float]] = {}
    """The units of given parts in training, each with its share of the batches: "frame" is whole frames along the first
    axis of the tokens, "token" is any tokens. Empty if given content is only ever a separate input."""

    def draw_beside(
        self, x0: Float[Tensor, "B *sample"], rngs: Sequence[np.random.Generator]
    ) -> Mapping[str, Tensor]:
        """Draw the given content for training that is a separate input, with one generator per sample."""
        return {}

    @abstractmethod
    def parts(
        self, given: Any, *, shape: Mapping[str, Any], told: bool, strength: float | None = None, **words: Any
    ) -> Parts:
        """Read given content and place it in the samples to be drawn.

        Args:
            given: paths of files, or arrays in data units.
            shape: those of `Modality.words` that were set.
            told: whether the model was trained with given parts.
            strength: the future `Given.strength`, or None.
            words: those of `given_words` that were set.

        Raises:
            ValueError: if these are incompatible; the message says what would be valid.
        """
