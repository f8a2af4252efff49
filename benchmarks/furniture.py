"""Makes the built-in shapes: CC0 ones, and more of classes that they have few of (pointcloud/assets/furniture.npz).

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb sweet/
    python -m benchmarks.furniture sweet/usr/share/sweethome3d/furniture

The CC0 shapes of the file and their splits stay as they are. In place of what else is in it, the meshes of `CHOSEN` are
added to the training split, with their licence and author. Chosen were plain examples that strangers would name: cars
for vehicles, chairs that stand on four legs, tables, beds and sofas without much on them, pot plants and trees.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
from jaxtyping import Float, Int16

from benchmarks import options_of
from benchmarks.quality.sweet_home import Mesh, catalogue
from ditmoe.checkpoint import replacing
from modalities.pointcloud.data.catalogue import BUILT_IN, CC0
from modalities.pointcloud.data.formats import read_surface

POINTS, GRID = 4096, 2048
"""Points of a shape, and their steps along its bounding-box diagonal."""
LICENCES = {"BlendSwap-CC-BY": "CC BY 3.0", "KatorLegaz": "CC BY 3.0 US", "Scopia": "CC BY 3.0"}
"""Library -> licence of its meshes."""
_CHOSEN = {
    "bed": """bed1 captains-bed children_bed hospital-bed iron_bed juniorBed lettoCloud""",
    "chair": """bar_chair cafe_set_tonon_chair chair chair3 chair4 chairWithCushion childChair children_chair
        dining-chair ella_chair_f foldingChair green_stool kitchenChair kitchen_stool plaidChair plastic_chair
        white_kitchen_chair""",
    "lamp": """classic-lamppost farola1 hanging-restaurant-light hangingLight lamp little_lamp1 little_lamp2
        little_lamp3 living_lamp livingroom_lamp1 pedestal-vase-lamp saloon_lamp table_lamp""",
    "plant": """arbolito bonsai-tree bush calla_lily_with_roses christmas_tree coconutTree cypress decorativePlant
        ficus ficusTree maceta mediumIndoorPlant palm pine sabalPalmeto spider_plant yuccaPlant""",
    "sofa": """beige_sofa beige_sofa_2seats burlap_sofa clear_sofa couch3 leather_sofa mid-century-sofa simple_sofa
        sofa2 sofa3 sofa_white_beige""",
    "table": """bar_table black_table cafe-table children_table coffeeTable coffee-table2 coffee_table folding-table
        glass-dining-table living_room_table officeTable rattanTable round-table saloon_table simpleDesk table table3
        table4 table-on-trestles table-with-leaning-feet table_wood_and_iron white_kitchen_table
        wooden_office_alder_table wooden_office_pear_table wooden_office_pear_table_rect wooden_office_teak_table""",
    "vehicle": """VW-new-beetle chevrolet concept-sedan-01v1 concept-sedan-01v2 concept-sedan-02
        concept-sedan-02-sport fordFocus peugeot-308 renault-scenic seat_leon smart-car suv van""",
}
CHOSEN = {stem: category for category, stems in _CHOSEN.items() for stem in stems.split()}
"""File name of a mesh, without its ending -> class."""


def missing(libraries: Path) -> list[str]:
    """What of `CHOSEN` is in none of the libraries."""
    found = set()
    for library in LICENCES:
        with ZipFile(libraries / f"{library}.sh3f") as archive:
            found |= {Path(mesh.member).stem for mesh in catalogue(archive)[1]}
    return sorted({*CHOSEN} - found)


def chosen(libraries: Path) -> Iterator[tuple[Mesh, str, Path]]:
    """The meshes of `CHOSEN`, their licences, and files that are there until the next one is asked for."""
    for library, licence in LICENCES.items():
        with ZipFile(libraries / f"{library}.sh3f") as archive, TemporaryDirectory() as folder:
            for mesh in sorted(catalogue(archive)[1]):
                if Path(mesh.member).stem in CHOSEN:
                    file = Path(folder) / "mesh.obj"
                    file.write_bytes(archive.read(mesh.member))
                    yield mesh, licence, file


def steps_of(points: Float[np.ndarray, "N 3"]) -> Int16[np.ndarray, "3 N"]:
    """Differences of the points along a Morton curve, on a grid; the bounding box is centred, its diagonal `GRID`."""
    low, high = points.min(0), points.max(0)
    grid = np.round((points - (low + high) / 2) / np.linalg.norm(high - low) * GRID).astype(np.int64)
    bits = (grid + GRID)[:, :, None] >> np.arange(13) & 1
    code = (bits << (3 * np.arange(13) + np.arange(3)[:, None])).sum((1, 2))
    return np.diff(grid[np.argsort(code, kind="stable")], axis=0, prepend=0).T.astype(np.int16)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("libraries", type=Path, help="the folder with the .sh3f files")
    libraries = parser.parse_args().libraries
    if lacking := missing(libraries):
        parser.error(f"{libraries} must hold all meshes of CHOSEN, but lacks {', '.join(lacking)}")
    with np.load(BUILT_IN) as file:
        kept = file["licence"] == CC0
        columns = {
            key: list(file[key][:, kept].swapaxes(0, 1) if key == "steps" else file[key][kept])
            for key in file
        }
    for mesh, licence, file in chosen(libraries):
        columns["steps"].append(steps_of(read_surface(file, POINTS, seed=0)))
        said = CHOSEN[Path(mesh.member).stem], mesh.name, mesh.creator, "train", licence
        for key, value in zip(("category", "name", "creator", "split", "licence"), said, strict=True):
            columns[key].append(value)
    arrays = {key: np.array(column) for key, column in columns.items()}
    with replacing(BUILT_IN) as stream:
        np.savez_compressed(stream, **arrays | {"steps": arrays["steps"].swapaxes(0, 1)})
    print(f"{len(arrays['name'])} shapes in {BUILT_IN}, {kept.sum()} of them CC0")


if __name__ == "__main__":
    main()
