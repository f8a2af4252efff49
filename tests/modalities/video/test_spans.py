"""Clips whose first frame lies further back: what is read, what of it is seen and given, and how turns see it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.conditioning import ClassLabel
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import FlowMatching
from ditmoe.training.batches import Batches, GivenShares
from modalities.video import Video
from modalities.video.data.spans import Span
from modalities.video.data.spans import first_and_last as cut
from tests.training.test_time_per import Part

SPAN = Span(13, 29, 4, 4)


def made(*words: str) -> Video:
    small = [
        "modality=video",
        "modality.frames=13",
        "modality.span=29",
        "modality.size=[16,16]",
        "model=debug",
    ]
    return build.make_modality(composed("train", [*small, "modality.codec.steps=0", *words]))


@pytest.fixture(scope="module")
def video() -> Video:
    return made()


def batches(modality: Video, given: float = 0.7, size: int = 4, part: Part | None = None) -> Batches:
    read = ClassLabel(8, len(modality.classes)).read
    drawn = modality, modality.tokens(48), FlowMatching(), part or Part(1, 0), 7, size, 0.1, read, "frame"
    return Batches(*drawn, GivenShares(given, 0.15))


def test_gaps_are_drawn_by_address_and_reach_as_far_as_the_span() -> None:
    gaps = [SPAN.gap(0, step) for step in range(2000)]
    assert gaps == [SPAN.gap(0, step) for step in range(2000)]
    assert gaps != [SPAN.gap(1, step) for step in range(2000)]
    assert set(gaps) == {0, 1, 2, 3, 4}
    assert 0.25 < np.mean(np.array(gaps) > 0) < 0.35
    assert SPAN.frames_of(max(gaps)) == SPAN.span


def test_a_batch_is_the_first_and_the_last_latents_of_longer_clips(video: Video) -> None:
    for step in range(12):
        clips, labels = video.data.batch(4, 7, step)
        gap = SPAN.gap(7, step)
        assert clips.shape[1] == 29
        whole = video.encode(clips[:, : 13 + 4 * gap])
        x, asked = video.batch(4, 7, step)
        assert torch.equal(x, cut(whole, 4))
        assert torch.equal(x[:, :, :1], whole[:, :, :1])
        assert torch.equal(x[:, :, 1:], whole[:, :, 1 + gap :])
        assert asked.tolist() == labels.tolist()


def test_a_clip_without_a_gap_is_that_of_a_model_without_a_span(video: Video) -> None:
    plain = made("modality.span=null")
    steps = [step for step in range(12) if not SPAN.gap(7, step)]
    assert len(steps) > 2
    for step in steps:
        assert torch.equal(video.batch(4, 7, step)[0], plain.batch(4, 7, step)[0])
    for split in ("val", "test"):
        assert np.array_equal(video.reference(split).data, plain.reference(split).data)


def test_what_lies_behind_a_gap_is_seen_beside_the_first_frame_and_never_hidden(video: Video) -> None:
    of = batches(video)
    for index in range(24):
        batch = of(index)
        given = batch.each[:, 0, :, 0, 0].expand(4, 4) == 0
        if SPAN.gap(7, index):
            heads = given.sum(1)
            assert ((heads >= 2) & (heads < 4)).all()
            assert torch.equal(given, torch.arange(4) < heads[:, None])
            assert not (batch.each == FlowMatching().last).any()


def test_ranks_share_a_batch_with_a_gap(video: Video) -> None:
    index = next(step for step in range(99) if SPAN.gap(7, step))
    whole = batches(video)(index)
    parts = [batches(video, part=Part(2, rank))(index) for rank in range(2)]
    assert torch.equal(torch.cat([part.x0 for part in parts]), whole.x0)
    assert torch.equal(
        torch.cat([part.each.expand_as(part.x0) for part in parts]), whole.each.expand_as(whole.x0)
    )


def test_latents_on_a_disk_are_cut_as_clips_are(tmp_path: Path) -> None:
    root, out = tmp_path / "clips", tmp_path / "latents"
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        np.save(root / "a" / f"{number}.npy", rng.integers(0, 255, (31, 16, 16, 3), np.uint8))
    words = [f"modality.data.root={root}", "modality.data.index=null", "modality.data.split=[1,0,0]"]
    made(*words).prepare(root, out)
    with pytest.raises(ValueError, match=r"modality\.span must be that of .*, 29, got 33"):
        made(f"modality.latents={out}", "modality.span=33").batch(1, 0, 0)
    stored = made(f"modality.latents={out}")
    assert stored.cached is not None
    for step in range(12):
        whole = stored.cached.batch(3, 7, step)[0]
        assert whole.shape[2] == 8
        expected = cut(whole[:, :, : SPAN.cells_of(SPAN.gap(7, step))], 4)
        assert torch.equal(stored.batch(3, 7, step)[0], expected)


def test_later_turns_see_the_first_latent_of_all_and_the_last(video: Video) -> None:
    clip = video.reference("val").data[0]
    parts = video.parts(clip[:9], shape={"frames": 13 + 8}, told=True)
    drawn = torch.randn(2, *parts.given.x.shape[1:])
    given, join = parts.more(drawn)
    known = given.places[0].sum()
    assert torch.equal(given.x[:, :, :known], cut(drawn, int(known)))
    further = torch.randn_like(given.x)
    whole = join(further)
    assert torch.equal(whole[:, :, : drawn.shape[2]], drawn)
    assert torch.equal(whole[:, :, drawn.shape[2] :], further[:, :, known:])


@pytest.mark.parametrize(("words", "told"), [
    (["modality.span=13"], "modality.span must be at least 14, got 13"),
    (["modality.span=30"], "multiple of 4 more"),
    (["modality.span=29", "modality.frames=9"], "modality.frames must be at least 13 with modality.span, got 9"),
    (["modality.span=29", "modality.native=true"], "modality.span must be null with modality.native"),
    (["modality.span=1.5"], "must be a whole number"),
])  # fmt: skip
def test_spans_that_do_not_fit_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        made(*words).batch(1, 0, 0)
    assert told in str(error.value)


def test_training_without_given_parts_is_refused(video: Video) -> None:
    with pytest.raises(ValueError, match=r"given must be above 0 with modality\.span, such as given=0\.7"):
        batches(video, given=0.0)
