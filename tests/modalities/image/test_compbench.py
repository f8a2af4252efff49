"""Attribute binding of T2I-CompBench: phrases, scores, controls and intervals, what is refused, and the command."""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditmoe.conditioning import TEXT, Condition, text_rows
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.trust import Withheld
from ditmoe.modality import Report, Samples
from modalities.image.metrics import compbench
from modalities.image.metrics.blip import Blip, Whole
from modalities.image.metrics.by_prompt import Paths
from modalities.shared.clip_score import prompts_of
from tests.modalities.image import blips
from tests.modalities.image.judged import sets
from tests.pages import ROOT
from tests.warm import command

EMPTY = Report({"fd/pixels": 1.0}, {"seed": 0}, {}, {"floor": {"fd/pixels": 0.5}}, ["a note"])
without = pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
needed = pytest.mark.skipif(find_spec("transformers") is None, reason="pip install 'ditmoe[transformers]'")
LINES: list[dict[str, Any]] = [
    {"tag": "color", "prompt": "a red book and a blue cup", "phrases": ["a red book", "a blue cup"]},
    {"tag": "color", "prompt": "a blue book", "phrases": ["a blue book"]},
    {"tag": "shape", "prompt": "a round cup on the left", "phrases": ["a round cup", "the left"]},
]
FIRST, SECOND, THIRD = (line["prompt"] for line in LINES)


class Fake(Blip):
    """Says yes to a colour as far as a picture has it, to other questions by its green."""

    name, fingerprint = "fake", "0" * 64
    prepared = Whole((384, 384), None, 3, 1.0, [0] * 3, [1] * 3)

    def __init__(self, path: Any = None) -> None:
        self.asked: list[Sequence[str]] = []

    def __call__(self, picture: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        self.asked.append(list(questions))
        red, green, blue = picture[0, 0] / 200
        return np.array([red if " red " in one else blue if " blue " in one else green for one in questions])


def kept(folder: Path, lines: Sequence[Any] = LINES) -> Path:
    file = folder / "phrases.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def samples(*told: tuple[str, int, int, int]) -> Samples:
    """Pictures by prompt and colour."""
    data = np.zeros((len(told), 8, 8, 3), np.uint8)
    for picture, (_, *colour) in zip(data, told, strict=True):
        picture[:] = colour
    prompts = [prompt for prompt, *_ in told]
    asked = Condition({TEXT: text_rows(prompts)}, torch.tensor([not prompt for prompt in prompts]))
    return Samples(data, asked=asked)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(compbench, "Blip", Fake)
    monkeypatch.setattr(compbench, "library_for", lambda what: None)
    return Paths(kept(tmp_path), "x")


def judged(paths: Paths, generated: Samples) -> Report:
    return compbench.added(EMPTY, compbench.opened(paths, prompts_of(generated)), generated, progress=False)


# --- scores


def test_a_score_is_the_product_over_phrases_and_a_category_the_mean_over_pictures(paths: Paths) -> None:
    made = samples(
        (FIRST, 200, 0, 100), (f" {FIRST} ", 100, 0, 100), (SECOND, 0, 0, 150), (THIRD, 0, 50, 0),
        ("a cat", 0, 0, 0), ("", 0, 0, 0),
    )  # fmt: skip
    report = judged(paths, made)
    assert report.values == pytest.approx(
        {"fd/pixels": 1.0, "compbench/color": (0.5 + 0.25 + 0.75) / 3, "compbench/shape": 0.25}
    )
    assert report.rows["floor"] == {"fd/pixels": 0.5}
    assert report.rows["other prompts"] == pytest.approx({"compbench/color": (0.5 + 0.5 + 0.0) / 3})
    assert report.notes[:2] == [
        "a note", "other prompts has no compbench/shape: all pictures have one prompt"
    ]  # fmt: skip
    assert report.protocol["seed"] == 0
    assert report.protocol["compbench"] == (
        "attribute binding: mean over pictures of the product over noun phrases of P(yes) against no (arXiv "
        "2307.06350), 4 pictures of 3 prompts, 2 pictures without requirements or noun phrases left out"
    )
    assert report.protocol["compbench blip"] == f"fake, SHA-256 {'0' * 32}; 384 x 384, PIL's filter 3"
    assert report.protocol["compbench requirements"].startswith("phrases.jsonl, SHA-256 ")
    assert "compare numbers of one BLIP" in report.protocol["compbench differs"]


def test_places_are_not_asked_about_nor_more_than_eight_phrases(paths: Paths) -> None:
    many = {"tag": "shape", "prompt": "many", "phrases": ["top", *(f"Thing {i}" for i in range(9))]}
    kept(Path(paths.file).parent, [*LINES, many])
    judge = compbench.opened(paths, [THIRD, "many"])
    assert judge is not None
    compbench.added(EMPTY, judge, samples((THIRD, 0, 0, 0)), progress=False)
    things = [f"thing {i}?" for i in range(8)]
    assert judge.blip.asked == [["a round cup?", *things]]


def test_intervals_count_prompts_and_not_their_pictures(paths: Paths) -> None:
    def width(prompts: int, each: int) -> float:
        lines = [{"tag": "color", "prompt": f"p{i}", "phrases": ["a red cup"]} for i in range(prompts)]
        kept(Path(paths.file).parent, lines)
        made = samples(*[(f"p{i}", 80 + 40 * (i % 2), 0, 0) for i in range(prompts) for _ in range(each)])
        report = judged(paths, made)
        low, high = report.intervals["compbench/color"]
        assert report.values["compbench/color"] == pytest.approx(0.5)
        assert 0 <= low < 0.5 < high <= 1
        return high - low

    assert width(10, 1) == pytest.approx(width(10, 4))
    assert width(40, 1) < width(10, 1) * 0.6
    assert width(2, 1) == 1.0  # within what a score can be
    one = judged(Paths(kept(Path(paths.file).parent), "x"), samples((THIRD, 0, 9, 0)))
    assert "compbench/shape" not in one.intervals


def test_the_report_says_if_others_prompts_fit_as_well(paths: Paths) -> None:
    told = "compbench/color is no higher than with other prompts, as far as chance goes"
    lines = [
        {"tag": "color", "prompt": f"p{i}", "phrases": [f"a {'red' if i % 2 else 'blue'} cup"]}
        for i in range(20)
    ]
    kept(Path(paths.file).parent, lines)
    blind = judged(paths, samples(*[(f"p{i}", 100 + i, 0, 100 + i) for i in range(20)]))
    assert blind.rows["other prompts"] == pytest.approx({"compbench/color": blind.values["compbench/color"]})
    assert any(told in note for note in blind.notes)
    seeing = judged(paths, samples(*[(f"p{i}", 190 * (i % 2), 0, 190 - 190 * (i % 2)) for i in range(20)]))
    assert seeing.values["compbench/color"] == pytest.approx(0.95)
    assert seeing.rows["other prompts"] == {"compbench/color": 0.0}
    assert not any(told in note for note in seeing.notes)


# --- spaCy


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for it: a phrase is what stands between two "and"."""
    module = ModuleType("spacy")

    def load(name: str) -> Any:
        assert name == "en_core_web_sm"
        return lambda prompt: SimpleNamespace(
            noun_chunks=[SimpleNamespace(text=each) for each in prompt.split(" and ") if "a " in f"{each} "]
        )

    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.8.0")
    return module


def test_phrases_that_a_line_lacks_are_spacys(paths: Paths, spacy: Any) -> None:
    lines = [{key: line[key] for key in ("tag", "prompt")} for line in LINES[:2]]
    kept(Path(paths.file).parent, [*lines, LINES[2], {"tag": "color", "prompt": "snow"}])
    judge = compbench.opened(paths, [FIRST, THIRD, "snow"])
    assert judge is not None
    assert {prompt: one.phrases for prompt, one in judge.required.items()} == {
        FIRST: ("a red book", "a blue cup"),
        THIRD: ("a round cup",),
    }
    assert judge.file.endswith("; phrases of 2 prompts by en_core_web_sm 3.8.0")
    report = compbench.added(EMPTY, judge, samples((FIRST, 200, 0, 100), ("snow", 0, 0, 0)), progress=False)
    assert report.values["compbench/color"] == 0.5
    assert "1 pictures of 1 prompts, 1 pictures without" in report.protocol["compbench"]
    with pytest.raises(
        ValueError, match=r"asks about noun phrases, and the samples' prompts have none, as 'snow'$"
    ):
        compbench.opened(paths, ["snow"])


def test_where_spacy_lacks_it_is_said_what_to_do(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", lacks)
    kept(Path(paths.file).parent, [*LINES[:2], {"tag": "shape", "prompt": THIRD}])
    assert compbench.opened(paths, [FIRST]) is not None
    said = (
        r"^modality.evaluation.compbench must have the noun phrases of 'a round cup on the left' in its line, as "
        r'"phrases": \["a red book"\], or spaCy and its en_core_web_sm must be installed, which find them: [^\n]*$'
    )
    with pytest.raises(ValueError, match=said):
        compbench.opened(paths, [FIRST, THIRD])


@pytest.mark.skipif(find_spec("en_core_web_sm") is None, reason="spaCy's model is on no package index")
def test_spacy_itself_finds_phrases() -> None:
    assert compbench.noun_phrases(["a green bench and a blue bowl", "a cat on the left of a dog"]) == [
        ("a green bench", "a blue bowl"),
        ("a cat", "a dog"),
    ]


# --- files


def test_the_documentation_states_some(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "text.md").read_text()
    block = re.search(r"^```json\n(\{\"tag\": \"color.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    found = compbench.read(kept(tmp_path, block[1].splitlines()))
    assert found["a green bench and a blue bowl"].phrases == ("a green bench", "a blue bowl")


def test_the_documentation_makes_them_of_the_benchmarks_files(tmp_path: Path) -> None:
    line = re.search(r"^sed .* > color\.jsonl", (ROOT / "docs" / "text.md").read_text(), re.MULTILINE)
    assert line is not None
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl\nA man's cup.\n")
    subprocess.run(line[0], shell=True, check=True, cwd=tmp_path)
    found = compbench.read(tmp_path / "color.jsonl")
    assert [(one.tag, one.prompt, one.phrases) for one in found.values()] == [
        ("color", "a green bench and a blue bowl", None), ("color", "A man's cup.", None)
    ]  # fmt: skip


def changed(**more: Any) -> dict[str, Any]:
    return {key: value for key, value in (LINES[0] | more).items() if value is not ...}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", r"it must be a JSON object, got \[1\]"),
        ("{", "Expecting property name"),
        (changed(tag=...), "it must have tag"),
        (changed(tag="spatial"), "tag must be one of color, shape, texture, got 'spatial'"),
        (changed(tag=["color"]), "tag must be one of color, shape, texture, got"),
        (changed(phrase="a cup"), "it must have no phrase; it may have tag, prompt, phrases"),
        (changed(prompt="a\x1b[2J"), "prompt must be printable text"),
        (changed(prompt=3), "prompt must be printable text"),
        (changed(phrases=[]), r"phrases must be a list of 1 to 64 texts, got \[\]"),
        (changed(phrases=None), "phrases must be a list of 1 to 64 texts, got None"),
        (changed(phrases="a cup"), "phrases must be a list of 1 to 64 texts, got 'a cup'"),
        (changed(phrases=["a cup"] * 65), "phrases must be a list of 1 to 64 texts"),
        (
            changed(phrases=["a cup", 3]),
            r"phrases\[1\] must be printable text of at most 2000 letters, got 3",
        ),
        (changed(phrases=["a cup", " "]), r"phrases\[1\] must be printable text"),
        (changed(phrases=["a" * 2001]), r"phrases\[0\] must be printable text"),
        (
            changed(phrases=["top", "the left"]),
            "phrases must name more than places, which are left out: top, the",
        ),
        (changed(tag="shape"), "prompt must be another than in an earlier line, of other requirements"),
    ],
)
def test_a_line_that_states_none_is_told(line: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^line 2 of [^\n]*phrases.jsonl: [^\n]*{said}[^\n]*$"):
        compbench.read(kept(tmp_path, [LINES[0], line]))


def test_a_huge_file_and_an_empty_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"phrases.jsonl must hold a JSON object a line, got none$"):
        compbench.read(kept(tmp_path, [""]))
    with (tmp_path / "phrases.jsonl").open("r+b") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ValueError, match=r"^[^\n]*phrases.jsonl[^\n]*$"):
        compbench.read(tmp_path / "phrases.jsonl")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["color", "top"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["tag", "prompt", "phrases", "x"]), PLAIN)
def test_any_line_states_some_or_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    said = f"line 1 of {tmp_path}"
    try:
        (one,) = compbench.read(kept(tmp_path, [changed(**{name: value})])).values()
        assert 0 < len(one.questions) <= 8
    except ValueError as error:
        said = str(error)
    assert said.startswith(f"line 1 of {tmp_path}")
    assert "\n" not in said


# --- what is refused


def test_the_options_need_each_other() -> None:
    options = {"compbench": "m.jsonl", "vqa": "b/", "seed": 1}
    assert compbench.option(options) == Paths("m.jsonl", "b/")
    assert options == {"seed": 1}
    assert compbench.option({}) is None
    for given_, lacks in (("compbench", "vqa"), ("vqa", "compbench")):
        with pytest.raises(
            ValueError, match=rf"^modality.evaluation.{given_} needs modality.evaluation.{lacks} too"
        ):
            compbench.option({given_: "x"})
    with pytest.raises(ValueError, match=r"^modality.evaluation.vqa must be a path or null, got 3$"):
        compbench.option({"compbench": "m.jsonl", "vqa": 3})


@pytest.mark.parametrize("prompts", [None, [], ["", ""]])
def test_pictures_without_prompts_are_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"^modality.evaluation.compbench judges samples by their prompts"):
        compbench.opened(Paths("/nowhere", "/nowhere"), prompts)
    assert compbench.opened(None, prompts) is None
    assert compbench.added(EMPTY, None, samples(("a", 0, 0, 0))) is EMPTY


def test_what_cannot_be_judged_is_refused(paths: Paths) -> None:
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.compbench must have requirements .* 'a red book and"
    ):
        compbench.opened(paths, ["a cat"])
    with pytest.raises(ValueError, match=r"^modality.evaluation.compbench must be a file .*No such file"):
        compbench.opened(Paths("/no/such", "x"), [FIRST])


def test_a_checkpoint_cannot_have_them_opened(tmp_path: Path) -> None:
    for name, made in (
        ("compbench", lambda held: Paths(held, "x")),
        ("vqa", lambda held: Paths(kept(tmp_path), held)),
    ):
        held = Withheld(str(tmp_path), f"modality.evaluation.{name}", tmp_path / "x")
        with pytest.raises(ValueError, match=rf"wants to open modality\.evaluation\.{name} = .*trust=true"):
            compbench.opened(made(held), [FIRST])


@without
def test_the_library_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^a BLIP of transformers needs that library: pip install 'ditmoe\["
    ):
        compbench.opened(Paths(kept(tmp_path), tmp_path), [FIRST])


def test_training_checks_the_captions_that_it_will_draw(paths: Paths) -> None:
    judged_by = [f"modality.evaluation.compbench={paths.file}", "modality.evaluation.vqa=x"]
    with pytest.raises(ValueError, match="judges samples by their prompts"):
        build.make_modality(composed("train", ["modality=image", *judged_by])).check_evaluation()
    image = build.make_modality(composed("train", ["modality=image", "modality.captions=true", *judged_by]))
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.compbench must have requirements of the samples'"
    ):
        image.check_evaluation()
    caption = image.data.captioner.first(image.data.split("test")[3])
    kept(Path(paths.file).parent, [*LINES, LINES[0] | {"prompt": caption}])
    image.check_evaluation()


# --- the command


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    words = sets(tmp_path, ["a cat"] * 8, "compbench", kept(tmp_path))
    for more, said in (
        ([], "modality.evaluation.compbench needs modality.evaluation.vqa too"),
        (
            [f"modality.evaluation.vqa={tmp_path}"],
            "must have requirements of the samples' prompts, and has of none",
        ),
    ):
        ran = command("ditmoe.evaluate", *words, *more, cwd=tmp_path)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
        assert said in ran.stderr
    assert not (tmp_path / "metrics.json").exists()


@needed
def test_the_command_says_what_it_measured(tmp_path: Path) -> None:
    folder = blips.save(tmp_path / "blip")
    words = sets(
        tmp_path,
        [prompt for prompt in (FIRST, SECOND, THIRD, "a cat") for _ in range(2)],
        "compbench",
        kept(tmp_path),
    )
    words.append(f"modality.evaluation.vqa={folder}")
    ran = command("ditmoe.evaluate", *words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "compbench/color" in ran.stdout
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert set(told["interval"]) >= {"compbench/color"}
    assert 0 < told["compbench/color"] < 1
    assert set(told["other prompts"]) == {"compbench/color"}
    assert told["protocol"]["compbench"].endswith(
        "6 pictures of 3 prompts, 2 pictures without requirements or noun phrases left out"
    )
    assert told["protocol"]["compbench blip"].startswith("blip, SHA-256 ")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    ran = command("ditmoe.evaluate", *words, cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "modality.evaluation.vqa must be a BLIP of transformers" in ran.stderr
