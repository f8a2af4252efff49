"""The video autoencoder and its tokens: causal, whole in pieces, better than the closed form, in real units."""

import numpy as np
import pytest
import torch

from ditmoe.nn import cells
from modalities.video import CausalPatches, SpacetimeTokens
from modalities.video.codec.causal_patches import fold, unfold
from modalities.video.data import MovingDigits


def clips(num: int = 48, frames: int = 9, seed: int = 0) -> torch.Tensor:
    data = MovingDigits((16, 24), frames).batch(num, seed, 0)[0]
    return torch.from_numpy(data).movedim(-1, 1).float() / 127.5 - 1


def codec(steps: int = 0, **options) -> CausalPatches:
    made = CausalPatches((4, 4, 4), 8, width=24, steps=steps, **options)
    made.fit([clips()])
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def trained() -> CausalPatches:
    return codec(250)


def test_folding_is_the_inverse_of_unfolding() -> None:
    x = torch.randn(2, 3, 8, 4, 6)
    assert torch.equal(fold(unfold(x, (4, 2, 3)), (4, 2, 3)), x)


def test_frames_to_come_change_nothing_and_an_image_is_a_clip(trained: CausalPatches) -> None:
    x = clips(3, 17, seed=1)
    z = trained.encode(x)
    assert z.shape == (3, *trained.shape(x.shape[2:])) == (3, 8, 5, 4, 6)
    for frames, latent in ((1, 1), (5, 2), (13, 4)):
        assert torch.allclose(trained.encode(x[:, :, :frames]), z[:, :, :latent], atol=1e-5)
        decoded = trained.decode(z[:, :, :latent])
        assert decoded.shape[2] == frames
        assert torch.allclose(decoded, trained.decode(z)[:, :, :frames], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_pieces_are_the_whole(trained: CausalPatches, chunk: int) -> None:
    x = clips(2, 45, seed=2)
    z = trained.encode(x)
    pieces = CausalPatches((4, 4, 4), 8, width=24, chunk=chunk)
    pieces.restore(trained.fitted_state())
    pieces.requires_grad_(False)
    assert torch.allclose(pieces.encode(x), z, atol=1e-5)
    assert torch.allclose(pieces.decode(z), trained.decode(z), atol=1e-5)
    largest: list[int] = []
    pieces.encoder.register_forward_pre_hook(lambda _, args: largest.append(args[0].shape[2]))
    pieces.encode(x)
    assert max(largest) <= chunk + pieces.context  # memory is bounded


def test_training_begins_at_the_closed_form_and_improves_on_it(trained: CausalPatches) -> None:
    x, start = clips(16, seed=3), codec(0)
    assert torch.equal(start.encoder[-1].weight, torch.zeros_like(start.encoder[-1].weight))
    errors = [(c.decode(c.encode(x)) - x).square().mean().item() for c in (start, trained)]
    assert errors[1] < 0.95 * errors[0]
    assert errors[0] < 0.2 * (x - x.mean()).square().mean()


def test_latents_are_white_and_training_is_reproducible(trained: CausalPatches) -> None:
    z = trained.encode(clips())
    rows = z.movedim(1, 0).flatten(1)
    assert rows.mean(1).abs().max() < 1e-3
    assert (rows.std(1) - 1).abs().max() < 1e-3
    state = torch.random.get_rng_state()
    again = codec(250)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(value, again.fitted_state()[name]) for name, value in trained.fitted_state().items()
    )


def test_sizes_that_do_not_fit_are_one_line(trained: CausalPatches) -> None:
    for size in ((8, 16, 16), (9, 18, 16), (0, 16, 16)):
        with pytest.raises(
            ValueError, match=r"frames must be 1 \+ a multiple of 4, height and width multiples"
        ):
            trained.encode(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=r"made with: mean was \(8, 1, 1, 1\), is \(7, 1, 1, 1\)"):
        CausalPatches((4, 4, 4), 7, width=24).restore(trained.fitted_state())


# --- tokens


@pytest.mark.parametrize("size", [(5, 8, 8), (1, 4, 6), (3, 6, 10)])
def test_tokens_give_back_the_clip(size: tuple[int, int, int]) -> None:
    tokens, x = SpacetimeTokens(30, 4), torch.randn(2, 4, *size)
    layout = tokens.layout(x)
    rows = tokens.patchify(x, layout)
    t, c = torch.zeros(2), torch.zeros(2, 30)
    assert torch.equal(tokens.unpatchify(rows, layout, x, t, c), x)
    assert rows.shape[1:] == (layout.lengths[0], tokens.in_features)
    assert tokens.positions(layout).shape == (rows.shape[1], 30)


def test_positions_are_in_seconds_and_pixels() -> None:
    x = torch.zeros(1, 4, 5, 8, 8)
    base = SpacetimeTokens(36, 4)
    layout, where = base.layout(x), cells((5, 4, 4))
    assert base.coordinates(layout).tolist() == where.tolist()
    slow = SpacetimeTokens(36, 4, rate=4)  # half the frame rate: twice the time from frame to frame
    assert torch.equal(slow.coordinates(layout), where * torch.tensor([2.0, 1.0, 1.0]))
    fine = SpacetimeTokens(36, 4, stride=(4, 2, 2))  # cells of half the pixels
    assert torch.equal(fine.coordinates(layout), where * torch.tensor([1.0, 0.5, 0.5]))
    # Where a token of both lies at the same second and pixel, it has the same position.
    one, other = base.positions(layout).view(5, 4, 4, 36), slow.positions(layout).view(5, 4, 4, 36)
    assert torch.equal(one[::2], other[:3])


def test_an_image_of_the_clip_is_its_first_frame_of_tokens() -> None:
    tokens, x = SpacetimeTokens(36, 4), torch.randn(1, 4, 5, 8, 8)
    one, all_ = tokens.layout(x[:, :, :1]), tokens.layout(x)
    assert torch.equal(tokens.patchify(x[:, :, :1], one), tokens.patchify(x, all_)[:, :16])
    assert torch.equal(tokens.positions(one), tokens.positions(all_)[:16])


# --- the built-in clips


def test_clips_are_functions_of_their_address_and_move_evenly() -> None:
    data = MovingDigits((32, 40), 17)
    clips, labels = data.batch(6, 1, 1)
    again = [data.batch(3, 1, 1, rank, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate([c for c, _ in again]), clips)
    assert clips.shape == (6, 17, 32, 40, 3)
    assert not np.array_equal(data.batch(6, 2, 1)[0], clips)
    assert len(set(labels.tolist())) > 1
    moved = np.abs(np.diff(clips.astype(int), axis=1)).mean(axis=(2, 3, 4))
    assert moved.min() > 0.5
    still = np.abs(np.diff(MovingDigits((32, 40), 17, stride=3).batch(6, 1, 1)[0].astype(int), axis=1)).mean()
    assert still > 1.5 * moved.mean()


def test_a_stride_takes_every_other_moment() -> None:
    fast, slow = MovingDigits((32, 32), 5, stride=2), MovingDigits((32, 32), 9)
    assert np.array_equal(fast.batch(4, 0, 0)[0], slow.batch(4, 0, 0)[0][:, ::2])


def test_splits_have_digits_of_their_own_and_borders_hold() -> None:
    data = MovingDigits((32, 32), 33)
    sets = {split: data.reference(split) for split in ("val", "test")}
    assert not np.array_equal(sets["val"].data, sets["test"].data)
    assert sets["val"].data.max(axis=(2, 3, 4)).min() > 200  # both digits stay in the picture
    with pytest.raises(ValueError, match="at least 16"):
        MovingDigits((8, 32), 9)
