"""A model that draws for a page: one request at a time, each to be stopped between two steps."""

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
"""Words that say nothing of how it draws."""
SAMPLES = "samples"
"""The folder of what was drawn, within one that holds what was given, too."""


class StoppedError(Exception):
    """Somebody stopped the drawing."""


@dataclass(frozen=True)
class Drawn:
    """What came of a request.

    Attributes:
        samples: in data units.
        paths: what was written, the picture of all first.
        told: lines for the person, about what was given.
    """

    samples: Samples
    paths: list[Path]
    told: tuple[str, ...]


class Drawer:
    """Draws from one checkpoint, to the bit what `sample` draws for the same words.

    All is computed in one thread of its own: requests wait for each other, and the number of torch's threads, by which
    sums are rounded, is that of this one alone.

    Args:
        models: what draws, and how.

    Attributes:
        restored: the checkpoint.

    Raises:
        FileNotFoundError, ValueError: one line, if a checkpoint cannot be drawn from, or its modality writes no files.
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
        """What draws, in a line: its size, and what was said of how it draws."""
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
        """Draw what the words of `sample` say, and write it as that does into `folder`.

        Args:
            words: of `sample`, but for those that say where from, where to and how many at a time.
            who: asks; `stop` of the same one ends it.
            on_step: called in the caller's thread, at most once in `beat` seconds, with the steps that are done and
                those that there are.

        Raises:
            StoppedError: if it was stopped.
            ValueError, OSError: one line, for what cannot be drawn.
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
        """End the drawing of somebody after the step that is at hand; whether there is one."""
        with self._lock:
            if self._drawing is None or self._drawing[0] != who:
                return False
            self._drawing[1].set()
            return True

    def end(self) -> None:
        """End all drawing after the step that is at hand, now and later."""
        self._closed = True

    def close(self) -> None:
        """End all drawing, and wait for that."""
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
    """Whether it ends within so many seconds."""
    try:
        future.exception(timeout=seconds)
    except TimeoutError:
        return False
    return True


def command_of(words: Mapping[str, Any], models: ModelWords) -> str:
    """The command that draws the same, for a shell; files that were given stand there by their names."""
    said = {**models.said(), **words}
    return shlex.join(
        ["python", "-m", "ditmoe.sample", *(f"{name}={_typed(value)}" for name, value in said.items())]
    )


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    return repr(value)
