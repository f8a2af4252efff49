"""The program of Open3D's process: shows a scene in a window or draws it without one.

    python window.py SCENE.npz [PICTURE.png]

It imports nothing of this package, so that it starts without torch.
"""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

MAX_SPHERES = 80_000  # beyond, a window without a graphics card would stutter
WINDOW_TITLE = "ditmoe - n: next, p: previous, a: all, mouse: turn, q: close"


def show(scene: Path, picture: Path | None) -> None:
    """Show all shapes in a grid; in a window, the keys n, p and a select one or all."""
    import open3d

    with np.load(scene) as arrays:
        points = np.split(arrays["points"], arrays["ends"][:-1])
        colors = np.split(arrays["colors"], arrays["ends"][:-1])
    window = open3d.visualization.VisualizerWithKeyCallback()
    spheres = sum(map(len, points)) <= MAX_SPHERES
    columns = int(np.ceil(np.sqrt(1.5 * len(points))))
    rows = -(-len(points) // columns)
    width, height = max(640, min(1600, 240 * columns)), max(480, min(1000, 240 * rows))
    with redirect_stdout(io.StringIO()) as said:
        opened = window.create_window(WINDOW_TITLE, width, height, visible=picture is None)
    # If the display is unreachable, Open3D renders offscreen and would wait forever for a key; only its log tells.
    if not opened or (picture is None and "offscreen" in said.getvalue().lower()):
        sys.exit("Error: no OpenGL window on this display")

    option = window.get_render_option()
    option.background_color = np.ones(3)
    # Open3D's setting for smooth shading; its default shows every facet of a sphere.
    option.mesh_shade_option = open3d.visualization.MeshShadeOption.Color

    def put(chosen: Sequence[int], wide: int) -> None:
        window.clear_geometries()
        for place, i in enumerate(chosen):
            where = [place % wide, -(place // wide), 0]
            window.add_geometry(_geometry(_turned(points[i]) + where, colors[i], spheres))
        high = -(-len(chosen) // wide)
        option.point_size = float(np.clip(0.02 * height / high, 2, 8))
        window.reset_view_point(True)
        control = window.get_view_control()
        control.set_front([0.0, 0.3, 1.0])
        control.set_up([0.0, 1.0, 0.0])
        # From its minimum of 5 degrees up by 5 steps of 5: a narrow view keeps the legs of chairs parallel.
        # A zoom of 0.5 is as high as the longest edge of everything.
        control.change_field_of_view(-90)
        control.change_field_of_view(5)
        control.set_zoom(0.67 * max(high, wide * height / width) / max(high, wide))

    shown = -1

    def step(by: int) -> bool:
        nonlocal shown
        shown = (shown + by) % len(points) if shown >= 0 or by > 0 else len(points) - 1
        put([shown], 1)
        return False

    def everything(_: object = None) -> bool:
        nonlocal shown
        shown = -1
        put(range(len(points)), columns)
        return False

    everything()
    if picture is None:
        window.register_key_callback(ord("N"), lambda _: step(1))
        window.register_key_callback(ord("P"), lambda _: step(-1))
        window.register_key_callback(ord("A"), everything)
        window.run()
    else:
        window.poll_events()
        window.update_renderer()
        window.capture_screen_image(str(picture), do_render=True)
    window.destroy_window()


def _geometry(points: np.ndarray, colors: np.ndarray, spheres: bool) -> Any:
    """Open3D's geometry of one cloud: shaded spheres, or plain points if there are many."""
    import open3d

    if not spheres:
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
        cloud.colors = open3d.utility.Vector3dVector(colors)
        return cloud
    radius = 0.014 * min(2.0, (2048 / len(points)) ** 0.4)
    ball = open3d.geometry.TriangleMesh.create_sphere(radius, resolution=4)
    corners, faces = np.asarray(ball.vertices), np.asarray(ball.triangles)
    vertices = (points[:, None] + corners).reshape(-1, 3)
    triangles = (faces + np.arange(len(points))[:, None, None] * len(corners)).reshape(-1, 3)
    mesh = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(vertices), open3d.utility.Vector3iVector(triangles.astype(np.int32))
    )
    mesh.vertex_colors = open3d.utility.Vector3dVector(np.repeat(colors, len(corners), axis=0))
    mesh.compute_vertex_normals()
    return mesh


def _turned(points: np.ndarray) -> np.ndarray:
    """Three-quarter view: the front a little to the left of the camera."""
    sine, cosine = np.sin(-0.65), np.cos(-0.65)
    return points @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])


if __name__ == "__main__":
    show(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
