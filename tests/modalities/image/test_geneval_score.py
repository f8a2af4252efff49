"""GenEval's score of a set: its shares, controls and intervals, what is refused, and the command."""

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ditmoe.conditioning import TEXT, Condition, text_rows
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.trust import Withheld
from ditmoe.inference import evaluate_checkpoint, evaluate_files, sample_checkpoint
from ditmoe.modality import Report, Samples
from ditmoe.train import make_trainer
from modalities.image.metrics import geneval_score
from modalities.image.metrics.by_prompt import Paths
from modalities.image.metrics.detector import Detector, Resizing
from modalities.image.metrics.geneval import COLOURS, Found
from modalities.image.metrics.geneval_score import Colours, cropped
from modalities.shared.clip_model import Clip
from modalities.shared.clip_score import prompts_of
from modalities.shared.confidence import of_mean, wilson
from tests.modalities.image import detectors
from tests.modalities.image.judged import sets
from tests.pages import ROOT
from tests.warm import command

EMPTY = Report({"fd/pixels": 1.0}, {"seed": 0}, {}, {"floor": {"fd/pixels": 0.5}}, ["a note"])
without = pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
needed = pytest.mark.skipif(find_spec("transformers") is None, reason="pip install 'ditmoe[transformers]'")


class Fake(Detector):
    """Finds in a picture a bench, if its red is above 100, and as many dogs as its blue says."""

    name, fingerprint, classes = "fake", "0" * 64, ["bench", "dog"]
    prepared = Resizing(800, None, 2, 1.0, [0] * 3, [1] * 3, 1333, 32)

    def __init__(self, path: Any = None) -> None:
        self.asked: list[float] = []

    def __call__(self, picture: np.ndarray, above: float) -> list[Found]:
        self.asked.append(above)
        red, _, blue = picture[0, 0]
        mask = np.ones(picture.shape[:2], bool)
        names = ["bench"] * int(red > 100) + ["dog"] * int(blue)
        return [Found(name, 0.95, (0, 0, 8, 8), mask) for name in names]


class FakeClip(Clip):
    """Sees the mean colour of a picture, and in a caption that of its first word for one that it knows."""

    name, fingerprint = "fake clip", "1" * 64
    known: ClassVar[Mapping[str, Any]] = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []
        self.captions: list[str] = []

    def of_pictures(self, pictures: Iterable[np.ndarray], batch: int = 32) -> np.ndarray:
        self.seen += (some := list(pictures))
        return self._unit([picture.mean((0, 1)) for picture in some])

    def of_captions(self, captions: Sequence[str], batch: int = 32) -> np.ndarray:
        self.captions += captions
        words = [one.replace("-", " ").split() for one in captions]
        return self._unit(
            [next((self.known[w] for w in some if w in self.known), (1, 1, 1)) for some in words]
        )

    @staticmethod
    def _unit(rows: Sequence[Any]) -> np.ndarray:
        x = np.array(rows, np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)


LINES: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
    {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}], "prompt": "a red bench"},
]


def kept(folder: Path, lines: Sequence[Any] = LINES) -> Path:
    file = folder / "m.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def samples(*told: tuple[str, int, int]) -> Samples:
    """Pictures by prompt, red and blue."""
    data = np.zeros((len(told), 8, 8, 3), np.uint8)
    for picture, (_, red, blue) in zip(data, told, strict=True):
        picture[:] = (red, 0, blue)
    prompts = [prompt for prompt, _, _ in told]
    asked = Condition({TEXT: text_rows(prompts)}, torch.tensor([not prompt for prompt in prompts]))
    return Samples(data, asked=asked)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(geneval_score, "Detector", Fake)
    monkeypatch.setattr(geneval_score, "library_for", lambda what: None)
    return Paths(kept(tmp_path), "x")


def judged(paths: Paths, generated: Samples, clip: Clip | None = None) -> Report:
    judge = geneval_score.opened(paths, prompts_of(generated), clip)
    return geneval_score.added(EMPTY, judge, generated, progress=False)


def test_shares_of_tasks_and_the_next_prompt_of_each(paths: Paths) -> None:
    made = samples(
        *[("a bench", 200, 0)] * 3, ("a bench", 0, 1), *[("a dog", 0, 1)] * 2, *[("a  dog", 0, 0)] * 2,
        *[("two dogs", 0, 2)] * 3, ("two dogs", 0, 3), ("a cat", 200, 0), ("", 200, 0),
    )  # fmt: skip
    report = judged(paths, made)
    assert report.values == {
        "fd/pixels": 1.0,
        "geneval": pytest.approx((5 / 8 + 3 / 4) / 2),
        "geneval/single_object": 5 / 8,
        "geneval/counting": 3 / 4,
    }
    assert report.rows == {"floor": {"fd/pixels": 0.5}, "other prompts": {"geneval/single_object": 1 / 8}}
    assert report.notes[0] == "a note"
    assert report.notes[1] == "other prompts has no geneval/counting: all pictures have one prompt"
    assert report.protocol["seed"] == 0
    assert report.protocol["geneval"] == (
        "mean over 2 tasks of the share of right pictures (arXiv 2310.11513), 12 pictures of 3 prompts, 2 pictures "
        "without requirements left out"
    )
    assert report.protocol["geneval detector"] == (
        f"fake, SHA-256 {'0' * 32}; shorter side 800, at most 1333, multiples of 32, PIL's filter 2; scores above 0.3, "
        "in counting 0.9, at most 16 of a class"
    )
    assert report.protocol["geneval requirements"].startswith("m.jsonl, SHA-256 ")
    assert "compare numbers of one detector and CLIP only" in report.protocol["geneval differs"]
    assert "geneval colours" not in report.protocol


def test_the_detector_looks_by_the_threshold_of_the_task(paths: Paths) -> None:
    made = samples(("a dog", 0, 1), ("two dogs", 0, 2), ("a cat", 0, 0))
    judge = geneval_score.opened(paths, ["a dog", "two dogs"], None)
    assert judge is not None
    geneval_score.added(EMPTY, judge, made, progress=False)
    assert judge.detector.asked == [0.3, 0.9]


def test_the_table_says_if_others_prompts_fit_as_well(paths: Paths) -> None:
    told = "geneval is no higher than with other prompts, as far as chance goes"
    blind = samples(*[("a bench", 200, 1)] * 4, *[("a dog", 200, 1)] * 4)
    report = judged(paths, blind)
    assert report.rows["other prompts"] == {"geneval": 1.0, "geneval/single_object": 1.0}
    assert any(told in note for note in report.notes)
    two_prompts_of_luck = samples(*[("a bench", 200, 0)] * 4, *[("a dog", 200, 1)] * 4)
    report = judged(paths, two_prompts_of_luck)
    assert report.values["geneval"] == 1.0
    assert report.rows["other prompts"]["geneval"] == 0.5
    assert any(told in note for note in report.notes)
    seeing = samples(*[("a bench", 200, 0)] * 4, *[("a dog", 0, 1)] * 4)
    report = judged(paths, seeing)
    assert report.rows["other prompts"] == {"geneval": 0.0, "geneval/single_object": 0.0}
    assert not any(told in note for note in report.notes)


# --- intervals


def test_intervals_count_prompts_and_not_their_pictures(paths: Paths) -> None:
    made = samples(*[("a bench", 200, 0)] * 4, *[("a dog", 0, 0)] * 4, *[("two dogs", 0, 2)] * 4)
    report = judged(paths, made)
    single, counting = wilson(0.5, 1), wilson(1.0, 1)  # .5 * .5 / (2 / 1 * (2^2 + 2^2) / 8^2) = 1
    assert report.intervals["geneval/single_object"] == pytest.approx(single)
    assert report.intervals["geneval/counting"] == pytest.approx(counting)
    assert report.intervals["geneval"] == pytest.approx(of_mean([0.5, 1.0], [single, counting]))


# --- colours


def test_colours_are_those_of_a_clip(paths: Paths) -> None:
    clip = FakeClip()
    report = judged(paths, samples(*[("a red bench", 200, 0)] * 3, ("a red bench", 120, 130)), clip)
    assert report.values["geneval/colors"] == 0.75  # the last is more blue than red
    assert report.protocol["geneval colours"].startswith(f"fake clip, SHA-256 {'1' * 32}")
    assert len(clip.captions) == 30  # once for all benches
    assert clip.captions[3:6] == [
        "a photo of a orange bench", "a photo of a orange-colored bench", "a photo of a orange object",
    ]  # fmt: skip
    assert len(COLOURS) == 10


def test_a_crop_is_grey_outside_the_mask() -> None:
    picture = np.full((10, 12, 3), 200, np.uint8)
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9], mask[2, 3] = True, False
    crop = cropped(picture, Found("dog", 1.0, (3, 2, 9, 5), mask))
    assert crop.shape == (3, 6, 3)
    assert crop[0, 0].tolist() == [0x99] * 3
    assert (crop.reshape(-1, 3)[1:] == 200).all()
    long = np.arange(1000, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    found = Found("dog", 1.0, (0, 0, 1000, 1), np.ones((1, 1000), bool))
    assert np.array_equal(cropped(long, found), long[:, 450:550])
    assert np.array_equal(
        cropped(long.swapaxes(0, 1), Found("dog", 1.0, (0, 0, 1, 1000), found.mask.T)),
        long[:, 450:550].swapaxes(0, 1),
    )


def test_the_mean_of_templates_decides() -> None:
    """Of which the last one alone would say blue."""

    class Torn(FakeClip):
        def of_captions(self, captions: Sequence[str], batch: int = 32) -> np.ndarray:
            ends = {"a red object": (0, 0, 1), "a blue object": (1, 0, 0)}
            own = super().of_captions(captions)
            torn = [
                ends.get(one.removeprefix("a photo of "), row) for one, row in zip(captions, own, strict=True)
            ]
            return self._unit(torn)

    picture = np.full((4, 4, 3), (200, 0, 180), np.uint8)
    found = Found("dog", 1.0, (0, 0, 4, 4), np.ones((4, 4), bool))
    assert Colours(Torn())(picture, found, "dog") == "red"


# --- what is refused


def test_the_options_need_each_other() -> None:
    options = {"geneval": "m.jsonl", "detector": "d/", "seed": 1}
    assert geneval_score.option(options) == Paths("m.jsonl", "d/")
    assert options == {"seed": 1}
    assert geneval_score.option({}) is None
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.geneval needs modality.evaluation.detector too"
    ):
        geneval_score.option({"geneval": "m.jsonl"})
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.detector needs modality.evaluation.geneval too"
    ):
        geneval_score.option({"detector": "d/", "geneval": None})
    for value in (3, ["a"], True):
        with pytest.raises(ValueError, match=r"^modality.evaluation.detector must be a path or null, got"):
            geneval_score.option({"geneval": "m.jsonl", "detector": value})


@pytest.mark.parametrize("prompts", [None, [], ["", ""]])
def test_pictures_without_prompts_are_refused(prompts: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.geneval judges samples by their prompts, .* leave it"
    ):
        geneval_score.opened(Paths("/nowhere", "/nowhere"), prompts, None)
    assert geneval_score.opened(None, prompts, None) is None
    assert geneval_score.added(EMPTY, None, samples(("a", 0, 0))) is EMPTY


def test_what_cannot_be_judged_is_refused(paths: Paths) -> None:
    for prompts, said in (
        (["a cat"], "modality.evaluation.geneval must have requirements of the samples' prompts, and has of none, as "
         "'a bench'"),
        (["a red bench"], "needs modality.evaluation.clip too, for the colours of 'a red bench'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^[^\n]*{said}[^\n]*$"):
            geneval_score.opened(paths, prompts, None)
    assert geneval_score.opened(paths, ["a bench", "a cat"], None) is not None
    unknown = {"tag": "single_object", "include": [{"class": "yak", "count": 1}], "prompt": "a yak"}
    kept(Path(paths.file).parent, [*LINES, unknown])
    assert geneval_score.opened(paths, ["a bench"], None) is not None
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.detector must be one .* but fake knows no 'yak'$"
    ):
        geneval_score.opened(paths, ["a yak"], None)
    Path(paths.file).write_text("{}")
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.geneval must be a file of requirements, .*line 1 of"
    ):
        geneval_score.opened(paths, ["a bench"], None)
    with pytest.raises(ValueError, match=r"^modality.evaluation.geneval must be a file .*No such file"):
        geneval_score.opened(Paths("/no/such", "x"), ["a bench"], None)


def test_a_checkpoint_cannot_have_them_opened(tmp_path: Path) -> None:
    for name, made in (
        ("geneval", lambda held: Paths(held, "x")),
        ("detector", lambda held: Paths(kept(tmp_path), held)),
    ):
        held = Withheld(str(tmp_path), f"modality.evaluation.{name}", tmp_path / "x")
        with pytest.raises(ValueError, match=rf"wants to open modality\.evaluation\.{name} = .*trust=true"):
            geneval_score.opened(made(held), ["a bench"], None)


@without
def test_the_library_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^a Mask2Former of transformers needs that library: pip install 'ditmoe\["
    ):
        geneval_score.opened(Paths(kept(tmp_path), tmp_path), ["a bench"], None)


# --- runs

TINY = [
    "model=debug", "trainer.batch_size=4", "trainer.steps=1", "trainer.preview_every=0", "sampling.steps=2",
    "modality.size=[16,16]", "modality.evaluation.cache=null", "optimizer.lr=0.001",
    "conditioning=text", "encoder@conditioning.encoder=learned",
]  # fmt: skip


def test_a_run_draws_what_is_judged(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = composed("train", ["modality=image", *TINY])
    make_trainer(settings, build.make_modality(settings), tmp_path / "run").run()
    words = ["modality=image", f"modality.evaluation.geneval={paths.file}", "modality.evaluation.detector=x"]
    option = composed("evaluate", [*words, "modality.evaluation.cache=null"])["modality"]
    (tmp_path / "generation_prompts.txt").write_text("a bench\na dog\n")
    line = re.search(r"^sed .* > four\.txt", (ROOT / "docs" / "text.md").read_text(), re.MULTILINE)
    assert line is not None
    subprocess.run(line[0], shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "four.txt").read_text() == "a bench\n" * 4 + "a dog\n" * 4
    report = evaluate_checkpoint(tmp_path / "run", modality=option, steps=2, prompts=tmp_path / "four.txt")
    assert report is not None
    assert report.protocol["geneval"].endswith("8 pictures of 2 prompts")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["geneval"] == report.values["geneval"]
    sample_checkpoint(tmp_path / "run", steps=2, prompts=tmp_path / "four.txt", out=tmp_path / "drawn")
    files = evaluate_files(option, str(tmp_path / "drawn"), str(tmp_path / "drawn"), out=tmp_path)
    assert {n: v for n, v in files.values.items() if "geneval" in n} == {
        n: v for n, v in report.values.items() if "geneval" in n
    }
    monkeypatch.setattr("ditmoe.inference.measuring.draw_from", lambda *_, **__: pytest.fail("it drew"))
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.geneval must have requirements of the samples'"
    ):
        evaluate_checkpoint(tmp_path / "run", modality=option, steps=2)


def test_training_checks_the_captions_that_it_will_draw(paths: Paths) -> None:
    judged_by = [f"modality.evaluation.geneval={paths.file}", "modality.evaluation.detector=x"]
    with pytest.raises(ValueError, match="judges samples by their prompts"):
        build.make_modality(composed("train", ["modality=image", *judged_by])).check_evaluation()
    words = ["modality=image", "modality.captions=true", *judged_by]
    image = build.make_modality(composed("train", words))
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.geneval must have requirements of the samples' prompts"
    ):
        image.check_evaluation()
    caption = image.data.captioner.first(image.data.split("test")[3])
    kept(Path(paths.file).parent, [*LINES, LINES[0] | {"prompt": caption}])
    image.check_evaluation()


# --- the command


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    words = sets(tmp_path, None, "geneval", kept(tmp_path))
    for more, said in (
        ([], "modality.evaluation.geneval needs modality.evaluation.detector too"),
        ([f"modality.evaluation.detector={tmp_path}"], "prompts.json beside their files, and none are known"),
    ):
        ran = command("ditmoe.evaluate", *words, *more, cwd=tmp_path)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
        assert said in ran.stderr
    (tmp_path / "a" / "prompts.json").write_text(json.dumps({"prompts": ["a cat"] * 8}))
    ran = command("ditmoe.evaluate", *words, f"modality.evaluation.detector={tmp_path}", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "must have requirements of the samples' prompts, and has of none" in ran.stderr
    assert not (tmp_path / "metrics.json").exists()


@needed
def test_the_command_says_what_it_measured(tmp_path: Path) -> None:
    detector = detectors.save(tmp_path / "mask2former")
    words = sets(
        tmp_path,
        [prompt for prompt in ("a bench", "a dog", "two dogs", "a cat") for _ in range(2)],
        "geneval",
        kept(tmp_path),
    )
    ran = command("ditmoe.evaluate", *words, f"modality.evaluation.detector={detector}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "geneval/single_object" in ran.stdout
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert {"geneval", "geneval/single_object", "geneval/counting"} <= set(told)
    assert set(told["other prompts"]) == {"geneval/single_object"}
    assert told["protocol"]["geneval"].endswith(
        "6 pictures of 3 prompts, 2 pictures without requirements left out"
    )
    assert "clip_score" not in told
    (detector / "model.safetensors").rename(detector / "pytorch_model.bin")
    ran = command("ditmoe.evaluate", *words, f"modality.evaluation.detector={detector}", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "modality.evaluation.detector must be a Mask2Former of transformers" in ran.stderr


@needed
def test_the_command_looks_at_colours(tmp_path: Path) -> None:
    from tests.modalities.shared import test_clip_model as clips

    for part in (clips.tiny_clip(), clips.processor(), clips.tokenizer()):
        part.save_pretrained(tmp_path / "clip")
    words = sets(tmp_path, ["a red bench"] * 8, "geneval", kept(tmp_path))
    words.append(f"modality.evaluation.detector={detectors.save(tmp_path / 'mask2former')}")
    ran = command("ditmoe.evaluate", *words, cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "needs modality.evaluation.clip too, for the colours of 'a red bench'" in ran.stderr
    ran = command("ditmoe.evaluate", *words, f"modality.evaluation.clip={tmp_path / 'clip'}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert {"geneval", "geneval/colors", "clip_score"} <= set(told)
    assert told["protocol"]["geneval colours"].startswith("clip, SHA-256 ")
