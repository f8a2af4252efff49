"""Meshes and clouds as programs write them: read rightly, or refused in words that tell the cause."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud.data.formats import read_surface

CASES = Path(__file__).parents[2] / "cases" / "clouds" / "cases.zip"
BOX, UTM, TWO = (2, 1, 3), (0.2, 0.1, 0.3), (12, 1, 3)
OTHERS: dict[str, tuple[float, ...] | str] = {  # extent, or a part of the refusal; all others are boxes
    "obj/negative_blocks.obj": TWO,
    "stl/ascii_multi.stl": TWO,
    "glb/instancing.glb": TWO,
    "glb/skin_and_static.glb": TWO,
    "glb/transform.glb": (10, 2, 3),
    "glb/sparse.glb": (2, 1, 30),
    "obj/utm.obj": UTM,
    "txt/utm_comma.xyz": UTM,
    "obj/concave_ngon.obj": (4, 4, 0),
    "obj/nan_vertex.obj": (1, 1, 0),
    "off/pentagon.off": (3.95, 2.95, 0),
    "ply/tristrips.ply": (2, 1, 3),
    "npy/three_by_three.npy": (1, 1, 1),
    "npy/few.npy": BOX,
    "obj/lines_only.obj": "2 lines",
    "obj/curv.obj": "1 free-form",
    "obj/index_high.obj": "one of 8 vertices, got number 98",
    "obj/nan_used.obj": "finite",
    "txt/integer_xyz.xyz": "4 are missing",
    "glb/draco.glb": "KHR_draco_mesh_compression is not decoded",
    "glb/lines.glb": "lines",
    "glb/missing_bin.gltf": "nothere.bin is missing",
    "stl/empty.stl": "must have faces",
    "npy/bool.npy": "bool",
    "npy/empty.npy": r"\(0, 3\)",
}
NOTES = {
    "ply/nan_points.ply": "1 of 9 points",
    "txt/nan_row.xyz": "1 of 9 points",
    "stl/extra_bytes.stl": "7 bytes behind the 12 triangles",
    "stl/wrong_count_zero.stl": "counts 0 triangles: the 12",
}
NOT_READ = ("npy/onepoint.npy", "glb/my box.bin")
with zipfile.ZipFile(CASES) as _archive:
    NAMES = [name for name in _archive.namelist() if name not in NOT_READ]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    with zipfile.ZipFile(CASES) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_case_has_its_form_or_is_refused(cases: Path, name: str) -> None:
    right, notes = OTHERS.get(name, BOX), []
    if isinstance(right, str):
        with pytest.raises(ValueError, match=right) as error:
            read_surface(cases / name, 4000, 0, note=notes.append)
        assert str(cases / name) in str(error.value)
        return
    points = read_surface(cases / name, 4000, 0, note=notes.append)
    np.testing.assert_allclose(np.ptp(points, axis=0), right, rtol=0.03, atol=1e-6)
    assert [note for note in notes if NOTES.get(name, "\0") in note] == notes
    assert bool(notes) == (name in NOTES)


def test_no_point_lies_outside_a_concave_polygon(cases: Path) -> None:
    x, y, _ = read_surface(cases / "obj/concave_ngon.obj", 4000, 0).T
    assert (y <= np.where(x < 2, 4 - 1.5 * x, 1.5 * x - 2) + 1e-9).all()  # below the notch at (2, 1)


def test_all_case_files_are_in_the_table() -> None:
    assert {*OTHERS, *NOTES} <= set(NAMES)
    assert len(NAMES) > 90
