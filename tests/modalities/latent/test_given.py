"""Given pictures and clips: the person's own pixels come back, whole latents steer, and what cannot be is said."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import nn

from ditmoe.config import build
from ditmoe.config.words import parts_asked
from ditmoe.diffusion import FlowMatching, Sampling
from ditmoe.modality import Modality
from ditmoe.sample import draw
from modalities.image.data.pictures import stretched
from modalities.latent.given import known_cells, within_all
from modalities.shared.decode import rgb
from modalities.video.io.writer import write_ffv1
from tests.subjects import section
from tests.training.test_time_per import configured

TOLD: list[torch.Tensor] = []


@pytest.fixture(scope="module")
def image() -> Modality:
    return build.make_modality(configured("image", "modality.size=[16,24]"))


@pytest.fixture(scope="module")
def video() -> Modality:
    return build.make_modality(configured("video", "modality.frames=9"))


class Noting(nn.Module):
    """Predicts nothing, and notes what it is told."""

    def __init__(self, tokens: Any) -> None:
        super().__init__()
        self.tokens, self.one = tokens, nn.Parameter(torch.zeros(()))

    def forward(self, x, t, asked):
        TOLD.append(t)
        return (torch.zeros_like(x),)


def drawn(modality: Modality, given: Any, num: int = 2, trained: float = 1.0, **words: Any) -> np.ndarray:
    """Samples of a model that was trained so, in pixels."""
    TOLD.clear()
    shape = {name: words.pop(name) for name in list(words) if name in modality.words}
    strength, batch_size = words.pop("strength", None), words.pop("batch_size", 32)
    parts = parts_asked(modality, given, shape, words, trained, strength)
    asked = build.make_conditioning(configured("image"), len(modality.classes))(hidden_size=8).nothing(num)
    scheduler = build.make(section("scheduler", "flow_ancestral"))
    model = Noting(modality.tokens(8))
    x = draw(
        model,
        modality,
        FlowMatching(),
        scheduler,
        Sampling(4),
        asked,
        seed=0,
        parts=parts,
        batch_size=batch_size,
    )
    return parts.finish(modality.decode(x))


def picture(seed: int = 0, size=(16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 16, 3), np.uint8)


def hole(size=(16, 24)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[3:9, 2:13] = 255
    return mask


def test_a_picture_around_a_hole_stays_as_it_was(image: Modality, tmp_path: Path) -> None:
    source, mask = picture(), hole()
    Pillow.fromarray(source).save(tmp_path / "photo.png")
    Pillow.fromarray(mask).save(tmp_path / "hole.png")
    of_files = drawn(image, str(tmp_path / "photo.png"), mask=str(tmp_path / "hole.png"))
    assert (of_files[:, mask == 0] == source[mask == 0]).all()
    assert (of_files[:, mask > 0] != source[mask > 0]).any()
    assert np.array_equal(drawn(image, source, mask=mask), of_files)
    assert all(t.ndim == 2 and (t == 0).any() and not (t == 0).all() for t in TOLD)


def test_cells_steer_where_no_token_is_given_whole(image: Modality) -> None:
    """A frame of one cell around a hole is led by replacement, which the command says."""
    mask = np.zeros((16, 24), np.uint8)
    mask[4:12, 4:20] = 255
    parts = parts_asked(image, picture(), {}, {"mask": mask}, 1.0)
    assert parts.given.pieces is not None
    assert torch.equal(parts.given.pieces[0, 0], torch.from_numpy(within_all(mask == 0, (4, 6))))
    assert parts.given.known is not None
    assert not parts.given.known.any()
    assert "steers by replacement alone" in parts.told[-1]
    mask[:] = 255
    mask[0, 0] = 0
    assert "steers nothing" in parts_asked(image, picture(), {}, {"mask": mask}, 1.0).told[-1]


def test_what_was_given_can_be_looked_at(image: Modality, video: Modality) -> None:
    """What is to be drawn is grey; of what is to be changed all is there."""
    source, mask, frames = picture(), hole(), clip(5)
    shown = parts_asked(image, source, {}, {"mask": mask}, 1.0).shown
    assert shown is not None
    assert np.array_equal(shown[0], np.where(mask[..., None] > 0, 128, source))
    shown = parts_asked(image, source, {}, {}, 1.0, 0.5).shown
    assert np.array_equal(shown, source[None])
    shown = parts_asked(video, frames, {"frames": 9}, {"keep": [0, 5]}, 1.0).shown
    assert shown is not None
    assert shown.shape == (1, 9, 16, 16, 3)
    assert np.array_equal(shown[0, :5], frames)
    assert (shown[0, 5:] == 128).all()
    joined = parts_asked(video, [frames, frames], {}, {"between": 4}, 1.0).shown
    assert joined is not None
    assert np.array_equal(joined[0, :5], frames)
    assert np.array_equal(joined[0, -5:], frames)
    assert (joined[0, 5:-5] == 128).all()


def test_a_picture_grows_by_its_size(image: Modality) -> None:
    source = picture(size=(8, 12))
    grown = drawn(image, source, size=[16, 24])
    assert grown.shape == (2, 16, 24, 3)
    places = [
        (y, x) for y in range(9) for x in range(13) if (grown[0, y : y + 8, x : x + 12] == source).all()
    ]
    assert len(places) == 1


@pytest.mark.parametrize(("size", "own"), [((16, 24), True), ((8, 40), True), ((37, 50), False)])
def test_holes_in_pictures_at_their_own_sizes(size: tuple[int, int], own: bool) -> None:
    """Of a model that packs pictures of any proportion: whole tokens of them, or shrunk to the area as in training."""
    native = build.make_modality(configured("native image"))
    source, mask = picture(size=size), np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 255
    filled = drawn(native, source, mask=mask)
    assert (filled.shape[1:3] == size) == own
    assert own or abs(np.log(filled.shape[1] / filled.shape[2] * size[1] / size[0])) < 0.3
    expected = stretched(Pillow.fromarray(source), filled.shape[1:3])
    rest = stretched(Pillow.fromarray(mask).convert("RGB"), filled.shape[1:3])[..., 0] <= 16
    assert (filled[:, rest] == expected[rest]).all()
    assert (filled[:, ~rest] != expected[~rest]).any()
    assert all(0 < (t == 0).sum() < t.numel() for t in TOLD)


@pytest.mark.parametrize("native", [True, False])
def test_what_is_masked_leaves_no_halo_in_a_smaller_picture(native: bool, image: Modality) -> None:
    """Pixels that were mixed with what is to go are drawn anew, and the others stay."""
    mask = np.zeros((150, 210), np.uint8)
    mask[41:97, 53:120] = 255
    source = np.repeat(mask[..., None], 3, -1)  # white where it is to go, else black
    modality = build.make_modality(configured("native image")) if native else image
    parts = parts_asked(modality, source, {}, {"mask": mask}, 1.0)
    assert parts is not None
    drawn = parts.finish(np.full((1, *parts.shown.shape[1:]), 200, np.uint8))[0, ..., 0]  # type: ignore[union-attr]
    assert drawn[drawn < 200].max() <= 16
    assert 0.5 < (drawn < 200).mean() < 0.9


@pytest.mark.parametrize("strength", [0.05, 0.9])
def test_strength_changes_all_of_it(image: Modality, strength: float) -> None:
    source = picture()
    changed = drawn(image, source, strength=strength)
    error = np.abs(changed.astype(int) - image.decode(image.encode(source[None]))).mean()
    assert (error < 25) == (strength == 0.05)


def cases() -> list[tuple[dict, Callable]]:
    return [
        ({"keep": [0, 5], "frames": 9}, lambda c, r: (r[:, :5] == c[:5]).all() and r.shape[1] == 9),
        ({"keep": [-4, None], "frames": 9}, lambda c, r: (r[:, -4:] == c[-4:]).all() and r.shape[1] == 9),
        ({"keep": [1, 9], "frames": 9}, lambda c, r: (r[:, 1:9] == c[1:9]).all() and r.shape[1] == 9),
        ({"frames": 13}, lambda c, r: (r[:, :9] == c).all() and r.shape[1] == 13),
        ({"frames": 25}, lambda c, r: (r[:, :9] == c).all() and r.shape[1] == 25),
        ({"loop": 4}, lambda c, r: (r[:, :9] == c).all() and r.shape[1] == 13),
        ({"keep": "all", "strength": 0.5}, lambda c, r: r.shape[1] == 9 and (r != c).any()),
        (
            {"mask": hole((16, 16))},
            lambda c, r: (r[:, :, hole((16, 16)) == 0] == c[:, hole((16, 16)) == 0]).all(),
        ),
    ]


@pytest.mark.parametrize("trained", [1.0, 0.0])
@pytest.mark.parametrize("case", range(8))
def test_frames_that_are_kept_come_back_bit_for_bit(
    video: Modality, case: int, trained: float, tmp_path: Path
) -> None:
    words, holds = cases()[case]
    source = clip(9)
    write_ffv1(tmp_path / "a.mkv", source, 8.0)
    result = drawn(video, str(tmp_path / "a.mkv"), trained=trained, **words)
    assert holds(source, result)
    assert (result[0] != result[1]).any()
    if "strength" not in words:
        assert all(t.ndim == (2 if trained else 1) for t in TOLD)


def test_turns_go_on_from_their_own_samples_whatever_the_batch(video: Modality) -> None:
    whole = drawn(video, clip(9), num=4, frames=25)
    assert np.array_equal(drawn(video, clip(9), num=4, frames=25, batch_size=2), whole)


def test_two_clips_are_connected_whole(video: Modality) -> None:
    a, b = clip(9, 1), clip(7, 2)
    result = drawn(video, [a, b], between=4)
    assert result.shape[1] == 9 + 4 + 7
    assert (result[:, :9] == a).all()
    assert (result[:, 13:] == b).all()


def test_a_picture_is_the_first_frame(video: Modality) -> None:
    source = picture(size=(16, 16))
    result = drawn(video, source)
    assert result.shape[1] == 9
    assert (result[:, 0] == source).all()
    assert all((t[:, 0] == 0).all() and (t[:, 1:] > 0).all() for t in TOLD)


@pytest.mark.parametrize(
    ("given", "words", "told"),
    [
        (clip(9), {"keep": [0, 4], "frames": 9}, "keep must end at 1 + a multiple of 4 frames, 1 or 5, got 4"),
        (clip(9), {"keep": [-3, None], "frames": 9}, "keep must be a multiple of 4 frames up to the end"),
        (clip(9), {"keep": [0, 13], "frames": 17}, "needs a clip of 13 frames, got 9"),
        (clip(9), {"keep": [5, 5], "frames": 9}, "keeps no frame"),
        (clip(9), {"keep": "some", "frames": 9}, "keep must be"),
        (clip(9), {"frames": 9}, "frames must be more than the 9 that are given"),
        (clip(9), {"frames": 12}, "frames must be the 9 given ones and a multiple of 4, such as 13"),
        (clip(9), {"loop": 3}, "loop must be a multiple of the 4 frames of a latent, such as 4"),
        (clip(9), {"loop": 4, "keep": [0, 5]}, "only one of keep, between and loop"),
        ([clip(9), clip(9)], {}, "between=8 connects two clips"),
        (clip(9), {"between": 4}, "between=8 connects two clips"),
        ([clip(9), clip(9)], {"loop": 4}, "loop=4 leads from the end of one clip to its beginning, got 2"),
        (5, {}, "given must be a file or a folder, got the number 5; say given=./5 for one"),
        (clip(9), {"mask": 5}, "mask must be a file or a folder, got the number 5; say mask=./5 for one"),
        ([], {}, "between=8 connects two clips"),
        (clip(9), {"loop": 0}, "loop must be between 1 and 4096, got 0"),
        (clip(9), {"loop": 4_000_000_000}, "loop must be between 1 and 4096"),
        (clip(9), {"mask": hole()}, "mask given as an array must have the size of what is given, [16, 16]"),
        (clip(9).astype(float), {}, "must be a file or an array (T, H, W, 3) of uint8, got float64"),
        ("nothing.mkv", {}, "given must be a file or a folder, but nothing.mkv does not exist"),
        (clip(9), {"mask": "no.png"}, "mask must be a file or a folder, but no.png does not exist"),
        (None, {"keep": [0, 5]}, "keep is said of what is given: it needs given="),
        (clip(9), {"strength": 2.0}, "strength"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(video: Modality, given: Any, words: dict, told: str) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        drawn(video, given, **words)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_picture_must_leave_something_to_draw(image: Modality) -> None:
    with pytest.raises(ValueError, match="leaves nothing to draw: say mask="):
        drawn(image, picture())
    with pytest.raises(ValueError, match="black all over"):
        drawn(image, picture(), mask=np.zeros((16, 24), np.uint8))


def test_a_size_that_is_no_whole_tokens_is_told_in_pixels(image: Modality, video: Modality) -> None:
    with pytest.raises(
        ValueError, match=r"multiple of a token's \[8, 8\] pixels on each axis, got \[20, 28\]"
    ):
        drawn(image, picture(), size=[20, 28])
    with pytest.raises(
        ValueError, match=r"multiple of a token's \[8, 8\] pixels on each axis, got \[20, 28\]"
    ):
        video.shape_of(size=[20, 28])
    with pytest.raises(ValueError, match=r"multiple of the codec's stride|multiples of 4"):
        video.shape_of(size=[18, 28])


def test_a_mask_must_leave_something_given(image: Modality, video: Modality, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be black where something stays, but is white all over"):
        drawn(image, picture(), mask=np.full((16, 24), 255, np.uint8))
    with pytest.raises(ValueError, match="white all over"):
        drawn(video, clip(9), mask=np.full((16, 16), 255, np.uint8))
    painted = np.zeros((16, 24, 4), np.uint8)
    painted[4:9, 4:9] = 255  # white paint on a layer that is else transparent
    Pillow.fromarray(painted).save(tmp_path / "layer.png")
    with pytest.raises(ValueError, match=r"layer\.png must be black where .*where it is transparent"):
        drawn(image, picture(), mask=str(tmp_path / "layer.png"))
    changed = drawn(image, picture(), mask=np.full((16, 24), 255, np.uint8), strength=0.5)
    assert np.array_equal(changed, drawn(image, picture(), strength=0.5))


def test_a_cell_is_known_if_all_its_pixels_are() -> None:
    known = np.ones((9, 4, 4), bool)
    known[5:] = False
    assert known_cells(known, (3, 1, 1), 4).flatten().tolist() == [True, True, False]
    known[4, 0, 0] = False
    assert known_cells(known, (3, 1, 1), 4).flatten().tolist() == [True, False, False]
    assert known_cells(known, (9, 2, 2), 1)[4].tolist() == [[False, True], [True, True]]


def test_what_was_changed_is_said(video: Modality) -> None:
    small = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    parts = parts_asked(video, small, {"frames": 9}, {}, 1.0)
    assert parts.told == ["given as an array is 8 x 8: brought to 16 x 16"]
    untold = parts_asked(video, small, {"frames": 9}, {}, 0.0, given_guidance=2.0)
    assert "was not trained with given parts" in untold.told[-1]
    assert "given_guidance has no effect" in untold.told[-1]


def test_frames_far_apart_in_time_are_counted_before_they_are_made(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream(
            "ffv1", width=16, height=16, pix_fmt="yuv420p", time_base=Fraction(1, 1000)
        )
        for moment in (0, 2**40):  # 35 years
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = moment
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    modality = build.make_modality(configured("video", "modality.resample=nearest"))
    with pytest.raises(ValueError, match=r"a\.mkv must have at most 4096 frames, got 13194139534"):
        parts_asked(modality, str(tmp_path / "a.mkv"), {}, {}, 1.0)


def test_a_picture_is_not_copied_to_be_what_it_is() -> None:
    picture = Pillow.new("RGB", (2, 2))
    assert rgb(picture) is picture
