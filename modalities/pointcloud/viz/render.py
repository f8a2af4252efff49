"""Renders point clouds in NumPy and Pillow: each point is a small sphere under a sky and a lamp.

y is up and +z is the front, as in ShapeNet. A cloud is drawn relative to its own bounding box: neither its
position nor its scale changes the picture, and it always fills the frame.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num, UInt8

RGB = tuple[int, int, int]

PALETTE: tuple[RGB, ...] = (
    (74, 124, 178),
    (226, 118, 74),
    (96, 160, 116),
    (232, 174, 60),
    (150, 104, 164),
    (52, 156, 160),
    (212, 104, 134),
    (140, 146, 92),
    (172, 122, 88),
    (104, 112, 190),
)
CAMERA_DISTANCE = 3.0  # in diagonals of the cloud: near enough for depth, far enough for straight legs
SUPERSAMPLE = 2  # samples per pixel along an axis
FRAGMENTS = 2_000_000  # sphere pixels held at once; bounds the memory of large clouds


@dataclass(frozen=True)
class Screen:
    """Projection of the points of a cloud onto the (supersampled) frame; pixels, y down."""

    size: int
    center: Float[np.ndarray, "N 2"]
    radius: Float[np.ndarray, " N"]
    depth: Float[np.ndarray, " N"]
    zoom: float
    origin: Float[np.ndarray, " 2"]


def class_color(index: int) -> RGB:
    """The colour of a class, cycling through the palette."""
    return PALETTE[index % len(PALETTE)]


def finite(points: Num[np.ndarray, "N 3"]) -> Float[np.ndarray, "M 3"]:
    """The finite points, in float64; ValueError if the shape is not (N, 3)."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"a cloud must have the shape (N, 3), got {points.shape}")
    return points[np.isfinite(points).all(1)]


def render(
    points: Num[np.ndarray, "N 3"],
    size: int = 256,
    azimuth: float = 38.0,
    elevation: float = 22.0,
    color: RGB | UInt8[np.ndarray, "N 3"] = PALETTE[0],
    turning: bool = False,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one cloud as shaded spheres that stand on white ground.

    Args:
        points: (N, 3) in any unit; points that are not finite are left out.
        size: pixels along an edge.
        azimuth: degrees around the upright axis; 0 looks at the front (+z), 90 at the +x side.
        elevation: degrees above the horizon; the ground shows only where it is positive.
        color: sRGB, 0 to 255, of all points or of each.
        turning: use one scale for every azimuth, so that the cloud never leaves the frame.
    Returns:
        (size, size, 3) sRGB; plain white where there is nothing to draw.
    Raises:
        ValueError: if the shape of `points` or `size` is invalid.
    """
    if isinstance(color, np.ndarray) and color.shape != (len(points), 3):
        raise ValueError(f"colours must be one a point, ({len(points)}, 3), got {color.shape}")
    if isinstance(color, np.ndarray):
        color = color[np.isfinite(points).all(1)]
    points = finite(points)
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    if not len(points):
        return np.full((size, size, 3), 255, np.uint8)
    points = normalise(points)
    radius = float(np.clip(0.016 * (2048 / len(points)) ** 0.4, 0.004, 0.03))
    view = camera(azimuth, elevation)
    fits = swept(points, elevation) if turning else None
    screen = project(points @ view.T, size * SUPERSAMPLE, radius, fits)
    sky, lamp = lights(view)
    winner = _nearest(screen)
    spheres = _shade(winner, screen, view, lamp, visibility(points, sky), visibility(points, lamp), color)
    bare = fold((winner < 0).astype(np.float32), size)
    floor = ground(points, view, screen, size, np.concatenate([sky, lamp]))
    linear = fold(spheres, size) + bare * floor
    return (255 * np.clip(linear, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def fold(pixels: np.ndarray, size: int) -> np.ndarray:
    """Mean over the samples of each pixel, (size, size, channels)."""
    image = pixels.reshape(size * SUPERSAMPLE, size * SUPERSAMPLE, -1)
    # Strided sums, since one mean over two short axes takes NumPy ten times as long.
    total = np.zeros((size, size, image.shape[2]), np.float32)
    for i, j in itertools.product(range(SUPERSAMPLE), repeat=2):
        total += image[i::SUPERSAMPLE, j::SUPERSAMPLE]
    return total / SUPERSAMPLE**2


def normalise(points: np.ndarray) -> np.ndarray:
    """Centre the bounding box and scale it to diagonal 1."""
    low, high = points.min(0), points.max(0)
    # Halved first, so that the largest floats do not overflow.
    half = high / 2 - low / 2
    scale = 2 * np.abs(half).max()
    points = (points - (low + half)) / (scale or 1.0)
    return points / (np.linalg.norm(np.ptp(points, axis=0)) or 1.0)


def camera(azimuth: float, elevation: float) -> np.ndarray:
    """Rows: the camera's right, up and backward axis in the world."""
    a, e = np.deg2rad([azimuth % 360, elevation % 360])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    return np.stack([right, np.cross(back, right), back])


def project(cloud: np.ndarray, size: int, radius: float, fits: np.ndarray | None = None) -> Screen:
    """Perspective projection, with the zoom at which every sphere lies inside the frame.

    Args:
        fits: points that are to fill the frame; None is the cloud itself.
    """

    def seen(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = CAMERA_DISTANCE / (CAMERA_DISTANCE - points[:, 2])
        return points[:, :2] * scale[:, None], np.maximum(radius * size * scale, 0.75)

    plane, radii = seen(cloud)
    filled, widths = (plane, radii) if fits is None else seen(fits)
    low, high = filled.min(0), filled.max(0)
    margin = 0.045 * size + widths.max()
    # A single point, or a tiny cluster, must not fill the frame with one ball.
    zoom = (size - 2 * margin) / max(float((high - low).max()), 0.3)
    origin = size / 2 - np.array([1, -1]) * (low + high) / 2 * zoom
    return Screen(size, origin + plane * [zoom, -zoom], radii, cloud[:, 2], zoom, origin)


def swept(points: np.ndarray, elevation: float, levels: int = 64, turns: int = 64) -> np.ndarray:
    """Rings that enclose a cloud at any rotation about the upright axis, and look the same at every azimuth."""
    height, far = points[:, 1], np.hypot(points[:, 0], points[:, 2])
    low, step = height.min(), max(np.ptp(height), 1e-9) / levels
    widest = np.zeros(levels)
    np.maximum.at(widest, np.minimum((height - low) / step, levels - 1).astype(np.int64), far)
    y = low + step * np.array([np.arange(levels), np.arange(1, levels + 1)])  # both edges of a level
    turn = 2 * np.pi * np.arange(turns) / turns
    rings = np.broadcast_arrays(
        (widest[:, None] * np.sin(turn))[None], y[..., None], (widest[:, None] * np.cos(turn))[None]
    )
    return np.stack(rings, -1).reshape(-1, 3) @ camera(0, elevation).T


def _nearest(screen: Screen) -> np.ndarray:
    """Z-buffer of spheres: the nearest point of each pixel, (size * size,), -1 without any."""
    # Depth and point index are packed into one integer, so that one maximum decides and ties are deterministic.
    buffer = np.full(screen.size**2, -1, np.int64)
    reach = int(np.ceil(screen.radius.max())) + 1
    offset = np.arange(-reach, reach + 1)
    chunk = max(1, FRAGMENTS // len(offset) ** 2)
    for start in range(0, len(screen.center), chunk):
        part = slice(start, start + chunk)
        r = screen.radius[part, None].astype(np.float32)
        pixel = np.floor(screen.center[part]).astype(np.int32)[:, :, None] + offset
        shift = ((pixel + 0.5 - screen.center[part, :, None]) ** 2).astype(np.float32)
        height = r[:, :, None] ** 2 - shift[:, 1, :, None] - shift[:, 0, None, :]
        point, row, column = np.nonzero(height > 0)
        depth = screen.depth[start + point] + np.sqrt(height[point, row, column]) / screen.zoom
        key = ((depth + 2) * 2**28).astype(np.int64) << 32 | (start + point)
        np.maximum.at(buffer, pixel[point, 1, row] * np.int64(screen.size) + pixel[point, 0, column], key)
    return np.where(buffer < 0, -1, buffer & (2**32 - 1))


def lights(view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions towards an even sky and towards a broad lamp above the camera's left shoulder."""
    count = 28
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    height = np.sqrt(1 - (np.arange(count) + 0.5) / count * 0.94)
    ring = np.sqrt(1 - height**2)
    sky = np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], 1)
    level = np.cross(view[0], [0.0, 1.0, 0.0])
    lamp = -0.55 * view[0] + np.array([0.0, 1.0, 0.0]) + 0.45 * level + 0.22 * sky[::3] * [1, 0, 1]
    return sky, lamp / np.linalg.norm(lamp, axis=1, keepdims=True)


def visibility(points: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """Fraction of the lights visible from each point, (N,): one coarse shadow map per light."""
    cell = float(np.clip(0.04 * np.sqrt(2048 / len(points)), 0.025, 0.12))
    cells = int(1.2 / cell) + 2
    total = np.zeros(len(points))
    for light in lights:
        side = np.cross(light, [0.31, 0.17, 0.94])
        side /= np.linalg.norm(side)
        column = ((points @ side + 0.55) / cell).astype(np.int64)
        row = ((points @ np.cross(light, side) + 0.55) / cell).astype(np.int64)
        index, height = row * cells + column, points @ light
        nearest = np.full(cells**2, -np.inf)
        np.maximum.at(nearest, index, height)
        # A surface at a grazing angle spans a few cells of depth: only larger differences are shadows.
        total += np.clip((nearest[index] - height) / cell - 1.5, 0, 2) / 2
    return 1 - total / len(lights)


def _shade(
    winner: np.ndarray,
    screen: Screen,
    view: np.ndarray,
    lamp: np.ndarray,
    sky_light: np.ndarray,
    lamp_light: np.ndarray,
    color: RGB | np.ndarray,
) -> np.ndarray:
    """Linear colour of the pixels that a sphere covers, (size * size, 3); zero elsewhere."""
    pixel = np.flatnonzero(winner >= 0)
    point = winner[pixel]
    at = np.stack([pixel % screen.size, pixel // screen.size], 1) + 0.5
    xy = (at - screen.center[point]) / screen.radius[point, None] * [1, -1]
    normal = np.concatenate([xy, np.sqrt(np.maximum(0, 1 - (xy**2).sum(1, keepdims=True)))], 1)
    key, up = view @ lamp.mean(0), view @ [0.0, 1.0, 0.0]
    above = 0.5 + 0.5 * normal @ up
    facing = np.maximum(0, normal @ (key / np.linalg.norm(key)))
    light = 0.68 * sky_light[point] * (0.35 + 0.65 * above) + 0.16 * (1 - above)
    light += 0.74 * lamp_light[point] * facing
    # Darken the rims, so that neighbouring spheres stay distinguishable.
    light *= 0.66 + 0.34 * normal[:, 2]
    # Haze: distant points fade slightly to white.
    haze = 0.3 * np.clip(0.45 - screen.depth, 0, 1)[point, None]
    own = color[point] if isinstance(color, np.ndarray) else np.array(color)
    albedo = (own / 255) ** 2.2
    image = np.zeros((screen.size**2, 3), np.float32)
    image[pixel] = albedo * light[:, None] * (1 - haze) + haze * (0.35 + 0.65 * albedo)
    return image


def ground(points: np.ndarray, view: np.ndarray, screen: Screen, size: int, lights: np.ndarray) -> np.ndarray:
    """White ground under the cloud with its soft shadow, linear, (size, size, 1 or 3)."""
    if view[2, 1] <= 0.02:
        return np.ones((size, size, 1))
    floor = points[:, 1].min() - screen.radius.mean() / screen.zoom
    cells, extent = 96, 2.4
    shadow = np.zeros(cells**2)
    share = np.pi * (screen.radius.mean() / screen.zoom * cells / extent) ** 2
    for light in lights:
        hit = points - (points[:, 1:2] - floor) * light / light[1]
        row, column = (np.clip(hit[:, [2, 0]].T / extent + 0.5, 0, 0.999) * cells).astype(np.int64)
        shadow += 1 - np.exp(-1.5 * share / light[1] * np.bincount(row * cells + column, minlength=cells**2))
    shadow = shadow.reshape(cells, cells) / len(lights)
    shadow[[0, -1]] = shadow[:, [0, -1]] = 0
    for axis in (0, 1, 0, 1):
        shadow = (np.roll(shadow, 1, axis) + 2 * shadow + np.roll(shadow, -1, axis)) / 4
    # Where the ray through a pixel meets the floor; above the horizon it never does.
    step = (np.arange(size) + 0.5) * screen.size / size
    u = (step - screen.origin[0]) / screen.zoom
    v = (screen.origin[1] - step) / screen.zoom
    eye = CAMERA_DISTANCE * view[2]
    fall = v * view[1, 1] - eye[1]
    t = np.where(fall < -1e-3, (floor - eye[1]) / np.minimum(fall, -1e-3), np.inf)
    ray = u[None, :, None] * view[0, [0, 2]] + v[:, None, None] * view[1, [0, 2]] - eye[[0, 2]]
    met = np.nan_to_num(eye[[0, 2]] + np.minimum(t, 1e3)[:, None, None] * ray)
    # Fade the shadow at the frame, which would otherwise become visible.
    fade = np.clip(np.minimum(step, screen.size - step) / (0.16 * screen.size), 0, 1)
    fade = fade**2 * (3 - 2 * fade)
    shadow = _bilinear(shadow, (met[..., ::-1] / extent + 0.5) * cells - 0.5)
    return 1 - 0.66 * (shadow * fade * fade[:, None])[..., None]


def _bilinear(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of `image` at (..., 2) fractional rows and columns; its edge continues outside."""
    at = np.clip(at, 0, np.array(image.shape) - 1.001)
    (i, j), (a, b) = np.moveaxis(at.astype(np.int64), -1, 0), np.moveaxis(at % 1, -1, 0)
    upper = (1 - b) * image[i, j] + b * image[i, j + 1]
    return (1 - a) * upper + a * ((1 - b) * image[i + 1, j] + b * image[i + 1, j + 1])
