"""Given frames through published causal autoencoders: bounds, the own frames, and what a model must not see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.words import parts_asked
from modalities.video import Video
from modalities.video.io.reader import read_clip
from modalities.video.io.writer import write_ffv1
from tests.autoencoders import video_autoencoder
from tests.modalities.latent.test_given import clip as small_clip
from tests.modalities.latent.test_given import drawn

GROUPS = {"wan2.1": 4, "cogvideox": 8, "ltx": 4, "ltx0.9.1": 8}
"""A name -> frames that are given or drawn together."""
SIDE = 32


@pytest.fixture(scope="module", params=list(GROUPS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Video:
    folder = tmp_path_factory.mktemp("vae")
    video_autoencoder(request.param).save_pretrained(folder)
    words = [
        "modality=video",
        f"modality.frames={1 + 2 * GROUPS[request.param]}",
        f"modality.size=[{SIDE},{SIDE}]",
    ]
    words += [
        "codec@modality.codec=video_autoencoder",
        f"modality.codec.path={folder}",
        "modality.codec.whiten=0",
    ]
    return build.make_modality(composed("train", [*words, "model=debug"]))


@pytest.fixture
def group(video: Video) -> int:
    found = video.codec.group
    assert found in GROUPS.values()
    return found


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return small_clip(frames, seed).repeat(2, 1).repeat(2, 2)


def hole() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, 18:] = 255
    return mask


def test_the_bounds_of_what_is_kept_are_named(video: Video, group: int) -> None:
    source = clip(video.frames)
    for words, told in (
        ({"keep": [0, 3]}, f"keep must end at 1 + a multiple of {group} frames, 1 or {1 + group}, got 3"),
        (
            {"keep": [-3, None]},
            f"a multiple of {group} frames up to the end, [-{group},null] or [-{2 * group},null]",
        ),
        ({"frames": video.frames + 3}, f"a multiple of {group}, such as {video.frames + group}"),
        ({"loop": 3}, f"loop must be a multiple of the {group} frames of"),
    ):
        with pytest.raises(ValueError, match="must") as error:
            drawn(video, source, 1, **words)
        assert told in str(error.value)


def test_given_frames_come_out_of_a_file_bit_for_bit(video: Video, group: int, tmp_path: Path) -> None:
    source, other = clip(video.frames), clip(group, 1)
    write_ffv1(tmp_path / "a.mkv", source, 8.0)
    write_ffv1(tmp_path / "b.mkv", other, 8.0)
    a, b, rest = str(tmp_path / "a.mkv"), str(tmp_path / "b.mkv"), hole() == 0
    for given, words, expected in (
        (a, {"keep": [0, 1 + group]}, [(np.s_[: 1 + group], source[: 1 + group])]),
        (a, {"keep": [-group, None]}, [(np.s_[1 + group :], source[-group:])]),
        (a, {"loop": group}, [(np.s_[: len(source)], source)]),
        ([a, b], {"between": group}, [(np.s_[: len(source)], source), (np.s_[-group:], other)]),
        (source[0], {}, [(np.s_[:1], source[:1])]),
    ):
        result = drawn(video, given, 1, **words)[0]
        write_ffv1(tmp_path / "out.mkv", result, 8.0)
        result = read_clip(tmp_path / "out.mkv", 0, len(result))
        assert all(np.array_equal(result[where], frames) for where, frames in expected), words
    assert np.array_equal(drawn(video, a, 1, mask=hole())[0][:, rest], source[:, rest])


def test_a_model_sees_nothing_of_what_is_not_kept(video: Video, group: int) -> None:
    """Latents are those of the kept frames, whatever else was there; a head's are those of the head alone."""
    source, end = clip(video.frames), 1 + group
    cells = 1 + group // video.codec.stride[0]
    head = parts_asked(video, source, {}, {"keep": [0, end]}, 1.0).given
    assert torch.allclose(head.x[:, :, :cells], video.encode(source[None, :end]), atol=1e-4)
    assert head.places is not None
    assert head.places[0].tolist() == [n < cells for n in range(head.x.shape[2])]
    for words, secret in (
        ({"keep": [0, end]}, np.s_[end:]),
        ({"keep": [-group, None]}, np.s_[: len(source) - group]),
        ({"mask": hole()}, np.s_[:, hole() > 0]),
    ):
        changed = source.copy()
        changed[secret] = 255 - changed[secret]
        seen = [parts_asked(video, given, {}, words, 1.0).given for given in (source, changed)]
        assert torch.equal(seen[0].x, seen[1].x), words
