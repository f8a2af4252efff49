"""Screened Poisson reconstruction (Kazhdan & Hoppe, 2013) on a regular grid, solved by FFT.

The field χ rises across the surface from outside to inside: its gradient should match the normals, and its value at
the points should be 0,

    min  Σ |∇χ - V|² + α Σ_i a_i χ(x_i)²,    V = -Σ_i a_i n_i g_σ(x - x_i),

with the area a_i of each point. Without the second term the solution is one division in Fourier space (Peng et al.,
arXiv 2106.03452); with it, a few steps of conjugate gradients, preconditioned by that division.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy import fft
from scipy.ndimage import gaussian_filter

SCREENING = 1.0
"""The weight of that second term, for areas with mean 1 and lengths in cells."""
STEPS = 8
"""Most steps of conjugate gradients; 40 gave the same meshes of three shapes except for two vertices."""


@dataclass(frozen=True)
class Splat:
    """Trilinear weights between points and the nodes of a grid."""

    shape: tuple[int, int, int]
    nodes: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, points: Float64[np.ndarray, "N 3"], shape: tuple[int, int, int]) -> "Splat":
        """Make the weights of points, in cells, which must all lie within the grid."""
        low = np.floor(points).astype(np.int64)
        share = points - low
        nodes, weights = [], []
        for corner in np.ndindex(2, 2, 2):
            nodes.append(np.ravel_multi_index(tuple((low + corner).T), shape))
            weights.append(np.where(corner, share, 1 - share).prod(axis=1))
        return cls(shape, np.stack(nodes, axis=1), np.stack(weights, axis=1))

    def onto(self, values: Float64[np.ndarray, " N"]) -> Float32[np.ndarray, "X Y Z"]:
        """Splat values of the points onto the surrounding nodes."""
        spread = np.bincount(
            self.nodes.ravel(), (self.weights * values[:, None]).ravel(), int(np.prod(self.shape))
        )
        return spread.astype(np.float32).reshape(self.shape)

    def at(self, field: Float32[np.ndarray, "X Y Z"]) -> Float64[np.ndarray, " N"]:
        """Interpolate the field at the points."""
        return (field.reshape(-1)[self.nodes] * self.weights).sum(axis=1)


def poisson(
    points: Float64[np.ndarray, "N 3"],
    normals: Float64[np.ndarray, "N 3"],
    areas: Float64[np.ndarray, " N"],
    shape: tuple[int, int, int],
    width: float,
) -> Float32[np.ndarray, "X Y Z"]:
    """A field that is 0 on the surface and positive inside, near the surface about the distance to it in cells.

    Args:
        points: in cells.
        normals: outward; shorter ones count less.
        areas: surface area of each point, in cells.
        shape: of the grid, which should have a margin around the points, as it is periodic.
        width: σ in cells, the width of the step of χ: smaller details are not resolved, and noise is smoothed.
    """
    splat = Splat.of(points, shape)
    axes = [
        2 * np.pi * f for f in (np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2]))
    ]
    waves = np.meshgrid(*axes, indexing="ij", sparse=True)
    k = [wave.astype(np.float32) for wave in waves]
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    smooth = np.exp(-0.5 * width**2 * square)
    target = (
        sum(np.complex64(1j) * k[i] * fft.rfftn(splat.onto(normals[:, i] * areas)) for i in range(3)) * smooth
    )
    pull = SCREENING * areas * np.linalg.norm(normals, axis=1)
    pull /= max(float(areas.mean()), 1e-300)
    screen = np.float32(pull.sum() / np.prod(shape) + 1e-6)

    def operator(field: np.ndarray) -> np.ndarray:
        return fft.irfftn(fft.rfftn(field) * square, s=shape) + splat.onto(pull * splat.at(field))

    def preconditioned(field: np.ndarray) -> np.ndarray:
        return fft.irfftn(fft.rfftn(field) / (square + screen), s=shape)

    flat = square.copy()
    flat[0, 0, 0] = np.inf
    field = fft.irfftn(target / flat, s=shape)
    field -= np.float32(np.average(splat.at(field), weights=pull))
    left = -splat.onto(pull * splat.at(field))  # the gradient term is already solved
    step = near = preconditioned(left)
    size = first = float(np.vdot(left, near))
    for _ in range(STEPS):
        if not size > 1e-12 * first:
            break
        ahead = operator(step)
        far = np.float32(size / float(np.vdot(step, ahead)))
        field += far * step
        left -= far * ahead
        near = preconditioned(left)
        size, before = float(np.vdot(left, near)), size
        step = near + np.float32(size / before) * step
    slope = np.gradient(gaussian_filter(field, 0.5))
    steep = np.sqrt(sum(splat.at(part) ** 2 for part in slope))
    return field / np.float32(max(float(np.average(steep, weights=pull)), 1e-30))
