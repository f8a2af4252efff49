"""The contract between the core and a modality: everything the core may know about what it generates."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.nn import Layout
from ditmoe.outside import check_number as check_number
from ditmoe.outside import file_name, file_names
from ditmoe.outside.options import check_options as check_options


class Tokens(nn.Module, ABC):
    """Cuts a sample into tokens and puts a prediction together again.

    A module only so that an adapter *may* own weights (the point head of clouds); a patchifier has none.
    """

    in_features: int
    """P, numbers per token that `patchify` gives."""
    out_features: int
    """Q, numbers per token that `unpatchify` expects; P where the two are the same cut."""
    axes: int
    """Of the grid on which the tokens lie: 1 a sequence, 2 an image, 3 a volume or a clip."""
    patch_size: tuple[int, ...]
    """Cells of a token along each axis, of samples that may have any size."""

    @abstractmethod
    def grid(self, x: Float[Tensor, "B *sample"]) -> tuple[int, ...]:
        """Tokens along each axis, of samples of one size."""

    def layout(self, x: Float[Tensor, "B *sample"]) -> Layout:
        """Which tokens the samples have; by default one for each cell of the grid."""
        return Layout.even(self.grid(x), len(x), x.device)

    @abstractmethod
    def patchify(self, x: Float[Tensor, "B *sample"], layout: Layout) -> Float[Tensor, "R N P"]:
        """Cut samples into the tokens of their layout."""

    def pack(self, samples: Sequence[Float[Tensor, "C ..."]]) -> tuple[Float[Tensor, "T P"], Layout]:
        """Samples of any sizes as rows of tokens, end to end."""
        layouts = [self.layout(x[None]) for x in samples]
        rows = [self.patchify(x[None], layout)[0] for x, layout in zip(samples, layouts, strict=True)]
        return torch.cat(rows), Layout.pack([layout.grids[0] for layout in layouts], rows[0].device)

    @abstractmethod
    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        """Position embedding of each token, of the model's width."""

    def occupied(self, tokens: Float[Tensor, "R N P"]) -> Bool[Tensor, "R N"]:
        """Which tokens hold more than empty space; by default all."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def coordinates(self, layout: Layout) -> Float[Tensor, "N A"]:
        """Where each token lies along each axis, for rotary positions; by default counted in tokens."""
        return layout.cells.float()

    @abstractmethod
    def unpatchify(
        self,
        tokens: Float[Tensor, "R N Q"],
        layout: Layout,
        like: Float[Tensor, "B *sample"],
        t: Float[Tensor, " B"],
        c: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B *prediction"]:
        """Put tokens together into a prediction shaped like `like` (more channels where it is asked for more).

        Time t (0..1000) and the conditioning vector c are there for adapters with a head of their own.
        """

    def initialize(self) -> bool:
        """Initialise weights of its own, if any, so that it predicts zero at birth; whether it has any.

        Called without gradient, when `ditmoe.model.initialization` has been through all within it.
        """
        return False


@dataclass(frozen=True)
class Samples:
    """A set of samples in data units, as it is drawn, written and measured.

    Attributes:
        data: (S, *sample), in the units of the data set.
        labels: (S,) class indices, or None where the set has no classes.
        names: one name per sample, used for files (`file_names`).
    """

    data: np.ndarray
    labels: np.ndarray | None = None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def file_names(self) -> list[str]:
        """A name for the file of each sample: of letters that lead nowhere, and no two alike."""
        names = list(self.names or ())[: len(self)]
        return file_names([*names, *range(len(names), len(self))], taken=("samples", "view"))


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation: numbers that carry their protocol.

    Attributes:
        values: metric name -> value for the generated set.
        intervals: metric name -> (low, high), 95 %.
        rows: other rows of the same metrics that make the first readable ("oracle": real training shapes).
        protocol: what was compared and how (counts, points, normalisation, variants).
        notes: sentences that warn where a number means something else than it seems.
    """

    values: Mapping[str, float]
    protocol: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Modality(ABC):
    """What makes a sample an image, a cloud or a clip.

    A modality is built from its YAML; the data set is read when it is first asked for, so that sampling
    from a checkpoint needs no data: what sampling must know of the data (class names, normalisation) comes
    back as `data_facts`, which the checkpoint carries.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """File endings that `ditmoe.view` opens with this modality."""
    opens: ClassVar[Sequence[str]] = ()
    """Options, with dots where they are nested, that open a path or a name on the hub: a checkpoint's are not obeyed
    unless the person's command allows it. Each class that a YAML names states its own so (`ditmoe.config.trust`)."""

    autoencoders: ClassVar[Sequence[str]] = ()
    """Classes of diffusers that may be its published autoencoder."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """What a checkpoint must remember of the data; plain values. Given back as the argument `data_facts`."""

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

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model sees it."""

    def shape_of(
        self, frames: int | None = None, size: Sequence[int] | None = None, points: int | None = None
    ) -> tuple[int, ...]:
        """Shape of a sample of another length, size or number of points, as far as the modality has such.

        Args:
            frames: of a clip.
            size: (height, width) in pixels.
            points: of a cloud.

        Raises:
            ValueError: if it has not, or they do not fit.
        """
        for name, value in {"frames": frames, "size": size, "points": points}.items():
            if value is not None:
                raise ValueError(f"{name} is not for {self.name}: leave it out")
        return self.sample_shape

    @abstractmethod
    def tokens(self, hidden_size: int) -> Tokens:
        """A patchifier for a model of this width."""

    @abstractmethod
    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B *sample"], Int[Tensor, " B"]]:
        """Normalised training samples and labels; a function of its arguments alone, so that runs resume."""

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Sequence[str]:
        """Names of the samples in that batch, if they are cheap to tell; they are asked for when it went wrong."""
        return ()

    @property
    def rows(self) -> int:
        """Packed rows of a training batch of samples at their own sizes, from `packed_batch`; 0: they have one size."""
        return 0

    def packed_batch(self, seed: int, row: int) -> tuple[list[Float[Tensor, "C ..."]], Int[Tensor, " B"]]:
        """Training samples of different sizes, together no more than a budget of tokens, and their labels."""
        raise ValueError(f"{self.name} has samples of one size")

    @abstractmethod
    def decode(self, x: Float[Tensor, "S *sample"], labels: Int[Tensor, " S"]) -> Samples:
        """From the model's space to data units."""

    @property
    def autoencoder(self) -> Any:
        """A published autoencoder (a model of diffusers) whose weights are in no checkpoint, if it uses one."""
        return None

    def attach(self, autoencoder: Any) -> None:
        """Use this loaded autoencoder in place of the one that the configuration names; None: load none from there."""
        if autoencoder is not None:
            raise ValueError(f"{self.name} has no autoencoder to be replaced")

    @abstractmethod
    def reference(self, split: str) -> Samples:
        """A split of the data in data units, drawn by the evaluation protocol."""

    def check_evaluation(self, split: str = "test") -> None:  # noqa: B027  (most need not)
        """Look whether a run could be measured against a split when it has ended, without reading the samples.

        Raises:
            ValueError: if it could not, since there are too few samples, or an option or weights are missing.
        """

    @abstractmethod
    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        """Measure one set against another; `train` adds the oracle and the memorisation rows."""

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

    @abstractmethod
    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        """Turn a person's own files into a data set that this modality trains on; prints a summary.

        With `check`, only look them through and write down what is wrong, where the modality knows how.
        """

    def train_codec(self, out: Path, seed: int = 0, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Train the modality's own autoencoder alone into a folder, where it has one; shows progress.

        The same call goes on where an earlier one ended. False, if `stopped` said so before the end.
        """
        raise ValueError(f"train_codec is for modalities that train an autoencoder, {self.name} has none")
