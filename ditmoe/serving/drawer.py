"""Sampling for the demo page: one request at a time, which can be stopped between two steps."""

import shlex
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmoe.given import GIVEN
from ditmoe.inference import ModelWords, draw_from, sample_checkpoint, understand, write_drawn
from ditmoe.modality import Files, Samples
from ditmoe.model import num_parameters
from ditmoe.outside import check_number
from ditmoe.pipelines.asked import with_top_k

UNTOLD = ("checkpoint", "trust")
"""Options that are not shown on the page."""
SAMPLES = "samples"
"""Folder of the samples within that of a request, which also contains the given parts."""


class StoppedError(Exception):
    """Sampling was stopped."""


@dataclass(frozen=True)
class Drawn:
    """The result of a request.

    Attributes:
        samples: in data units.
        paths: the files, the overview picture first.
        told: notes on the given parts, for the page.
    """

    samples: Samples
    paths: list[Path]
    told: tuple[str, ...]


class Drawer:
    """Samples from one checkpoint, bit for bit the same as `sample` with the same options.

    Everything is computed in one worker thread: requests wait for each other, and the number of torch's threads, on
    which the rounding of sums depends, is that of this thread.

    Args:
        models: the checkpoint and the options on its model.

    Attributes:
        restored: the checkpoint.

    Raises:
        FileNotFoundError, ValueError: with one line, if the checkpoint cannot be loaded, or its modality writes no
            files.
    """

    def __init__(self, models: ModelWords) -> None:
        self.models, self.restored = models, models.restore()
        self.files = Files.of(self.restored.modality, "demo")
        self._weaker = models.restore_weaker(self.restored)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawer")
        self._lock = threading.Lock()
        self._drawing: tuple[str, threading.Event] | None = None
        self._closed = False

    def about(self) -> str:
        """One line on the model: modality, size, and options that are not at their defaults."""
        restored, how = self.restored, {k: v for k, v in self.models.said().items() if k not in UNTOLD}
        size = f"{restored.modality.name}, {num_parameters(restored.model) / 1e6:.3g} M parameters"
        return "; ".join([size, *(f"{name}={_typed(value)}" for name, value in how.items())])

    def draw(
        self,
        words: Mapping[str, Any],
        folder: Path,
        who: str = "",
        on_step: Callable[[int, int], None] = lambda done, total: None,
        beat: float = 0.2,
    ) -> Drawn:
        """Sample with options of the `sample` command, and write files as it does into `folder`.

        Args:
            words: options of `sample`, except those for the checkpoint, the output and the batch size.
            who: identifies the caller, for `stop`.
            on_step: called in the caller's thread, at most every `beat` seconds, with the number of finished steps and
                the total.

        Raises:
            StoppedError: if it was stopped.
            ValueError, OSError: with one line, for an invalid request.
        """
        stopped, state = threading.Event(), [0, 0]

        def stepped(done: int, total: int) -> None:
            state[:] = done, total
            if stopped.is_set() or self._closed:
                raise StoppedError

        def work() -> Drawn:
            with self._lock:
                self._drawing = who, stopped
            try:
                return self._draw(dict(words), folder, stepped)
            finally:
                with self._lock:
                    self._drawing = None

        future = self._thread.submit(work)
        while not _done(future, beat):
            if state[1]:
                on_step(*state)
        return future.result()

    def stop(self, who: str = "") -> bool:
        """Stop a caller's request after the current step; returns whether it was running."""
        with self._lock:
            if self._drawing is None or self._drawing[0] != who:
                return False
            self._drawing[1].set()
            return True

    def end(self) -> None:
        """Stop the current request after its current step, and all later ones."""
        self._closed = True

    def close(self) -> None:
        """Stop all requests and wait for the worker thread."""
        self.end()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _draw(self, words: dict[str, Any], folder: Path, on_step: Callable[[int, int], None]) -> Drawn:
        num, seed, top_k = words.pop("num"), words.pop("seed"), words.pop("top_k", None)
        how = {name: words.pop(name, None) for name in ("steps", "guidance")}
        given = {name: words.pop(name) for name in ("given", "given_guidance", "strength") if name in words}
        check_number("num", num, 1, whole=True)
        self.models.sampling(self.restored, **how)
        request = understand(self.restored, num, seed, words, sample_checkpoint, weaker=self._weaker)
        request = request.with_given(**given)
        more: dict[str, Any] = {"weaker": self._weaker, "first_block_cache": self.models.first_block_cache}
        with with_top_k(self.restored.model, top_k):
            samples = draw_from(
                self.restored, request.asked, **how, **more, **request.options, seed=seed, on_step=on_step
            )
        assert samples is not None  # torchrun is refused
        place, parts = folder / SAMPLES, request.parts
        beside = folder / GIVEN / SAMPLES
        paths = write_drawn(self.files, samples, request, place, beside, seed=seed, guidance=how["guidance"])
        return Drawn(samples, paths, () if parts is None else tuple(parts.told))


def _done(future: Any, seconds: float) -> bool:
    """Whether a future ends within some seconds."""
    try:
        future.exception(timeout=seconds)
    except TimeoutError:
        return False
    return True


def command_of(words: Mapping[str, Any], models: ModelWords) -> str:
    """The shell command that generates the same samples; given files appear by name, without their folder."""
    options = {**models.said(), **words}
    return shlex.join(
        ["python", "-m", "ditmoe.sample", *(f"{name}={_typed(value)}" for name, value in options.items())]
    )


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    return repr(value)
