"""Conditioning on known pixels: a latent cell or a token is known only if all of its pixels are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ditmoe.modality import Tokens
from ditmoe.outside import printable
from modalities.shared.decode import decoded, upright

HOLE = 128
"""Grey level from which a mask marks a pixel to be generated."""


def known_cells(
    known: Bool[np.ndarray, "*size"], cells: Sequence[int], frames: int | None = None
) -> Bool[np.ndarray, "*cells"]:
    """Mark the latent cells that cover known pixels only.

    Args:
        cells: along each axis, dividing the pixels; but for the first of a clip.
        frames: of a clip, that each of its cells has but the first, which may be that of the first frame alone.
    """
    if frames is not None and len(known) == 1 + (cells[0] - 1) * frames:
        known = np.concatenate([np.repeat(known[:1], frames - 1, 0), known])
    return within_all(known, cells)


def within_all(known: Bool[np.ndarray, "*size"], cells: Sequence[int]) -> Bool[np.ndarray, "*cells"]:
    """Reduce a mask to cells: a cell is true if its whole block of the array is."""
    shape = [n for size, cell in zip(known.shape, cells, strict=True) for n in (cell, size // cell)]
    return np.asarray(known.reshape(shape).all(axis=tuple(range(1, 2 * len(cells), 2))))


class Marks(NamedTuple):
    """Which latents are known, see `Given`."""

    known: Bool[Tensor, "1 *ones"] | None = None
    places: Bool[Tensor, "1 n"] | None = None
    pieces: Bool[Tensor, "1 *ones"] | None = None

    @property
    def weakness(self) -> str:
        """A warning that the known part steers little because it covers no whole token; "" if it covers one."""
        if self.places is None:
            return "it is put back in the end, but steers nothing"
        return "" if self.places.any() else "it steers by replacement alone, which is weaker"


def marks_of(tokens: Tokens, x: Tensor, cells: Bool[np.ndarray, "*cells"]) -> Marks:
    """Mark the known latents of x (1, L, *cells); timesteps are per frame if that is fine enough."""
    if not cells.any():
        return Marks()
    grid = tokens.grid(x)
    of_tokens = within_all(cells, grid)
    frames = of_tokens.reshape(grid[0], -1)
    whole = bool((frames.all(1) == frames.any(1)).all())
    places = torch.from_numpy(frames.all(1) if whole else of_tokens.flatten())[None]
    known = tokens.sample_times(places.float(), x).bool()
    pieces = torch.from_numpy(cells)[None, None] & ~known
    return Marks(known, places, pieces if pieces.any() else None)


def read_picture(given: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image from a file, or from an array (H, W) or (H, W, 3) of bytes.

    Raises:
        ValueError: with one line, if it is neither.
    """
    if isinstance(given, str | Path):
        try:
            return decoded(Path(given), lambda picture: np.array(upright(picture)))
        except Exception as error:  # decoders fail in many ways
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(
                f"{printable(given)} is no readable picture: {printable(reason[:160])}"
            ) from error
    array = np.asarray(given)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, -1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"a given picture must be a file or an array (H, W, 3) of uint8, got {array.dtype} {array.shape}"
        )
    return array


def hole_of(
    mask: UInt8[np.ndarray, "H W 3"], size: Sequence[int], name: object, strength: float | None
) -> Bool[np.ndarray, "H W"]:
    """Read a mask image: white is generated, black stays.

    Raises:
        ValueError: if it has another size, nothing is white, or all is and nothing of it counts by a strength either.
    """
    if mask.shape[:2] != tuple(size):
        raise ValueError(
            f"mask {shown(name)} must have the size of what is given, {list(size)}, got {list(mask.shape[:2])}"
        )
    hole = mask.mean(-1) >= HOLE
    if not hole.any():
        raise ValueError(
            f"mask {shown(name)} must be white where something is to be drawn, but is black all over"
        )
    if hole.all() and strength is None:
        raise ValueError(
            f"mask {shown(name)} must be black where something stays, but is white all over (where it is "
            "transparent, it is white)"
        )
    return hole


def shown(name: object) -> str:
    """Of a path, or of an array."""
    return printable(name) if isinstance(name, str | Path) else "given as an array"
