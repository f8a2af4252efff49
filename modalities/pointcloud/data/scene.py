"""The surface that a glTF's scene shows: accessors, nodes, skins, morphs, instances (Khronos glTF 2.0)."""

import base64
import urllib.parse
from collections.abc import Callable
from typing import Any

import numpy as np

from ditmoe.outside import may_hold, printable
from modalities.pointcloud.data.channels import Geometry
from modalities.pointcloud.data.gltf import Beside

_KINDS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_NO_GEOMETRY = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_", "KHR_lights_", "KHR_xmp")
_READ = (
    "KHR_mesh_quantization",
    "EXT_mesh_gpu_instancing",
    "EXT_meshopt_compression",
    "KHR_node_visibility",
    "KHR_draco_mesh_compression",
)
"""Of required extensions; those of compression are then read from what is not compressed, or refused by name."""
_POINTS, _LINES, _STRIP, _FAN = 0, (1, 2, 3), 5, 6
_STEP, _MATRIX = 500, 128
"""Bytes that count for each part, accessor and instance, for the time that it takes; and those of a matrix."""


class Scene:
    """A glTF whose counts `gltf.check` has looked at.

    Args:
        tree: its JSON.
        inner: the binary chunk of a .glb.
        beside: gives the files of its folder.
    """

    def __init__(self, tree: dict[str, Any], inner: bytes | None, beside: Beside) -> None:
        self.tree, self.inner, self.beside = tree, inner, beside
        self.buffers: dict[int, bytes] = {}
        self.left, self.more = 0, False
        for name in tree.get("extensionsRequired", []):
            if name not in _READ and not str(name).startswith(_NO_GEOMETRY):
                raise ValueError(f"a glTF must not require what is not decoded, got {printable(name)[:80]}")

    def geometry(self, size: int, note: Callable[[str], object], more: bool = False) -> Geometry:
        """Vertices and triangles of all that is shown; of points alone also their normals.

        Colours are those of the vertices (COLOR_0), as they stand, where all parts have them; materials are not read.

        Args:
            more: read colours and normals, too.

        Raises:
            ValueError: if it shows neither triangles nor points, or more than a file of `size` bytes may.
        """
        parts: list[Geometry] = []
        self.left, self.lines, self.more = may_hold(size), 0, more
        for node, world in self._placed():
            for part in self._mesh(node):
                for matrix in self._instances(node, world) if "skin" not in node else [np.eye(4)]:
                    faces = part.faces
                    self._spend(24 * (len(part.points) + (0 if faces is None else len(faces))))
                    parts.append(_moved(part, matrix))
        solid = [part for part in parts if part.faces is not None]
        clouds = [part for part in parts if part.faces is None]
        if not solid and not clouds:
            got = f"{self.lines} of lines" if self.lines else "nothing"
            raise ValueError(f"a glTF must show parts of triangles or of points, got {got}")
        shown = solid or clouds
        points = np.concatenate([part.points for part in shown])
        rgb, normals = _joined([part.rgb for part in shown]), _joined([part.normals for part in shown])
        if not solid:
            return Geometry(points, None, rgb, normals)
        if clouds:
            note(f"{len(clouds)} parts of points beside the surface are not read")
        starts = np.cumsum([0, *(len(part.points) for part in solid)])
        triangles = [part.faces + start for part, start in zip(solid, starts, strict=False)]
        return Geometry(points, np.concatenate(triangles), rgb)

    def _spend(self, number: int) -> None:
        """Count bytes that are made; nodes, parts, targets and joints may name the same numbers again and again."""
        self.left -= number
        if self.left < 0:
            raise ValueError("a scene must not show its parts so often that they fill the memory")

    def _entry(self, name: str, index: Any) -> dict[str, Any]:
        """What the tree has under a number, as -1 is none.

        Raises:
            ValueError: if it has nothing there.
        """
        entries = self.tree.get(name, [])
        if type(index) is not int or not 0 <= index < len(entries):
            raise ValueError(
                f"a glTF must name one of its {len(entries)} {name}, got number {printable(index)[:40]}"
            )
        return entries[index]

    def _placed(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """The nodes that the scene shows, each with its matrix to the world; matrices of all are kept for joints."""
        nodes, scenes = self.tree.get("nodes", []), self.tree.get("scenes", [])
        if scenes:
            shown = self._entry("scenes", self.tree.get("scene", 0)).get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            shown = [i for i in range(len(nodes)) if i not in children]
        placed = self._below(shown)
        self.world = {i: matrix for i, matrix, _ in placed}
        return [(nodes[i], matrix) for i, matrix, visible in placed if visible and "mesh" in nodes[i]]

    def _below(self, roots: list[int]) -> list[tuple[int, np.ndarray, bool]]:
        nodes = self.tree.get("nodes", [])
        waiting: list[tuple[int, np.ndarray, bool]] = [(i, np.eye(4), True) for i in reversed(roots)]
        placed = []
        while waiting:
            i, above, visible = waiting.pop()
            node = self._entry("nodes", i)
            visible &= node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            matrix = above @ _local(node)
            placed.append((i, matrix, visible))
            waiting += [(child, matrix, visible) for child in reversed(node.get("children", []))]
            if len(placed) > len(nodes):
                raise ValueError("the nodes of a glTF must be a tree, got one with two parents")
        return placed

    def _instances(self, node: dict[str, Any], world: np.ndarray) -> list[np.ndarray]:
        found = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if not found:
            return [world]
        columns = {name: self.accessor(i) for name, i in found.get("attributes", {}).items()}
        rows = max(map(len, columns.values()), default=0)
        self._spend(rows * (_STEP + _MATRIX))
        keys = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
        each = [
            {keys[name]: values[i] for name, values in columns.items() if name in keys} for i in range(rows)
        ]
        return [world @ _local(place) for place in each]

    def _mesh(self, node: dict[str, Any]) -> list[Geometry]:
        mesh = self._entry("meshes", node["mesh"])
        weights = node.get("weights", mesh.get("weights", []))
        parts: list[Geometry] = []
        for primitive in mesh.get("primitives", []):
            self._spend(_STEP)
            attributes, mode = primitive.get("attributes", {}), primitive.get("mode", 4)
            if mode in _LINES:
                self.lines += 1
                continue
            if "POSITION" not in attributes:
                raise ValueError("a part of a glTF must have the attribute POSITION")
            draco = "KHR_draco_mesh_compression" in primitive.get("extensions", {})
            numbers = [attributes["POSITION"], primitive.get("indices", attributes["POSITION"])]
            if draco and any("bufferView" not in self._entry("accessors", number) for number in numbers):
                raise ValueError("KHR_draco_mesh_compression is not decoded: save the glTF without Draco")
            points = self.accessor(attributes["POSITION"])
            for weight, target in zip(weights, primitive.get("targets", []), strict=False):
                if weight and "POSITION" in target:
                    points = points + weight * self.accessor(target["POSITION"])
            if "skin" in node:
                points = self._skinned(points, attributes, self._entry("skins", node["skin"]))
            order = np.arange(len(points))
            if "indices" in primitive:
                order = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
            _check_within(order, len(points), "faces", "vertices")
            rgb, normals = (
                self.accessor(attributes[name])[:, :3] if self.more and name in attributes else None
                for name in ("COLOR_0", "NORMAL")
            )
            if mode == _POINTS:
                once = np.unique(order)
                normals = None if normals is None else normals[once]
                parts.append(Geometry(points[once], None, None if rgb is None else rgb[once], normals))
            else:
                parts.append(Geometry(points, _triangles(order, mode), rgb))
        return parts

    def _skinned(self, points: np.ndarray, attributes: dict[str, int], skin: dict[str, Any]) -> np.ndarray:
        """Vertices as their joints place them where nothing moves; the node of the mesh plays no part."""
        self._spend(_MATRIX * (len(points) + len(skin["joints"])))
        total = np.zeros((len(points), 4, 4))
        for joint in skin["joints"]:
            self._entry("nodes", joint)
        matrices = np.stack([self.world.get(joint, np.eye(4)) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
            matrices = matrices @ inverse[: len(matrices)]
        number = 0
        while f"JOINTS_{number}" in attributes and f"WEIGHTS_{number}" in attributes:
            joints = self.accessor(attributes[f"JOINTS_{number}"]).astype(np.int64)
            weights = self.accessor(attributes[f"WEIGHTS_{number}"])
            self._spend(_MATRIX * joints.size)
            _check_within(joints, len(matrices), "vertices", "joints")
            for joint, weight in zip(joints.T, weights.T, strict=True):
                total += weight[:, None, None] * matrices[joint]
            number += 1
        sums = total[:, 3, 3]
        if not number or not (sums > 0).all():
            return points
        moved = np.einsum("vij,vj->vi", total[:, :3, :3], points) + total[:, :3, 3]
        return moved / sums[:, None]

    def accessor(self, index: int) -> np.ndarray:
        """The numbers of an accessor (count, width) in double precision, sparse ones in place, normalised to 1."""
        accessor = self._entry("accessors", index)
        kind, width, count = _KINDS[accessor["componentType"]], _WIDTHS[accessor["type"]], accessor["count"]
        self._spend(_STEP + 8 * count * width)
        view, dtype = accessor.get("bufferView"), np.dtype(kind)
        values = np.zeros((count, width), dtype)
        if view is not None:
            values = self._numbers(view, accessor.get("byteOffset", 0), dtype, count, width).copy()
        if sparse := accessor.get("sparse"):
            self._spend(8 * sparse["count"] * (1 + width))
            there, new = sparse["indices"], sparse["values"]
            places = self._numbers(there["bufferView"], there.get("byteOffset", 0),
                                   np.dtype(_KINDS[there["componentType"]]), sparse["count"], 1)  # fmt: skip
            _check_within(places, count, "a sparse accessor", "values")
            values[places[:, 0]] = self._numbers(
                new["bufferView"], new.get("byteOffset", 0), dtype, sparse["count"], width
            )
        numbers = values.astype(np.float64)
        if accessor.get("normalized") and dtype.kind in "iu":
            numbers = np.maximum(numbers / np.iinfo(dtype).max, -1)
        return numbers

    def _numbers(self, view: int, offset: int, dtype: np.dtype, count: int, width: int) -> np.ndarray:
        about = self._entry("bufferViews", view)
        buffer = self._buffer(about["buffer"], "EXT_meshopt_compression" in about.get("extensions", {}))
        start, size = about.get("byteOffset", 0), width * dtype.itemsize
        stride = about.get("byteStride", size) or size
        data = memoryview(buffer)[start : start + about["byteLength"]]
        if count and (min(start, offset, stride) < 0 or offset + (count - 1) * stride + size > len(data)):
            raise ValueError(
                f"a glTF must hold the {count} values of each accessor, got {len(data)} bytes (truncated?)"
            )
        if not count:
            return np.empty((0, width), dtype)
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def _buffer(self, index: int, compressed: bool = False) -> bytes:
        if index not in self.buffers:
            about = self._entry("buffers", index)
            uri = about.get("uri")
            if uri is None and compressed and (index or self.inner is None):
                raise ValueError("EXT_meshopt_compression is not decoded: save the glTF without it")
            if uri is None:
                if self.inner is None or index:
                    raise ValueError(f"buffer {index} of a glTF must be in it or name a file, got neither")
                self.buffers[index] = self.inner
            elif str(uri).startswith("data:"):
                self.buffers[index] = base64.b64decode(urllib.parse.unquote(uri.partition(",")[2]))
            else:
                self.buffers[index] = self.beside.get(uri)
                self._spend(len(self.buffers[index]))
        return self.buffers[index]


def _moved(part: Geometry, matrix: np.ndarray) -> Geometry:
    """A part where its node places it; one that is mirrored keeps its outside."""
    turn = matrix[:3, :3]
    faces, normals = part.faces, part.normals
    if faces is not None and np.linalg.det(turn) < 0:
        faces = faces[:, [0, 2, 1]]
    if normals is not None:
        normals = normals @ np.linalg.pinv(turn)
    return Geometry(part.points @ turn.T + matrix[:3, 3], faces, part.rgb, normals)


def _check_within(numbers: np.ndarray, count: int, who: str, whom: str) -> None:
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
        wrong = numbers.max() if numbers.min() >= 0 else numbers.min()
        raise ValueError(f"{who} must name one of {count} {whom}, got number {wrong}")


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there and len(there) == len(parts) else None


def _local(node: dict[str, Any]) -> np.ndarray:
    """The matrix of a node to the one above it."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    length = x * x + y * y + z * z + w * w
    s = 2 / length if length > 0 else 0
    matrix[:3, :3] = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    if mode == _STRIP:
        return np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    if mode == _FAN:
        return np.stack([np.broadcast_to(order[:1], len(order[1:-1])), order[1:-1], order[2:]], axis=1)
    if mode != 4:
        raise ValueError(f"the mode of a part of a glTF must lie between 0 and 6, got {mode}")
    return order[: len(order) // 3 * 3].reshape(-1, 3)
