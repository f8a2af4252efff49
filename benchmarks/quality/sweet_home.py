"""820 real meshes of furniture and household objects, as folders of classes: the libraries of Sweet Home 3D.

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb sweet/
    python -m benchmarks.quality.sweet_home sweet/usr/share/sweethome3d/furniture meshes/
    python -m ditmoe.prepare source=meshes/ out=data/
    python -m ditmoe.train modality=pointcloud modality.data.root=data/ name=sweet_home
    python -m benchmarks.quality.beside_dit3d --words modality.data.root=data/ --out runs/beside_dit3d_sweet

A library (.sh3f) is a zip of OBJ meshes with a catalogue that names them. The class of a mesh is the first whose words
occur in its name, such as "Office chair", or in its file name; otherwise that of its category; else "other".
licences.csv lists the author and licence of each mesh: CC0 for 175, CC-BY 3.0 for 645, which you must credit when you
redistribute them.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from benchmarks import options_of
from ditmoe.checkpoint import replacing
from ditmoe.outside import file_name

CATALOGUE = "PluginFurnitureCatalog.properties"
LARGEST = 64 << 20
"""Bytes of a mesh, or of a catalogue."""

WORDS = {
    "chair": r"chairs?|armchair|stool|seat|bench|pouf",
    "sofa": r"sofa|couch|settee|divan",
    "bed": r"bed|crib|bunk|futon|cradle",
    "table": r"table|desk",
    "cabinet": r"cabinet|wardrobe|dresser|chest|drawers?|cupboard|shelf|shelves|bookcase|bookshelf|sideboard|locker",
    "lamp": r"lamp|light|chandelier|lantern|sconce",
    "plant": r"plant|tree|flowers?|bush|palm|cactus|bonsai|bamboo|hedge|fern|ficus|cypress|oak|pine|tulips|orchids",
    "vehicle": r"car|truck|bike|bicycle|motorcycle|motorbike|bus|van|boat|scooter|tractor",
}
CATEGORIES = {"Vehicles": "vehicle", "Lights": "lamp", "Characters": "person"}


class Mesh(NamedTuple):
    """One of a library: its member of the zip, and what the catalogue says of it."""

    member: str
    name: str
    category: str
    creator: str


def catalogue(library: ZipFile) -> tuple[str, list[Mesh]]:
    """The licence of a library and its meshes, from lines such as `name#12=Armchair`."""
    if library.getinfo(CATALOGUE).file_size > LARGEST:
        raise ValueError(f"{library.filename}: {CATALOGUE} must have at most {LARGEST} bytes")
    text = library.read(CATALOGUE).decode("latin1")

    def column(key: str) -> dict[str, str]:
        return {
            number: said.strip() for number, said in re.findall(rf"^{key}#(\d+)=(.*)$", text, re.MULTILINE)
        }

    licence = re.search(r"^license=(.*)$", text, re.MULTILINE)
    name, model, category, creator = (column(key) for key in ("name", "model", "category", "creator"))
    meshes = [
        Mesh(member.lstrip("/"), name.get(number, ""), category.get(number, ""), creator.get(number, ""))
        for number, member in model.items()
    ]
    return "unknown" if licence is None else licence[1].strip(), meshes


def class_of(mesh: Mesh) -> str:
    """By the words of its name, then of its file's, then by its category."""
    for said in (mesh.name, Path(mesh.member).stem):
        spaced = re.sub(r"[^a-z]+", " ", said.lower())
        for label, words in WORDS.items():
            if re.search(rf"\b({words})\b", spaced):
                return label
    return CATEGORIES.get(mesh.category, "other")


def written(path: Path, out: Path) -> Iterator[list[str]]:
    """Write the meshes of a library into folders of their classes; a row of the list of licences of each."""
    with ZipFile(path) as library:
        licence, meshes = catalogue(library)
        members = {info.filename: info for info in library.infolist()}
        for mesh in meshes:
            info = members.get(mesh.member)
            if info is None or info.file_size > LARGEST:
                print(
                    f"left out: {mesh.name}, {'no such member' if info is None else 'too large'}",
                    file=sys.stderr,
                )
                continue
            file = out / class_of(mesh) / file_name(f"{path.stem}-{Path(mesh.member).stem}.obj")
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as stream:
                stream.write(library.read(info))
            yield [f"{file.parent.name}/{file.name}", mesh.name, mesh.creator, licence, path.name]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("libraries", type=Path, help="the folder with the .sh3f files")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    libraries = sorted(options.libraries.glob("*.sh3f"))
    if not libraries:
        parser.error(f"{options.libraries} has no .sh3f files")
    rows = [row for path in libraries for row in written(path, options.out)]
    table = StringIO(newline="")
    csv.writer(table).writerows([["file", "name", "creator", "licence", "library"], *rows])
    with replacing(options.out / "licences.csv") as stream:
        stream.write(table.getvalue().encode())
    found = Counter(row[0].split("/")[0] for row in rows)
    print(
        f"{len(rows)} meshes in {options.out}: "
        + ", ".join(f"{label} {num}" for label, num in found.most_common())
    )


if __name__ == "__main__":
    main()
