"""Published video autoencoders: one interface over classes that differ, tried on tiny ones of each."""

import json
from pathlib import Path

import pytest
import torch

from modalities.video import Autoencoder
from modalities.video.data import MovingDigits
from tests.autoencoders import VIDEO, video_autoencoder

CELLS = {"frames": (1, 2), "svd": (1, 2), "wan2.1": (4, 4), "wan2.2": (4, 8), "cogvideox": (4, 4), "ltx": (4, 8),
         "ltx0.9.1": (8, 16), "hunyuan": (4, 8), "mochi": (6, 8), "cosmos": (8, 8)}  # fmt: skip
"""A name -> frames and pixels of a latent cell."""
NOT_CAUSAL = {"cogvideox", "hunyuan"}


def clips(frames: int, num: int = 2, seed: int = 0) -> torch.Tensor:
    data = MovingDigits((32, 32), frames).batch(num, seed, 0)[0]
    return torch.from_numpy(data).movedim(-1, 1).float() / 127.5 - 1


def codec(kind: str, **options) -> Autoencoder:
    return Autoencoder(video_autoencoder(kind), **options)


def by_hand(kind: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and pixels as each class's own documentation has them."""
    model = video_autoencoder(kind)
    if kind in ("frames", "svd"):
        rows = x.movedim(2, 1).flatten(0, 1)
        raw = model.encode(rows).latent_dist.mode()
        options = {"num_frames": x.shape[2]} if kind == "svd" else {}
        y = model.decode(raw, **options).sample.unflatten(0, (len(x), x.shape[2])).movedim(1, 2)
        raw = raw.unflatten(0, (len(x), x.shape[2])).movedim(1, 2)
        return (raw - 0.0609) * 1.5305 if kind == "frames" else raw * 0.18215, y
    model.use_framewise_encoding = model.use_framewise_decoding = False
    raw = model.encode(x).latent_dist.mode()
    y = model.decode(raw, **({"temb": torch.zeros(len(x))} if kind == "ltx0.9.1" else {})).sample
    if kind in ("cogvideox", "hunyuan"):
        return raw * {"cogvideox": 1.15258426, "hunyuan": 0.476986}[kind], y
    mean, deviation = ([0.1, -0.2, 0.0, 0.3], [1.5, 0.5, 1.0, 2.0])
    if kind == "cosmos":  # the mean over its two latent frames
        mean, deviation = [0.2, -0.1, 0.5, 0.5], [1.5, 0.5, 1.0, 2.0]
    spread = (torch.tensor(value).view(1, 4, 1, 1, 1) for value in (mean, deviation))
    return (raw - next(spread)) / next(spread), y


@pytest.mark.parametrize("kind", VIDEO)
def test_latents_and_pixels_are_those_of_the_class(kind: str, tmp_path: Path) -> None:
    video_autoencoder(kind).save_pretrained(tmp_path / "vae")
    made = Autoencoder(str(tmp_path), subfolder="vae")
    t, p = CELLS[kind]
    assert made.stride == (t, p, p)
    x = clips(1 + made.group)
    z = made.encode(x)
    assert z.shape == (2, *made.shape(x.shape[2:])) == (2, 4, 1 + made.group // t, 32 // p, 32 // p)
    expected, pixels = by_hand(kind, x)
    assert torch.allclose(z, expected, atol=1e-4)
    assert torch.equal(made.encode(x), z)  # nothing is drawn, and no cache is left
    decoded = made.decode(z)
    assert decoded.shape == x.shape
    assert torch.allclose(decoded, pixels, atol=1e-4)


@pytest.mark.parametrize("kind", VIDEO)
def test_pieces_are_the_whole_and_causal_is_what_it_says(kind: str) -> None:
    whole, pieces = codec(kind), codec(kind, at_once=2)
    x = clips(1 + 2 * whole.group, num=3)
    z = whole.encode(x)
    assert torch.allclose(pieces.encode(x), z, atol=1e-4)
    assert torch.allclose(pieces.decode(z), whole.decode(z), atol=1e-4)
    first = (whole.encode(x[:, :, :1]) - z[:, :, :1]).abs().max()
    assert (first < 1e-4) == whole.causal == (kind not in NOT_CAUSAL)
    seen: list[int] = []
    record = lambda _, args: seen.append(len(args[0]))  # noqa: E731
    pieces.model.encoder.register_forward_pre_hook(record)
    pieces.encode(x)
    assert max(seen) == (2 if pieces.framewise else 1)


@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
def test_the_caches_of_wan_make_pieces_in_time_exact(kind: str) -> None:
    made = codec(kind, at_once=64)  # all clips together, or sums are rounded otherwise
    x = clips(17)
    z = made.encode(x)
    for frames, cells in ((1, 1), (5, 2), (13, 4)):
        assert torch.equal(made.encode(x[:, :, :frames]), z[:, :, :cells])
        assert torch.equal(made.decode(z[:, :, :cells]), made.decode(z)[:, :, :frames])


@pytest.mark.parametrize("kind", VIDEO)
def test_latents_are_white_on_the_data_and_learnt_goes_into_another(kind: str) -> None:
    made, x = codec(kind, whiten=8), clips(1 + codec(kind).group, num=8)
    made.fit(part for part in (x[:5], x[5:], None))  # what is not needed is not asked for
    rows = made.encode(x).transpose(0, 1).flatten(1)
    assert rows.mean(1).abs().max() < 1e-3
    assert (rows.std(1) - 1).abs().max() < 0.02
    assert set(made.fitted_state()) == {"mean", "scale"}  # the weights stay where they are
    other = codec(kind)
    assert other.fingerprint() != made.fingerprint()
    other.restore(made.fitted_state())
    assert other.fingerprint() == made.fingerprint()
    assert torch.allclose(other.decode(other.encode(x)), made.decode(made.encode(x)), atol=1e-5)
    kept = codec(kind, whiten=0)
    kept.fit([x])
    assert torch.equal(kept.scale, codec(kind).scale)


def test_another_set_of_weights_is_another_fingerprint() -> None:
    model = video_autoencoder("wan2.1")
    before = Autoencoder(model).fingerprint()
    assert codec("wan2.1").fingerprint() == before
    next(model.parameters()).data[0] += 1e-6
    assert Autoencoder(model).fingerprint() != before


@pytest.mark.parametrize(("kind", "group"), [("wan2.1", 4), ("cogvideox", 8), ("mochi", 6), ("ltx0.9.1", 8)])
def test_frames_that_do_not_fit_are_one_line(kind: str, group: int) -> None:
    made = codec(kind)
    name, p = VIDEO[kind][0], CELLS[kind][1]
    rule = rf"^frames must be 1 \+ a multiple of {group}, height and width multiples of {p} and {p} for {name}, got "
    for size in ((group, 32, 32), (1 + group // 2, 32, 32), (1, 33, 32), (1, 32)):
        with pytest.raises(ValueError, match=rule):
            made.shape(size)
    with pytest.raises(ValueError, match=rule):
        made.encode(torch.zeros(1, 3, 2, 32, 32))


def test_tiles_are_asked_for_or_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^codec.tiling must be false: AutoencoderKLCosmos cannot be tiled$"
    ):
        codec("cosmos", tiling=True)
    whole, tiled = codec("hunyuan"), codec("hunyuan", tiling=True)
    x = clips(21, num=1)
    assert tiled.encode(x).shape == whole.encode(x).shape
    assert not torch.allclose(tiled.encode(x), whole.encode(x), atol=1e-3)  # an approximation, as it says


def test_what_is_no_video_autoencoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^codec.path must hold an autoencoder[^\n]*$"):
        Autoencoder(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLAllegro"}))
    with pytest.raises(ValueError, match=r"^codec.path must hold one of AutoencoderKL,[^\n]*Allegro$"):
        Autoencoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"codec.at_once at least 1, got 16 and 0"):
        codec("wan2.1", at_once=0)
