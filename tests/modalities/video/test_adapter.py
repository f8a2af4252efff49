"""The video modality: a contract that is fulfilled, files that a person opens, and lossy ones that are not measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditmoe
from ditmoe import checkpoint
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.viewers import modality_of
from ditmoe.export import export
from ditmoe.inference import evaluate_checkpoint, evaluate_files, sample_checkpoint
from ditmoe.outside import TooFewError
from ditmoe.train import make_trainer
from ditmoe.training.resume import known_facts
from ditmoe.view import view
from modalities.video import Video
from modalities.video.data.clip_folders import read_set
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.writer import write_ffv1, write_mp4

TINY = [
    "modality=video", "model=debug", "modality.frames=9", "modality.size=[16,24]", "modality.codec.channels=6",
    "modality.codec.steps=2", "modality.codec.width=8", "trainer.batch_size=4", "trainer.warmup=2", "trainer.steps=2",
    "trainer.preview_every=0", "trainer.log_every=1", "sampling.steps=2", "modality.evaluation.cache=null",
    "modality.evaluation.frames=9", "modality.data.workers=0",
]  # fmt: skip


def config(*overrides: str) -> dict:
    return composed("train", [*TINY, *overrides])


def trained(folder: Path, *overrides: str):
    settings = config(*overrides)
    run = make_trainer(settings, build.make_modality(settings), folder)
    run.run()
    return run, settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *trained(folder)


@pytest.mark.parametrize(
    "overrides", [["model.rope=true"], ["model.attention=factorised"], ["modality.images=0.5"]]
)
def test_options_train(tmp_path: Path, overrides: list[str]) -> None:
    assert trained(tmp_path, *overrides)[0].step == 2


def test_samples_are_files_that_open_and_the_lossless_one_is_read(run, tmp_path: Path) -> None:
    folder, first, _ = run
    sheet, animation, *files = sample_checkpoint(folder, num=3, out=tmp_path / "out")
    assert [f.suffix for f in files] == [".mp4", ".mkv"] * 3
    assert Image.open(sheet).width > 6 * 64
    assert Image.open(animation).n_frames == 9
    assert len(read_index(files[0])) == 9
    stored = np.load(sample_checkpoint(folder, num=3, out=tmp_path / "s.npz")[1])["videos"]
    assert stored.shape == (3, 9, 16, 24, 3)
    assert np.array_equal(read_clip(files[1], 0, 9), stored[0])
    found = read_set(tmp_path / "out")
    assert found.lossy == 0
    assert np.array_equal(np.stack(list(found.data)), stored)
    assert first.modality.sample_shape == (6, 3, 4, 6)


def test_a_run_that_goes_on_trains_no_autoencoder_again(run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, settings = run
    data_facts = known_facts(folder, settings)
    monkeypatch.setattr(
        "modalities.video.codec.causal_patches.CausalPatches.fit", lambda *_: pytest.fail("trained again")
    )
    again = build.make_modality(settings)
    again.restore_facts(data_facts)
    for mine, other in zip(again.batch(4, 0, 7), first.modality.batch(4, 0, 7), strict=True):
        assert torch.equal(mine, other)
    other = {**settings, "modality": settings["modality"] | {"rate": 4.0}}
    assert known_facts(folder, other) is None
    assert known_facts(folder / "nothing", settings) is None


def test_any_length_and_size_can_be_drawn(run, tmp_path: Path) -> None:
    folder = run[0]
    for frames, size in ((1, None), (17, [8, 8])):
        stored = np.load(
            sample_checkpoint(folder, num=2, frames=frames, size=size, out=tmp_path / "s.npz")[1]
        )["videos"]
        assert stored.shape == (2, frames, *(size or [16, 24]), 3)
    with pytest.raises(ValueError, match=r"frames must be 1 \+ a multiple of 4"):
        sample_checkpoint(folder, num=1, frames=16)


def test_an_image_is_a_clip_of_one_frame(run) -> None:
    modality = run[1].modality
    clips = modality.data.batch(4, 0, 0)[0]
    assert torch.allclose(modality.encode(clips[:, :1]), modality.encode(clips)[:, :, :1], atol=1e-5)
    only = build.make_modality(config("modality.images=1"), checkpoint.load(run[0])["facts"])
    assert only.batch(4, 0, 0)[0].shape == (4, 6, 1, 4, 6)


def test_a_checkpoint_and_a_pipeline_carry_the_autoencoder(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run[0]
    expected = np.load(sample_checkpoint(folder, num=2, seed=1, out=tmp_path / "s.npz")[1])["videos"]
    export(folder, tmp_path / "pipe")
    monkeypatch.setattr(Video, "data", property(lambda self: pytest.fail("the data were read")))
    pipe = ditmoe.Pipeline.from_pretrained(tmp_path / "pipe")
    assert np.array_equal(pipe(num_samples=2, seed=1).samples, expected)


def test_a_run_is_measured_and_sets_of_files_if_they_are_lossless(run, tmp_path: Path) -> None:
    folder, _, settings = run
    report = evaluate_checkpoint(folder, num=6)
    assert {"floor", "oracle", "held-out"} <= report.rows.keys()
    real = run[1].modality.reference("test").data[:6]
    for i, clip in enumerate(real):
        write_ffv1(tmp_path / "lossless" / f"{i}.mkv", clip, 8)
        write_mp4(tmp_path / "lossy" / f"{i}.mp4", clip, 8)
    sets = str(tmp_path / "lossless"), str(tmp_path / "lossy")
    assert evaluate_files(settings["modality"], sets[0], sets[0], out=tmp_path).values["fd/pixels"] < 1e-6
    with pytest.raises(ValueError, match=r"^6 of the 6 reference files may be lossy[^\n]*$"):
        evaluate_files(settings["modality"], *sets, out=tmp_path)
    settings["modality"]["evaluation"]["lossy"] = True
    assert evaluate_files(settings["modality"], *sets, out=tmp_path).values["fd/pixels"] > 0


def test_clips_shorter_than_what_is_measured_are_told_before_training() -> None:
    with pytest.raises(TooFewError, match=r"take 33 frames of a clip, generated ones have \d+"):
        build.make_modality(config("modality.evaluation.frames=33")).check_evaluation()


def test_training_on_a_folder_of_videos(run, tmp_path: Path) -> None:
    clips = run[1].modality.data.batch(12, 5, 0)[0]
    for i, clip in enumerate(clips):
        write_mp4(
            tmp_path / "videos" / ("train" if i < 8 else "test") / f"class{i % 2}" / f"{i}.mp4", clip, 8
        )
    (tmp_path / "videos/train/class0/broken.mp4").write_bytes(b"no video")
    trained(tmp_path / "run", f"modality.data.root={tmp_path / 'videos'}")
    assert checkpoint.load(tmp_path / "run")["facts"]["classes"] == ["class0", "class1"]
    assert np.isfinite(evaluate_checkpoint(tmp_path / "run", split="test", trust=True).values["fd/pixels"])


def test_clips_are_viewed(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    sample_checkpoint(run[0], num=3, out=tmp_path / "samples")
    assert modality_of([tmp_path / "samples"]).name == "video"
    view([str(tmp_path / "samples")])
    assert "3 clips on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["modality.frames=10"], r"frames must be 1 \+ a multiple of 4"),
        (["modality.size=[16]"], r"modality.size must be \[height, width\]"),
        (["modality.size=[20,16]"], "the grid must be a multiple of the patch"),
        (["modality.images=2"], r"modality.images must lie in \[0, 1\], got 2"),
        (["modality.tokens.patch=[1,2]"], r"patch must be \[frames, rows, columns\]"),
        (["modality.data.root=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(overrides: list[str], line: str) -> None:
    settings = config(*overrides)

    def start() -> None:
        make_trainer(settings, build.make_modality(settings), Path("unused"))

    with pytest.raises(ValueError, match=line):
        start()
