"""Requirements of GenEval: what a picture with given objects is worth, and files that state none."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modalities.image.metrics import geneval
from modalities.image.metrics.geneval import Box, Clause, Found, Required, is_right, relations
from tests.pages import ROOT

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MIRRORED = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
MASK = np.ones((1, 1), bool)
SIDES = st.integers(0, 100)
BOXES = st.tuples(SIDES, SIDES, SIDES, SIDES).map(lambda b: (b[0], b[1], b[0] + b[2] + 1, b[1] + b[3] + 1))


def thing(name: str, score: float = 0.95, box: Box = (0, 0, 10, 10)) -> Found:
    return Found(name, score, box, MASK)


def required(*include: Clause, tag: str = "two_object", exclude: Sequence[Clause] = ()) -> Required:
    return Required("a prompt", tag, include, tuple(exclude))


def right(wanted: Required, *objects: Found, **colours: str) -> bool:
    """Whether they pass; colours are those of classes, else one is not to be asked for."""
    return is_right(wanted, objects, lambda found, name: colours[name])


# --- relations


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (20, 0, 30, 10), {"left of"}),  # (-20 + 2) / 20 = -.9
        ((20, 0, 30, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (0, 20, 10, 30), {"above"}),  # y points down
        ((0, 0, 10, 10), (20, 20, 30, 30), {"left of", "above"}),  # -18 / 28.3 = -.64 each
        ((0, 0, 10, 10), (20, 8, 30, 18), {"left of"}),  # -18 / 21.5 = -.84 and -6 / 21.5 = -.28
        ((0, 0, 10, 10), (2, 0, 12, 10), set()),  # an offset of 2 is a tenth of both widths
        ((0, 0, 10, 10), (4, 0, 14, 10), set()),  # (4 - 2) / 4 = .5 is not above a half
        ((0, 0, 10, 10), (5, 0, 15, 10), {"left of"}),  # (5 - 2) / 5 = .6
        ((0, 0, 20, 10), (8, 0, 28, 10), set()),  # (8 - 4) / 8 = .5
        ((0, 0, 20, 10), (9, 0, 29, 10), {"left of"}),  # (9 - 4) / 9 = .56
        ((0, 0, 100, 10), (30, 0, 70, 10), set()),  # one centre
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
    ],
)
def test_relations_by_hand(a: Box, b: Box, expected: set[str]) -> None:
    assert relations(a, b) == expected


@given(BOXES, BOXES)
def test_relations_are_antisymmetric_and_turn_with_the_picture(a: Box, b: Box) -> None:
    own = relations(a, b)
    assert relations(b, a) == {OPPOSITE[one] for one in own}
    mirrored = [(400 - box[2], box[1], 400 - box[0], box[3]) for box in (a, b)]
    assert relations(*mirrored) == {MIRRORED[one] for one in own}
    turned = [(box[1], box[0], box[3], box[2]) for box in (a, b)]
    swap = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}
    assert relations(*turned) == {swap[one] for one in own}
    assert len(own) <= 2
    assert not any(OPPOSITE[one] in own for one in own)


# --- pictures


def test_objects_asked_for_must_be_there_and_more_are_harmless() -> None:
    wanted = required(Clause("dog", 1), Clause("cat", 2))
    objects = [thing("dog"), thing("cat"), thing("cat")]
    assert right(wanted, *objects)
    assert right(wanted, *objects, thing("cat"), thing("bench"))
    for i in range(3):
        assert not right(wanted, *objects[:i], *objects[i + 1 :])
    assert not right(wanted)


@pytest.mark.parametrize(("num", "expected"), [(2, False), (3, True), (4, False), (5, False)])
def test_counting_excludes_one_more(num: int, expected: bool) -> None:
    wanted = required(Clause("dog", 3), tag="counting", exclude=[Clause("dog", 4)])
    assert right(wanted, *[thing("dog")] * num) is expected


def test_objects_count_above_a_threshold_of_the_task() -> None:
    for tag, least in (("single_object", 0.3), ("counting", 0.9)):
        wanted = required(Clause("dog", 1), tag=tag)
        assert wanted.threshold == least
        assert right(wanted, thing("dog", least + 1e-6))
        assert not right(wanted, thing("dog", least))
    unsure = [thing("dog"), thing("dog"), thing("dog", 0.8)]
    assert right(required(Clause("dog", 2), tag="counting", exclude=[Clause("dog", 3)]), *unsure)


def test_sixteen_objects_of_a_class_count() -> None:
    wanted = required(Clause("dog", 16))
    assert right(wanted, *[thing("dog")] * 40)
    assert right(required(Clause("cat", 1)), *[thing("dog")] * 40, thing("cat", 0.4))


def test_colours_are_those_of_the_surest_objects() -> None:
    wanted = required(Clause("dog", 1, "red"), Clause("cat", 1, "blue"))
    assert right(wanted, thing("dog"), thing("cat"), dog="red", cat="blue")
    assert not right(wanted, thing("dog"), thing("cat"), dog="blue", cat="red")
    seen = []

    def colour(found: Found, name: str) -> str:
        seen.append((found.score, name))
        return "red" if found.score > 0.5 else "blue"

    objects = [thing("dog", 0.4), thing("dog", 0.9), thing("dog", 0.6)]
    assert is_right(required(Clause("dog", 2, "red")), objects, colour)
    assert seen == [(0.9, "dog"), (0.6, "dog")]
    assert not is_right(required(Clause("dog", 3, "red")), objects, colour)
    assert not is_right(required(Clause("dog", 1, "blue")), objects, colour)


def test_places_are_those_of_all_pairs() -> None:
    wanted = required(Clause("cat", 1), Clause("dog", 2, place=("left of", 0)))
    cat, near, far = thing("cat", box=(50, 0, 60, 10)), thing("dog"), thing("dog", 0.5, (90, 0, 99, 10))
    other = thing("dog", 0.5, (0, 20, 10, 30))
    assert right(wanted, cat, near, other)
    assert not right(wanted, cat, near, far)
    assert right(required(Clause("cat", 1), Clause("dog", 1, place=("left of", 0))), cat, near, far)
    third = required(Clause("cat", 1), Clause("bench", 1), Clause("dog", 1, place=("left of", 1)))
    assert right(third, thing("cat"), thing("bench", box=(50, 0, 60, 10)), near)
    assert not right(third, cat, thing("bench"), near)
    mirrored = [
        Found(one.name, one.score, (100 - one.box[2], 0, 100 - one.box[0], 10), MASK) for one in (cat, near)
    ]
    swapped = required(Clause("cat", 1), Clause("dog", 1, place=("right of", 0)))
    assert right(swapped, *mirrored)
    assert not right(swapped, cat, near)


def test_classes_have_the_names_of_detectors_too() -> None:
    wanted = required(Clause("computer mouse", 1, "red"), Clause("couch", 1))
    assert right(wanted, thing("mouse"), thing("sofa"), **{"computer mouse": "red"})
    assert right(required(Clause("tvmonitor", 1)), thing("tv"))
    assert not right(required(Clause("dog", 1)), thing("cat"))


# --- files

LINE = {
    "tag": "position",
    "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 2, "position": ["above", 0]}],
    "prompt": "two dogs above a bench",
}


def kept(folder: Path, *lines: Any) -> Path:
    file = folder / "m.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


def test_requirements_are_read(tmp_path: Path) -> None:
    count = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": " two\n dogs "}
    count["exclude"] = [{"class": "dog", "count": 3}]
    colour = {
        "tag": "colors",
        "include": [{"class": "cup", "count": 1, "color": "red"}],
        "prompt": "a red cup",
    }
    found = geneval.read(kept(tmp_path, LINE, "", count | {"prompt": " two  dogs "}, colour, LINE))
    assert list(found) == ["two dogs above a bench", "two dogs", "a red cup"]
    first, second, third = found.values()
    assert first.include == (Clause("bench", 1), Clause("dog", 2, place=("above", 0)))
    assert (second.tag, second.exclude) == ("counting", (Clause("dog", 3),))
    assert third.include == (Clause("cup", 1, "red"),)
    assert [one.has_colours for one in found.values()] == [False, False, True]
    assert second.classes == ["dog", "dog"]


def test_the_documentation_states_some(tmp_path: Path) -> None:
    block = re.search(
        r"^```json\n(\{\"tag.*?)^```", (ROOT / "docs" / "text.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert block is not None
    found = geneval.read(kept(tmp_path, *block[1].splitlines()))
    assert found["a red cat left of a bench"].include[1] == Clause("cat", 1, "red", ("left of", 0))


def changed(**more: Any) -> dict[str, Any]:
    return {key: value for key, value in (LINE | more).items() if value is not ...}


def clause(**more: Any) -> dict[str, Any]:
    one = {"class": "dog", "count": 1, **more}
    return changed(include=[LINE["include"][0], {k: v for k, v in one.items() if v is not ...}])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", r"it must be a JSON object, got \[1\]"),
        ("{", "Expecting property name"),
        ('{"tag": "a", "tag": "b"}', "it has the name tag twice"),
        ("[" * 100_000, "nested too deeply"),
        (changed(tag=...), "it must have tag"),
        (changed(tag=..., prompt=...), "it must have tag and prompt"),
        (changed(color="red"), "it must have no color; it may have tag, prompt, include, exclude"),
        (changed(tag="a/b"), "tag must be at most 40 letters, digits and _, got 'a/b'"),
        (changed(tag=3), "tag must be printable text"),
        (changed(prompt=""), "prompt must be printable text of at most 2000 letters, got ''"),
        (changed(prompt="a\x1b[2J"), "prompt must be printable text"),
        (changed(prompt="a" * 2001), "prompt must be printable text"),
        (changed(include=[]), r"include must be a list of 1 to 16 objects, got \[\]"),
        (changed(include=[{"class": "dog", "count": 1}] * 17), "include must be a list of 1 to 16 objects"),
        (changed(include={"class": "dog", "count": 1}), "include must be a list of 1 to 16 objects"),
        (changed(exclude=3), "exclude must be a list of 0 to 16 objects, got 3"),
        (changed(exclude=[{"class": "dog", "count": 1, "color": "red"}]), r"exclude\[0\] must have no color"),
        (changed(include=["dog"]), r"include\[0\] must be a JSON object, got 'dog'"),
        (clause(count=...), r"include\[1\] must have count"),
        (
            clause(colour="red"),
            r"include\[1\] must have no colour; it may have class, count, color, position",
        ),
        (clause(count=0), r"include\[1\].count must be between 1 and 16, got 0"),
        (clause(count=17), r"include\[1\].count must be between 1 and 16, got 17"),
        (clause(count=True), r"include\[1\].count must be a whole number, between 1 and 16, got True"),
        (clause(count=1.0), r"include\[1\].count must be a whole number"),
        (clause(color="grey"), r"include\[1\].color must be one of red, .*, white, got 'grey'"),
        (clause(color=["red"]), r"include\[1\].color must be one of"),
        (clause(color=None), r"include\[1\].color must be one of"),
        (
            clause(position=["under", 0]),
            r"include\[1\].position must be a list of left of, right of, above, below, and",
        ),
        (clause(position=["above"]), r"include\[1\].position must be a list"),
        (clause(position=[["above"], 0]), r"include\[1\].position must be a list"),
        (
            clause(position=["above", 1]),
            r"the number in include\[1\].position must be between 0 and 0, got 1",
        ),
        (
            clause(position=["above", -1]),
            r"the number in include\[1\].position must be between 0 and 0, got -1",
        ),
        (
            changed(include=[{"class": "dog", "count": 1, "position": ["above", 0]}]),
            r"include\[0\].position must refer to an earlier one of include, but this is the first",
        ),
        (clause(**{"class": 3}), r"include\[1\].class must be printable text"),
        (changed(tag="counting"), "prompt must be another than in an earlier line, of other requirements"),
    ],
)
def test_a_line_that_states_none_is_told(line: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^line 2 of [^\n]*m.jsonl: [^\n]*{said}[^\n]*$"):
        geneval.read(kept(tmp_path, LINE, line))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(geneval.COLOURS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["class", "count", "color"]), inner)
    ),
    max_leaves=9,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["tag", "prompt", "include", "exclude", "x"]),
    PLAIN,
    st.sampled_from(["count", "position"]),
)
def test_any_line_states_some_or_is_refused(tmp_path: Path, name: str, value: Any, inner: str) -> None:
    for line in (changed(**{name: value}), clause(**{inner: value})):
        said = f"line 1 of {tmp_path}"
        try:
            (one,) = geneval.read(kept(tmp_path, line)).values()
            assert not is_right(one, [], lambda found, name: "red")
        except ValueError as error:
            said = str(error)
        assert said.startswith(f"line 1 of {tmp_path}")
        assert "\n" not in said


def test_a_file_without_lines_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m.jsonl must hold a JSON object a line, got none$"):
        geneval.read(kept(tmp_path, "", " "))
    with pytest.raises(OSError, match="No such file"):
        geneval.read(tmp_path / "none")


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^line 1 of .*prompt must be printable text"):
        geneval.read(kept(tmp_path, json.dumps(changed(prompt="a\u2028b"), ensure_ascii=False)))
