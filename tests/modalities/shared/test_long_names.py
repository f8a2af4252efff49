"""Names as long as a stranger likes: what they say is found in linear time, and they are shown cut."""

import re
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageDraw

from modalities.shared import contact_sheet
from modalities.shared.layout import _WITHIN, split_within
from modalities.shared.sources import _before_numbers, _before_piece, sources

WORDS = "frame|frm|chunk|part|clip|seg(?:ment)?|scene|shot|view|angle|cam|crop|tile|patch|slice|aug|rot"
PIECE = re.compile(rf"(.+?)[-_. ]*(?:{WORDS})[-_. ]?\d+", re.IGNORECASE)
NUMBERS = re.compile(r"(.+?)(?:[-_]\d+)+")
"""The names of sources as expressions that say what is meant, in quadratic time."""
NAMES = st.lists(
    st.sampled_from([*"-_. 019ax\n٣é", "frame", "FRM", "seg", "segment", "clip", "cam", "\u017fhot", "train", "val"]),
    max_size=12,
).map("".join)  # fmt: skip


def by(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    return lambda stem: match[1] if (match := pattern.fullmatch(stem)) else None


@settings(max_examples=1500, deadline=None)
@given(NAMES)
@example("-1-2")
@example("--frame1")
@example("a\n-1-2")
@example("frame1frame1")
def test_sources_are_what_their_expressions_mean(stem: str) -> None:
    assert _before_piece(stem) == by(PIECE)(stem)
    assert _before_numbers(stem) == by(NUMBERS)(stem)
    assert contact_sheet.class_of(stem) == (re.sub(r"[\W\d_]+$", "", stem) or stem)


@settings(max_examples=1500, deadline=None)
@given(NAMES, st.sampled_from(["train", "Val", "test-set"]), NAMES)
@example("", "train", "-1.-2.")
def test_what_a_name_says_beside_its_split_has_no_numbers(before: str, word: str, behind: str) -> None:
    name = f"{before}{word}{behind}"
    if found := split_within(name):
        match = _WITHIN[found[0]].search(name)
        rest = name[: match.start()] + "*" + name[match.end() :]
        assert found[1] == re.sub(r"[-_. ]*\d[\d.]*", "", rest).casefold()


@pytest.fixture
def two_seconds() -> Iterator[None]:
    """Of this process's work; what is quadratic takes minutes for names that are so long."""

    def stop(*_: object) -> None:
        raise TimeoutError("this takes more than two seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.usefixtures("two_seconds")
@pytest.mark.parametrize(
    "run", ["-", "1", "-1", "_1", ".", "a", "frame", "frame1", "_c1", "_c", " ", "-frame1-", "\n"]
)
def test_names_are_read_in_time_linear_in_their_length(run: str) -> None:
    long = run * (200_000 // len(run))
    for name in (f"a{long}", f"a{long}x", f"{long}a1", f"train{long}x", f"a_train{long}1", f"a\n{long}1"):
        split_within.__wrapped__(name)
        contact_sheet.class_of(name)
        sources([(name, "a.png"), ("b", f"{name}.png"), ("b", "c_frame_1_c1.png"), ("b", f"{name}1.png")])


def test_a_long_label_is_measured_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    length = ImageDraw.ImageDraw.textlength

    def textlength(pen: ImageDraw.ImageDraw, text: str, *args: object) -> float:
        measured.append(len(text))
        return length(pen, text, *args)

    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", textlength)
    costs = []
    for letters in (20, 1000, 300_000):
        measured.clear()
        contact_sheet.lay_out([np.zeros((64, 64, 3), np.uint8)], ["a" * letters], title="b" * letters)
        assert len(measured) <= 2 * 12
        costs.append(sum(measured))
    assert costs[1] == costs[2] < 2 * 12 * 600


def test_a_label_that_is_too_wide_is_cut_at_the_last_letter_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[str, float]] = []
    text_of = ImageDraw.ImageDraw.text

    def text(
        pen: ImageDraw.ImageDraw, at: object, words: str, fill: object, font: object, **kw: object
    ) -> None:
        written.append((words, pen.textlength(words + "i", font)))
        text_of(pen, at, words, fill, font, **kw)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    label = "the quick brown fox jumps over the lazy dog"
    for width in (24, 64, 800):
        contact_sheet.lay_out([np.zeros((64, width, 3), np.uint8)], [label])
    (narrow, _), (middle, wide), (whole, _) = written
    assert whole == label
    assert label.startswith(middle.removesuffix("..."))
    assert middle.endswith("...")
    assert 50 < wide < 64 + 9
    assert narrow.endswith("...")
    assert len(narrow) < 9
