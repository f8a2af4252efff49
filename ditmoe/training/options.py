"""What a person may say of a training run: the words `trainer.` of the command line, in groups."""

from dataclasses import dataclass

from ditmoe.outside import check_number
from ditmoe.training.schedule import Schedule

TIME_PER = ("sample", "frame", "token")
"""What has a time of its own in training: each sample; each place along the first axis of the tokens, such as the
frames of a clip (diffusion forcing, arXiv 2407.01392); or each token."""

COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of torch.compile: the first two replay a step as a CUDA graph, for shapes that stay (no native sizes)."""

MOST_WORKERS = 256
"""Of `trainer.workers`: each is a process."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """What a step trains on.

    Attributes:
        batch_size: samples per forward pass, of all ranks together.
        accumulate: forward passes that make a step.
        condition_dropout: share of samples that are trained as if they asked for nothing, for guidance.
        time_per: what has a time of its own, see `TIME_PER`.
        workers: processes of each rank that read batches ahead; 0 reads them in between; None is `default_workers`.
        given_hidden: share of the samples with given parts that do not see them, for the guidance by them.
        given_noisy: share of them that see frames, pictures or tokens under a little noise.
    """

    batch_size: int
    accumulate: int = 1
    condition_dropout: float = 0.1
    time_per: str = "sample"
    workers: int | None = None
    given_hidden: float = 0.15
    given_noisy: float = 0.0

    def __post_init__(self) -> None:
        check_number("trainer.batch_size", self.batch_size, 1, whole=True)
        check_number("trainer.accumulate", self.accumulate, 1, whole=True)
        check_number("trainer.workers", self.workers or 0, 0, MOST_WORKERS, whole=True)
        check_number("trainer.condition_dropout", self.condition_dropout, 0, 1)
        check_number("trainer.given_hidden", self.given_hidden, 0, 1)
        check_number("trainer.given_noisy", self.given_noisy, 0, 1)
        if self.time_per not in TIME_PER:
            raise ValueError(f"trainer.time_per must be one of {', '.join(TIME_PER)}, got {self.time_per!r}")


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """What becomes of gradients that are too large, or no numbers; see `Guard`.

    Attributes:
        clip: largest gradient norm.
        zclip: norms of so many deviations above their moving mean are cut to less, 2.5 in the paper; None is off.
        patience: steps in a row that are skipped, because a number is not finite, before the run stops.
    """

    clip: float = 1.0
    zclip: float | None = None
    patience: int = 10

    def __post_init__(self) -> None:
        check_number("trainer.clip", self.clip, above=0)
        check_number("trainer.zclip", 1.0 if self.zclip is None else self.zclip, above=0)
        check_number("trainer.patience", self.patience, above=0, whole=True)


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How the same numbers are computed: exactly, fast, or in little memory.

    Attributes:
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where the hardware multiplies it.
        deterministic: do the same twice on a GPU too, see `repeat_exactly`, and on a CPU that others load, with as
            many threads all the time (`ditmoe.distributed.threads`).
        compile: use torch.compile (needs a C++ compiler on a CPU), on as many threads all the time: graphs are made for
            their number.
        compile_mode: its mode, see `COMPILE_MODES`; None is its own.
        recompute: keep no activations within blocks, compute them again in the backward pass.
    """

    precision: str = "auto"
    deterministic: bool = False
    compile: bool = False
    compile_mode: str | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"trainer.precision must be auto, fp32 or bf16, got {self.precision!r}")
        if self.compile_mode is not None and self.compile_mode not in COMPILE_MODES:
            modes = ", ".join(COMPILE_MODES)
            raise ValueError(f"trainer.compile_mode must be one of {modes}, got {self.compile_mode!r}")
        if self.compile_mode is not None and not self.compile:
            raise ValueError(f"trainer.compile must be true for trainer.compile_mode={self.compile_mode}")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a run writes down, and when.

    Attributes:
        log_every, save_every, preview_every: in steps; 0 is never.
        keep_last, keep_every: checkpoints that are kept: the last ones, and those at multiples of so many steps.
        background_save: train on while a checkpoint is written, from a copy in the host's memory.
    """

    log_every: int = 50
    save_every: int = 500
    preview_every: int = 1000
    keep_last: int = 2
    keep_every: int = 0
    background_save: bool = False

    def __post_init__(self) -> None:
        check_number("trainer.keep_last", self.keep_last, 1, whole=True)
        for name in ("log_every", "save_every", "preview_every", "keep_every"):
            check_number(f"trainer.{name}", getattr(self, name), 0, whole=True)


@dataclass(frozen=True, kw_only=True)
class Options(Writing, Computing, Clipping, Batching, Schedule):
    """All groups as one flat section, which is how they are typed; each part of the trainer asks for its own group.

    Raises:
        ValueError: one line that names the first option whose value does not fit.
    """

    def __post_init__(self) -> None:
        for group in (Schedule, Batching, Clipping, Computing, Writing):
            group.__post_init__(self)
        if self.compile_mode in COMPILE_MODES[:2] and self.accumulate > 1:
            raise ValueError(
                f"trainer.accumulate must be 1 with trainer.compile_mode={self.compile_mode}, whose graph overwrites "
                f"what the earlier passes of a step observed, got {self.accumulate}"
            )
