"""The score of samples by their prompts: its arithmetic and its controls, and what is said where there is none."""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditmoe.conditioning import TEXT, Condition, captions_of, text_rows
from ditmoe.config.trust import Withheld
from ditmoe.modality import Report, Samples
from modalities.shared import clip_score
from modalities.shared.clip_model import Clip, Preprocessing
from modalities.video.io.container import Unreadable
from modalities.video.metrics.clip_sets import spaced
from tests.warm import command

EMPTY = Report({"fd/pixels": 1.0}, {"seed": 0}, {}, {"held-out": {"motion": 0.5}}, ["a note"])
without = pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")


class Fake(Clip):
    """Sees the mean colour of a picture, and in a caption a vector drawn by its letters."""

    name, fingerprint, side, limit = "fake", "0" * 64, 16, 5
    prepared = Preprocessing(16, (16, 16), 3, 1 / 255, [0.5] * 3, [0.5] * 3)

    def __init__(self) -> None:
        pass

    def of_pictures(self, pictures: Iterable[np.ndarray], batch: int = 32) -> np.ndarray:
        return self._unit([picture.mean((0, 1)) - 100 for picture in pictures])

    def of_captions(self, captions: Sequence[str], batch: int = 32) -> np.ndarray:
        return self._unit([np.random.default_rng(list(c.encode())).normal(size=3) for c in captions])

    def is_cut(self, caption: str) -> bool:
        return len(caption.split()) > self.limit

    @staticmethod
    def _unit(rows: list[np.ndarray]) -> np.ndarray:
        x = np.array(rows).reshape(-1, 3)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def samples(captions: Sequence[str], seed: int = 0, shape: Sequence[int] = (8, 8, 3), **more: Any) -> Samples:
    data = np.random.default_rng(seed).integers(0, 256, (len(captions), *shape), dtype=np.uint8)
    asked = Condition({TEXT: text_rows(captions)}, torch.tensor([not caption for caption in captions]))
    return Samples(data, asked=asked, **more)


def scored(generated: Samples, reference: Samples | None = None, pictures: Any = lambda x: [x]) -> Report:
    real = Samples(generated.data) if reference is None else reference
    return clip_score.added(EMPTY, Fake(), generated, real, pictures, "one of each", progress=False)


def by_hand(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    pairs = zip(pictures, captions, strict=True)
    one = Fake()
    return np.array(
        [100 * max(0.0, float(one.of_pictures([p])[0] @ one.of_captions([c])[0])) for p, c in pairs]
    )


CAPTIONS = ["a three", "a seven", "an eight moving left", "a nine", "a one"]


def test_own_prompts_and_the_next_ones() -> None:
    made, real = samples(CAPTIONS), samples(CAPTIONS[::-1], 1)
    report = scored(made, real)
    own = by_hand(made.data, CAPTIONS)
    assert report.values == {"fd/pixels": 1.0, "clip_score": pytest.approx(own.mean())}
    rotated = by_hand(made.data, [*CAPTIONS[1:], CAPTIONS[0]]).mean()
    assert report.rows["other prompts"] == {"clip_score": pytest.approx(rotated)}
    held = by_hand(real.data, CAPTIONS[::-1]).mean()
    assert report.rows["held-out"] == {"motion": 0.5, "clip_score": pytest.approx(held)}
    low, high = report.intervals["clip_score"]
    half = 2.776 * own.std(ddof=1) / 5**0.5  # Student's t of four degrees of freedom
    assert low == pytest.approx(max(0, own.mean() - half), abs=1e-2)
    assert high == pytest.approx(own.mean() + half, abs=1e-2)
    assert report.protocol["seed"] == 0
    assert report.notes[0] == "a note"


def test_nobody_gets_his_own_prompt_as_that_of_others() -> None:
    """Neighbours of a sorted data set share a caption: the next one that differs is taken."""
    made = samples(["a cat", "a cat", "a dog", "a dog", "a fox"])
    other = by_hand(made.data, ["a dog", "a dog", "a fox", "a fox", "a cat"]).mean()
    assert scored(made).rows["other prompts"]["clip_score"] == pytest.approx(other)
    alone = scored(samples(["a cat"] * 3))
    assert "other prompts" not in alone.rows
    assert any(note.startswith("all samples have one prompt") for note in alone.notes)


def test_no_gain_over_other_prompts_is_told() -> None:
    told = "no higher than with other prompts"
    assert any(told in note for note in scored(samples(CAPTIONS)).notes)
    seen = Fake().of_captions(CAPTIONS)
    data = (100 + 90 * seen)[:, None, None].repeat(8, 1).repeat(8, 2).round().astype(np.uint8)
    report = scored(Samples(data, asked=samples(CAPTIONS).asked))
    assert report.values["clip_score"] > 99
    assert not any(told in note for note in report.notes)


def test_samples_without_prompts_are_left_out_and_cuts_are_told() -> None:
    long = "a three moving left beside a seven"
    made = samples([*CAPTIONS, "", long])
    report = scored(made)
    kept = np.delete(made.data, 5, axis=0)
    assert report.values["clip_score"] == pytest.approx(by_hand(kept, [*CAPTIONS, long]).mean())
    assert report.protocol["clip_score"].startswith(
        "mean over 6 samples of 100 max(cos, 0) (arXiv 2104.08718"
    )
    said = "6 distinct, as they are, 1 cut at 5 tokens, 1 samples without a prompt or unreadable left out"
    assert report.protocol["clip prompts"] == said
    assert (
        report.protocol["clip pictures"] == "one of each; shorter side 16, the middle 16 x 16, PIL's filter 3"
    )
    assert report.protocol["clip"] == f"fake, SHA-256 {'0' * 32}"
    assert any("1 of 6 prompts have more than the 5 tokens" in note for note in report.notes)


def test_a_clip_is_the_mean_of_its_frames() -> None:
    made = samples(CAPTIONS, shape=(17, 8, 8, 3))
    frames = by_hand(made.data[:, ::5].reshape(-1, 8, 8, 3)[:20], [c for c in CAPTIONS for _ in range(4)])
    assert scored(made, pictures=spaced).values["clip_score"] == pytest.approx(frames.mean())


@pytest.mark.parametrize(
    ("length", "places"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (4, [0, 1, 2, 3]),
        (6, [1, 2, 3, 4]),
        (16, [0, 5, 10, 15]),
        (18, [1, 6, 11, 16]),
    ],
)
def test_frames_are_evenly_spaced(length: int, places: list[int]) -> None:
    video = np.arange(length, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    assert [frame[0, 0, 0] for frame in spaced(video)] == places


def test_an_unreadable_clip_is_left_out() -> None:
    class Broken:
        shape = (9, 8, 8, 3)

        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            raise Unreadable(Path("x.mkv"), "damaged")

    made = samples(CAPTIONS, shape=(9, 8, 8, 3))
    data = np.empty(5, object)
    data[:] = [*made.data[:4], Broken()]
    report = scored(Samples(data, asked=made.asked), pictures=spaced)
    assert report.protocol["clip_score"].startswith("mean over 4 samples")
    data[:] = [Broken()] * 5
    with pytest.raises(ValueError, match="scores samples that can be read, got none"):
        scored(Samples(data, asked=made.asked), pictures=spaced)


# --- prompts of sets on the disk


def kept_in(folder: Path, prompts: Any, names: Sequence[str] | None) -> list[str] | None:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps({"prompts": prompts}))
    read = clip_score.with_prompts("x", Samples(np.zeros((2, 8, 8, 3), np.uint8), names=names), folder)
    return clip_score.prompts_of(read)


def test_prompts_beside_samples_are_found_by_number(tmp_path: Path) -> None:
    prompts = ["a three", "", "a nine"]
    assert kept_in(tmp_path, prompts, ["a/cat-0002.png", "sample-0000"]) == ["a nine", "a three"]
    assert kept_in(tmp_path, prompts, ["sample-0001.png", "v1.5-0002"]) == ["", "a nine"]
    assert kept_in(tmp_path, prompts[:2], None) == ["a three", ""]
    plain = Samples(np.zeros((2, 8, 8, 3), np.uint8))
    assert clip_score.with_prompts(None, plain, tmp_path) is plain  # without the option nothing is read
    (tmp_path / "x.prompts.json").write_text(json.dumps({"prompts": ["a", "b"]}))
    read = clip_score.with_prompts("x", plain, tmp_path / "x.npz")
    assert read.asked is not None
    assert captions_of(read.asked) == ["a", "b"]
    assert clip_score.with_prompts("x", plain, tmp_path / "y.npz").asked is None


@pytest.mark.parametrize(
    ("prompts", "names", "said"),
    [
        (
            ["a"],
            ["sample-0000", "sample-0001"],
            "must have the prompt of sample-0001: the first of its 1 prompts",
        ),
        (["a", "b"], ["one.png", "two.png"], "must have the prompt of one.png"),
        (["a"], None, "must have a prompt for each of 2 samples, got 1"),
        ("a", None, "must hold a list of texts, prompts"),
        (["a", 3], None, "must hold a list of texts, prompts"),
    ],
)
def test_damaged_prompts_are_refused(prompts: Any, names: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*prompts.json {said}[^\n]*$"):
        kept_in(tmp_path, prompts, names)


# --- where there is nothing to score


@pytest.mark.parametrize(
    ("prompts", "said"),
    [(None, "none are known"), ([], "none of them says"), (["", ""], "none of them says")],
)
def test_without_prompts_nothing_is_opened(prompts: Any, said: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^modality.evaluation.clip scores samples by their prompts, [^\n]*{said}"
    ):
        clip_score.opened("/nowhere", prompts)
    assert clip_score.opened(None, prompts) is None
    made = samples(["a"])
    assert clip_score.added(EMPTY, None, made, made, lambda x: [x], "") is EMPTY


@pytest.mark.parametrize("value", [3, ["a"], True, {"a": 1}])
def test_the_option_is_text(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.clip must be a folder or a name on the hub, or null"
    ):
        clip_score.option({"clip": value})
    options = {"clip": "a/b", "seed": 1}
    assert clip_score.option(options) == "a/b"
    assert options == {"seed": 1}


def test_a_checkpoint_cannot_have_it_opened(tmp_path: Path) -> None:
    held = Withheld(str(tmp_path), "modality.evaluation.clip", tmp_path / "x")
    with pytest.raises(ValueError, match=r"wants to open modality\.evaluation\.clip = .*trust=true"):
        clip_score.opened(held, ["a three"])


@without
def test_the_library_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^a CLIP of transformers needs that library: pip install 'ditmoe\[transfo"
    ):
        clip_score.opened(tmp_path, ["a three"])


def pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for number, picture in enumerate(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)):
        Image.fromarray(picture).save(folder / f"sample-{number:04d}.png")
    return folder


def test_commands_refuse_it_in_one_line(tmp_path: Path) -> None:
    a, b = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    clip = f"modality.evaluation.clip={tmp_path}"
    sets = (f"generated={a}", f"reference={b}")
    ran = command("ditmoe.evaluate", "modality=image", clip, *sets, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "prompts.json beside their files, and none are known: leave it out" in ran.stderr
    ran = command("ditmoe.evaluate", "modality=pointcloud", clip, *sets, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "modality.evaluation.clip" in ran.stderr
    (a / "prompts.json").write_text(json.dumps({"prompts": ["a"] * 4}))
    ran = command("ditmoe.evaluate", "modality=image", clip, *sets, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "metrics.json").exists()


def test_a_picture_that_would_become_gigabytes_is_one_line() -> None:
    prepared = Preprocessing(224, (224, 224), 3, 1 / 255, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="at most 100 times as long as wide, got 1 x 65535"):
        prepared(np.zeros((1, 65_535, 3), np.uint8))
    assert prepared(np.zeros((2, 200, 3), np.uint8)).shape == (3, 224, 224)
