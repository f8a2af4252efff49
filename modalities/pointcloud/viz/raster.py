"""Renders meshes in NumPy: a z-buffer over triangles, with the same sky and lamp as the clouds of `render`."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from modalities.pointcloud.viz.render import (
    FRAGMENTS,
    PALETTE,
    RGB,
    SUPERSAMPLE,
    Screen,
    camera,
    fold,
    ground,
    lights,
    normalise,
    project,
    swept,
    visibility,
)


def render_mesh(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    normals: Float[np.ndarray, "V 3"],
    size: int = 256,
    azimuth: float = 38.0,
    elevation: float = 22.0,
    color: RGB | UInt8[np.ndarray, "V 3"] = PALETTE[0],
    turning: bool = False,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one mesh, smoothly shaded, on white ground; arguments are those of `render`.

    Args:
        normals: of the vertices, of length 1.
        color: sRGB, 0 to 255, of all vertices or of each.
    Returns:
        (size, size, 3) sRGB.
    """
    points = normalise(vertices)
    view = camera(azimuth, elevation)
    fits = swept(points, elevation) if turning else None
    screen = project(points @ view.T, size * SUPERSAMPLE, 0.004, fits)
    sky, lamp = lights(view)
    face, weights = _nearest(screen, faces)
    pixel = np.flatnonzero(face >= 0)
    corners, weights = faces[face[pixel]], weights[pixel]

    def across(values: np.ndarray) -> np.ndarray:
        return np.einsum("pk,pk...->p...", weights, values[corners])

    toward = across(normals)
    toward /= np.maximum(np.linalg.norm(toward, axis=1, keepdims=True), 1e-9)
    key = lamp.mean(0) / np.linalg.norm(lamp.mean(0))
    above = 0.5 + 0.5 * toward[:, 1]
    light = 0.72 * across(visibility(points, sky)) * (0.35 + 0.65 * above) + 0.16 * (1 - above)
    light += 0.74 * across(visibility(points, lamp)) * np.maximum(0, toward @ key)
    haze = 0.3 * np.clip(0.45 - across(screen.depth), 0, 1)[:, None]
    own = across(color.astype(np.float64)) if isinstance(color, np.ndarray) else np.array(color)
    albedo = (own / 255) ** 2.2
    image = np.zeros((screen.size**2, 3), np.float32)
    image[pixel] = albedo * light[:, None] * (1 - haze) + haze * (0.35 + 0.65 * albedo)
    bare = fold((face < 0).astype(np.float32), size)
    shaded = points[:: max(1, len(points) // 8192)]  # as many as for the shadow of a cloud
    below = project(shaded @ view.T, size * SUPERSAMPLE, 0.008, fits)
    below = Screen(screen.size, below.center, below.radius, below.depth, screen.zoom, screen.origin)
    linear = fold(image, size) + bare * ground(shaded, view, below, size, np.concatenate([sky, lamp]))
    return (255 * np.clip(linear, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def _nearest(screen: Screen, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The front triangle at each pixel, -1 without any, and its barycentric weights.

    Triangles of similar size are tested together, each at all pixels of its bounding box.
    """
    corners = screen.center[faces]  # (F, 3, 2)
    low = np.floor(corners.min(1) - 0.5).astype(np.int64) + 1  # pixels whose middle may lie within
    wide = np.maximum(np.ceil(corners.max(1) - 0.5).astype(np.int64) - low, 0).max(1)
    buffer = np.full(screen.size**2, -1, np.int64)
    for box in np.unique(2 ** np.ceil(np.log2(np.maximum(wide, 1))).astype(np.int64)):
        near = np.flatnonzero((wide > box // 2 if box > 1 else wide >= 0) & (wide <= box))
        offset = np.stack(np.meshgrid(*[np.arange(box)] * 2, indexing="ij"), -1).reshape(-1, 2)
        for part in np.split(near, np.arange(0, len(near), max(1, FRAGMENTS // len(offset)))[1:]):
            pixel = low[part, None] + offset
            weights = _weights(corners[part, None], pixel + 0.5)
            of, at = np.nonzero((weights >= 0).all(-1) & (pixel >= 0).all(-1) & (pixel < screen.size).all(-1))
            depth = (weights[of, at] * screen.depth[faces[part[of]]]).sum(-1)
            key = ((depth + 2) * 2**28).astype(np.int64) << 32 | part[of]
            np.maximum.at(buffer, pixel[of, at, 1] * screen.size + pixel[of, at, 0], key)
    face = np.where(buffer < 0, -1, buffer & (2**32 - 1))
    pixel = np.arange(screen.size**2)
    middle = np.stack([pixel % screen.size, pixel // screen.size], 1) + 0.5
    return face, _weights(corners[face], middle)


def _weights(corners: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Barycentric coordinates (..., 3) of points in triangles (..., 3, 2); -1 in triangles without area."""
    a, b, c = np.moveaxis(corners, -2, 0)

    def area(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]

    whole = area(b - a, c - a)
    parts = np.stack([area(b - at, c - at), area(c - at, a - at), area(a - at, b - at)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole[..., None] != 0, parts / whole[..., None], -1.0)
