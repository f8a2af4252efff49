"""Samples at their own sizes: proportions are kept, budgets held, and training on them is training on each."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from ditmoe import DiTMoE
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.diffusion import FlowAncestralScheduler, FlowMatching, denoise, make_scheduler
from ditmoe.inference import draw_from
from ditmoe.moe import TokenChoice
from ditmoe.train import make_trainer
from ditmoe.training import Trainer
from ditmoe.training.resume import resume
from modalities.image import Image, LatentTokens, Pictures
from modalities.latent import Packing, PatchPCA
from modalities.latent import packing as native
from modalities.latent.packing import native_size
from modalities.video import CausalPatches, Clips, SpacetimeTokens, Video
from modalities.video.data.clip_reader import ClipReader
from modalities.video.io.writer import write_ffv1


@pytest.mark.parametrize("area", [64, 1024, 10_000])
def test_native_sizes_are_multiples_within_the_area_and_near_the_proportions(area: int) -> None:
    for size in itertools.product((5, 31, 64, 200, 1999), repeat=2):
        height, width = native_size(size, (8, 8), area)
        assert height % 8 == width % 8 == 0
        assert height * width <= max(area, 64)
        assert height <= max(8, size[0] + 8)
        assert width <= max(8, size[1] + 8)
        if min(height, width) >= 64:
            assert abs(np.log(height / width * size[1] / size[0])) < 0.2
    assert native_size((48, 80), (8, 8), 48 * 80) == (48, 80)


def test_packing_holds_the_budget_takes_each_once_and_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(4, 200, 1000).tolist()
    packing = Packing(lengths, 1024)
    first: list[list[int]] = []
    while (found := packing.row(3, len(first)))[0] < 1000:
        assert sum(lengths[i] for i in found) <= 1024
        first.append(found)
    assert sorted(i for found in first for i in found) == list(range(1000))
    assert packing.waste < 0.05
    assert [packing.row(3, i) for i in range(len(first))] == first
    assert [i % 1000 for i in packing.row(3, len(first))] != first[0]
    assert packing.row(4, 0) != first[0]


def test_few_samples_are_packed_over_several_epochs() -> None:
    packing, counts = Packing([60, 50, 30], 100), np.zeros(3, int)
    assert packing.waste < 0.15  # alone they would fill two batches and leave 30 % empty
    step, last = 0, 0
    while (found := packing.row(0, step))[0] < len(packing.lengths):
        counts += np.bincount(np.array(found) % 3, minlength=3)
        step, last = step + 1, max(last, *found)
    assert counts.tolist() == [len(packing.lengths) // 3] * 3
    assert last < len(packing.lengths) <= min(packing.row(0, step))


def test_late_rows_are_found_without_packing_all_epochs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(1).integers(1, 9, 40).tolist()
    packing, pack, epochs = Packing(lengths, 10), native._pack, []

    def counted(*of: object) -> tuple:
        epochs.append(of[-1])
        return pack(*of)

    late = packing.row(0, 2500)
    assert late == Packing(lengths, 10).row(0, 2500)
    monkeypatch.setattr(native, "_pack", counted)
    for row in range(2500, 2520):
        packing.row(0, row)
    assert min(epochs) > 8
    assert len(epochs) <= 25


@pytest.mark.parametrize("size", [(20, 400), (32, 1000), (1000, 8), (3, 9)])
def test_long_pictures_stay_long(size: tuple[int, int]) -> None:
    height, width = native_size(size, (8, 8), 1024)
    assert height * width <= 1024
    assert (height > width) == (size[0] > size[1])
    assert max(height, width) >= min(128, max(size) - 7)


def test_a_sample_beyond_the_budget_is_named() -> None:
    lengths = [4, 199]
    with pytest.raises(ValueError, match=r"must hold the largest sample, of 199 tokens, got 100"):
        Packing(lengths, 100)


def image(root: Path | None, size: tuple[int, int] = (32, 32), budget: int = 64) -> Image:
    data = partial(Pictures, root=root)
    return Image(
        data, partial(PatchPCA, (4, 4), 6), partial(LatentTokens, patch=2), size, native=True, budget=budget
    )


def video(root: Path | None, pictures: Path | None = None, budget: int = 200) -> Video:
    codec = partial(CausalPatches, channels=4, steps=0)
    return Video(
        partial(Clips, root=root, split=(1, 0, 0)), codec, SpacetimeTokens, frames=9, size=(32, 32), native=True,
        pictures=partial(Pictures, root=pictures), budget=budget,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Clips and pictures of several sizes; one picture is damaged."""
    rng = np.random.default_rng(0)
    for i, (frames, height, width) in enumerate([(9, 32, 32), (14, 24, 48), (3, 64, 32), (5, 20, 60)]):
        clip = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
        write_ffv1(tmp_path / "clips" / "a" / f"{i}.mkv", clip, 8.0)
    for i, (height, width) in enumerate([(40, 30), (16, 64), (33, 35), (100, 50)]):
        file = tmp_path / "pictures" / "train" / "b" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    (tmp_path / "pictures" / "train" / "b" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "clips", tmp_path / "pictures"


def test_pictures_are_packed_at_their_sizes(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    modality = image(folders[1])
    shapes = set()
    for step in range(6):
        samples, labels = modality.packed_batch(0, step)
        assert sum(x[0].numel() // 4 for x in samples) <= 64
        assert labels.tolist() == [0] * len(samples)
        shapes |= {tuple(x.shape) for x in samples}
    wanted = [native_size(size, (8, 8), 1024) for size in [(40, 30), (16, 64), (33, 35), (100, 50)]]
    assert shapes == {(6, h // 4, w // 4) for h, w in wanted}
    said = capsys.readouterr()
    assert "4 pictures at 3 sizes" in said.out
    assert "stay empty" in said.out
    assert "bad.png is no readable picture" in said.err


def test_clips_and_pictures_are_packed_together(folders: tuple[Path, Path]) -> None:
    modality = video(*folders)
    assert list(modality.classes) == ["a", "b"]
    seen = set()
    for step in range(8):
        samples, labels = modality.packed_batch(1, step)
        for x, label in zip(samples, labels.tolist(), strict=True):
            seen.add((label, *x.shape))
    assert {(label, frames) for label, _, frames, *_ in seen} == {(0, 3), (0, 1), (0, 2), (1, 1)}
    assert (0, 4, 3, 6, 10) in seen  # 14 frames of 24 x 48: the first frames that fit, shrunk to the area
    assert len(seen) == 7


def test_pictures_are_mirrored_in_half_of_the_draws(folders: tuple[Path, Path]) -> None:
    plain, mirrored = image(folders[1]), image(folders[1])
    mirrored.data.mirror = True
    mirrored.restore_facts(plain.data_facts())
    turned = []
    for row in range(6):
        for a, b in zip(plain.packed_batch(0, row)[0], mirrored.packed_batch(0, row)[0], strict=True):
            turned.append(not torch.equal(a, b))
    assert 0.2 < np.mean(turned) < 0.8


def test_what_becomes_unreadable_is_left_out(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, clips = image(folders[1], budget=16), video(folders[0], budget=64)
    before = pictures.packed_batch(0, 0), clips.packed_batch(0, 0)
    gone = {pictures.packing[1][n % 4][0].name for n in pictures.packing[0].row(0, 0)}
    read = Pictures.read_whole
    monkeypatch.setattr(
        Pictures, "read_whole", lambda self, p, *of: None if p.name in gone else read(self, p, *of)
    )
    after = pictures.packed_batch(0, 0)
    assert len(after[0]) > 0
    assert [x.shape for x in after[0]] != [x.shape for x in before[0][0]]
    monkeypatch.setattr(ClipReader, "read_whole", lambda *of: None)
    with pytest.raises(ValueError, match="must be readable clips"):
        clips.packed_batch(0, 0)


def test_clips_shorter_than_a_token_are_left_out_and_told(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    codec = partial(CausalPatches, channels=4, steps=0, stride=(1, 4, 4))
    modality = Video(
        partial(Clips, root=folders[0], split=(1, 0, 0)), codec, partial(SpacetimeTokens, patch=(4, 2, 2)), frames=8,
        size=(32, 32), native=True, budget=100,
    )  # fmt: skip
    assert all(x.shape[1] % 4 == 0 for row in range(4) for x in modality.packed_batch(0, row)[0])
    assert "3 clips of 3 lengths and sizes, without 1 that have fewer frames" in capsys.readouterr().out


def test_a_codec_learns_from_clips_of_any_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for i, frames in enumerate([5, 9]):
        write_ffv1(tmp_path / f"{i}.mkv", rng.integers(0, 256, (frames, 32, 32, 3), np.uint8), 8.0)
    modality = Video(
        partial(Clips, root=tmp_path, split=(1, 0, 0)), partial(CausalPatches, channels=4, steps=0), SpacetimeTokens,
        frames=13, size=(32, 32), native=True, budget=100,
    )  # fmt: skip
    assert {x.shape[1] for row in range(4) for x in modality.packed_batch(0, row)[0]} == {2, 3}
    assert "skipped" not in capsys.readouterr().err


def test_pictures_lie_in_pixels() -> None:
    layout = LatentTokens(24, 3).layout(torch.zeros(1, 3, 4, 4))
    coarse = LatentTokens(24, 3, patch=2, stride=(8, 8)).coordinates(layout)
    assert torch.equal(coarse, 2 * LatentTokens(24, 3, patch=2, stride=(4, 4)).coordinates(layout))
    assert coarse.max() == 16 / 8  # the second token begins 16 pixels from the first


def test_built_in_samples_have_many_sizes() -> None:
    for modality in (image(None), video(None)):
        batches = [modality.packed_batch(0, step)[0] for step in range(2)]
        assert len({x.shape for samples in batches for x in samples}) > 1


def test_the_loss_of_a_packed_batch_is_that_of_its_samples() -> None:
    torch.manual_seed(0)
    net = DiTMoE(LatentTokens(24, 3), 10, 24, 2, 2, partial(TokenChoice, num_experts=4, top_k=2))
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    samples = [torch.randn(3, *size) for size in ((4, 6), (8, 2), (4, 4))]
    t, y, process = torch.tensor([100.0, 500.0, 800.0]), torch.tensor([1, 2, 10]), FlowMatching("residual")
    rows, layout = net.tokens.pack(samples)
    noise = torch.randn(rows.shape)
    each = t[layout.sample]
    error = net(process.corrupt(rows, noise, each)[None], t, y, layout)[0][0] - process.target(
        rows, noise, each
    )
    ends = list(itertools.accumulate(layout.lengths, initial=0))
    for i, x in enumerate(samples):
        own = slice(ends[i], ends[i + 1])
        like = x[None]
        e = net.tokens.unpatchify(
            noise[None, own], net.tokens.layout(like), like, t[i : i + 1], torch.zeros(1, 24)
        )
        target = process.target(like, e, t[i : i + 1])
        alone = net(process.corrupt(like, e, t[i : i + 1]), t[i : i + 1], y[i : i + 1])[0] - target
        assert torch.allclose(alone.square().mean(), error[own].square().mean(), rtol=1e-4)


def test_times_shift_with_the_number_of_tokens() -> None:
    process, t = FlowMatching(tokens=64), torch.linspace(0, 1000, 11)
    assert torch.allclose(process.shifted(t, 64), t)
    more, less = process.shifted(t, 256), process.shifted(t, 16)
    assert (more[1:-1] > t[1:-1]).all()
    assert (less[1:-1] < t[1:-1]).all()
    assert torch.allclose(process.shifted(more, 16), t)  # half and twice the noise undo each other
    assert more[[0, -1]].tolist() == [0, 1000]
    # the noise-to-signal ratio s / (1 - s) is multiplied by sqrt(256 / 64)
    s, shifted = t[1:-1] / 1000, more[1:-1] / 1000
    assert torch.allclose(shifted / (1 - shifted), 2 * s / (1 - s), rtol=1e-4)
    assert torch.equal(FlowMatching().shifted(t, 256), t)


def test_sampling_follows_the_shifted_times() -> None:
    seen = []

    class Probe(DiTMoE):
        def forward(self, x, t, y, layout=None):
            seen.append(float(t[0]))
            return super().forward(x, t, y, layout)

    net = Probe(LatentTokens(24, 3), 10, 24, 1, 2)
    for tokens in (None, 4):
        process = FlowMatching(tokens=tokens)
        scheduler = make_scheduler(FlowAncestralScheduler, process)
        out = denoise(
            net, process, scheduler, torch.randn(1, 3, 8, 8), net.conditioning.ask(1, list("abc")), steps=4
        )
        assert out.isfinite().all()
    plain, shifted = torch.tensor(seen[:4]), torch.tensor(seen[4:])
    assert torch.allclose(shifted, FlowMatching(tokens=4).shifted(plain, 16), atol=1e-2)


def test_native_and_latents_on_disk_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latents on disk are of one size"):
        Image(Pictures, PatchPCA, LatentTokens, latents=str(tmp_path), native=True)


def test_rows_are_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"modality.rows must be at least 1, got 0"):
        Image(Pictures, PatchPCA, LatentTokens, rows=0, native=True)


def native_run(folder: Path, modality: str, *more: str) -> tuple[Trainer, dict]:
    options = [f"modality={modality}", "modality.native=true", "model=debug", "model.rope=true", "process.tokens=16",
               "trainer.steps=4", "trainer.preview_every=0", "modality.budget=100"]  # fmt: skip
    options += ["modality.codec.steps=0"] if modality == "video" else []
    options += more
    config = composed("train", options)
    return make_trainer(config, build.make_modality(config), folder), config


@pytest.mark.parametrize("modality", ["image", "video"])
def test_training_at_native_sizes_resumes_bit_for_bit(modality: str, tmp_path: Path) -> None:
    whole, _ = native_run(tmp_path / "whole", modality)
    whole.run()
    first, config = native_run(tmp_path / "parts", modality)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    first.options = replace(first.options, steps=2)
    first.run()
    second, _ = native_run(tmp_path / "parts", modality)
    resume(second, config)
    assert second.step == 2
    second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert any(not torch.equal(v, before[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_run_at_native_sizes_draws_sizes_that_it_never_saw(modality: str, tmp_path: Path) -> None:
    native_run(tmp_path, modality, "trainer.steps=1")[0].run()
    frames = 1 if modality == "video" else None
    for size in ([24, 56], [56, 24]):
        restored = restore(tmp_path)
        samples = draw_from(
            restored, restored.model.conditioning.ask(2, restored.modality.classes), size=size, frames=frames
        )
        assert list(samples.data.shape[-3:]) == [*size, 3]
