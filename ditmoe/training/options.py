"""Options of a training run: the section `trainer`, in groups."""

from dataclasses import dataclass

from ditmoe.outside import check_number
from ditmoe.training.schedule import Schedule

TIME_PER = ("sample", "frame", "token")
"""What has its own time in training: each sample; each position along the first axis of the tokens, such as the frames
of a clip (diffusion forcing, arXiv 2407.01392); or each token."""

COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of torch.compile: the first two replay a step as a CUDA graph, for fixed shapes (no native sizes)."""

MOST_WORKERS = 256
"""Upper bound of `trainer.workers`, each of which is a process."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """The batches of a step.

    Attributes:
        batch_size: samples per forward pass, over all ranks.
        accumulate: forward passes per step.
        condition_dropout: share of samples trained without condition, for guidance.
        time_per: what has its own time, see `TIME_PER`.
        workers: data-loading processes per rank; 0 reads in the trainer's process; None is `default_workers`.
        given_hidden: share of the samples with given parts for which these are hidden, for guidance by them.
        given_noisy: share of them whose given frames, pictures or tokens are slightly noised.
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
    """Handling of large and non-finite gradients; see `Guard`.

    Attributes:
        clip: largest gradient norm.
        zclip: norms more than this many standard deviations above their moving mean are clipped, 2.5 in the paper;
            None is off.
        patience: consecutive steps skipped for non-finite values before the run stops.
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
    """Numerics, speed and memory of the computation.

    Attributes:
        precision: "fp32", "bf16" (autocast), or "auto": bf16 if the hardware supports it.
        deterministic: be reproducible on a GPU too, see `repeat_exactly`, and on a CPU under other load, by a fixed
            number of threads (`ditmoe.distributed.threads`).
        compile: use torch.compile (needs a C++ compiler on a CPU), with a fixed number of threads, for which graphs are
            compiled.
        compile_mode: its mode, see `COMPILE_MODES`; None: its default.
        recompute: recompute the activations within blocks in the backward pass instead of storing them.
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
    """Logs, checkpoints and previews.

    Attributes:
        log_every, save_every, preview_every: in steps; 0 is never.
        keep_last, keep_every: checkpoints to keep: the last ones, and those at multiples of `keep_every` steps.
        background_save: continue training while a checkpoint is written from a copy in host memory.
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
    """All groups as one flat section, as in the configuration; each part of the trainer takes only its own group.

    Raises:
        ValueError: one line that names the first invalid option.
    """

    def __post_init__(self) -> None:
        for group in (Schedule, Batching, Clipping, Computing, Writing):
            group.__post_init__(self)
        if self.compile_mode in COMPILE_MODES[:2] and self.accumulate > 1:
            raise ValueError(
                f"trainer.accumulate must be 1 with trainer.compile_mode={self.compile_mode}, whose graph overwrites "
                f"what the earlier passes of a step observed, got {self.accumulate}"
            )
