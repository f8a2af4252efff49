"""The contract between the core and a modality: everything the core may know about what it generates."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.given import Parts
from ditmoe.nn import Layout
from ditmoe.outside import check_number as check_number
from ditmoe.outside import file_name, file_names
from ditmoe.outside.options import check_options as check_options

Asked = Condition | Int[Tensor, " B"]
"""What samples are: class indices, or all that may be asked for."""
Kind = TypeVar("Kind")


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
        t: Float[Tensor, "*t"],
        c: Float[Tensor, "*t D"],
    ) -> Float[Tensor, "B *prediction"]:
        """Put tokens together into a prediction shaped like `like` (more channels where it is asked for more).

        Times t (0..1000; shapes: `ditmoe.nn.layout`) and the conditioning vectors c are there for adapters with a
        head of their own. What lies beside the samples comes as a further argument `given`, where there is some.
        """

    def embed_given(self, given: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "R N D"] | None:
        """What lies beside the samples (`Condition.given`), to be added to the tokens; by default nothing is read."""
        return None

    def sample_times(
        self, t: Float[Tensor, "*t"], x: Float[Tensor, "B *sample"], layout: Layout | None = None
    ) -> Float[Tensor, "B *ones"]:
        """Times in a shape of `ditmoe.nn.layout`, each for the numbers of its token: shaped to multiply samples.

        Args:
            x: samples, by default (B, C, *cells) or (B, *cells), of which a token covers so many along each axis; or,
                with a layout, their tokens (T, P), as `pack` gives them.

        Raises:
            ValueError: for any other shape.
        """
        if layout is not None:
            token = torch.arange(len(x), device=t.device)
            return t.flatten()[layout.row_of(token, t.shape)][:, None]
        grid = self.grid(x)
        each = Layout.even(grid, len(x), t.device).cells_per_time(t.shape)
        if not each:
            return t.view(-1, *[1] * (x.ndim - 1))
        first = x.ndim - len(grid)  # of the axes of cells
        times = t.repeat_interleave(each, dim=1).view(len(x), *[1] * (first - 1), *grid)
        for axis, (tokens, size) in enumerate(zip(grid, x.shape[first:], strict=True), start=first):
            times = times.repeat_interleave(size // tokens, dim=axis)
        return times

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
        asked: what was asked for, or is known of real ones, where that is more than a label.
    """

    data: np.ndarray
    labels: np.ndarray | None = None
    names: Sequence[str] | None = None
    asked: Condition | None = None

    def __len__(self) -> int:
        return len(self.data)

    def file_names(self) -> list[str]:
        """A name for the file of each sample: of letters that lead nowhere, and no two alike."""
        names = list(self.names or ())[: len(self)]
        return file_names([*names, *range(len(names), len(self))], taken=("samples", "view"))


@dataclass(frozen=True)
class Shown:
    """One sample as a page shows it: a picture, the frames of a clip, or the points of a cloud.

    Attributes:
        picture: (H, W, 3) of bytes.
        frames: (T, H, W, 3) of bytes.
        rate: frames of a second.
        points: (N, 3), y up, of any size: it is shown as large as there is room.
        colors: (N, 3) of bytes, or None for those of its class.
    """

    picture: np.ndarray | None = None
    frames: np.ndarray | None = None
    rate: float = 8.0
    points: np.ndarray | None = None
    colors: np.ndarray | None = None


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
    further contracts among its bases: `Files`, `Metric`, `Preparation`, `Surfaces`, `CodecTraining`,
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
    def mesh(self, source: Path, out: Path, turntable: bool = False) -> list[Path]:
        """Write the surface of each sample of a file or a folder into a folder, and a picture of all; prints a summary.

        Args:
            turntable: draw each from all sides, too.

        Returns:
            What was written, the picture first.
        """

    def check_out(self, out: Path) -> None:
        """Look whether `mesh` could write into a folder, before there is anything to write; by default into any.

        Raises:
            ValueError: one line, if other things lie there.
        """


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
