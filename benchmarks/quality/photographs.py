"""71 real photographs as pictures of ten sizes: tiles of smaller copies, with other photographs for test.

    apt-get download mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    apt-get download plasma-workspace-wallpapers opencv-doc
    for each in *.deb; do dpkg -x $each packages/; done
    pip download --no-deps scikit-image scikit-learn
    for each in scikit_*.whl; do python -m zipfile -e $each packages/; done
    python -m benchmarks.quality.photographs packages/ photographs/

The photographs named below were selected by eye, from Debian 12, scikit-image 0.26 and scikit-learn 1.9: drawings,
renderings, close-ups of text and second views of a scene are left out. A missing file is reported and left out. Author
and licence of each are in the copyright file of its package (GPL, CC-BY, CC-BY-SA, CC0, Apache, BSD); none of the files
are redistributed here.

For each tile, a photograph is shrunk until its shorter side has 96 to 256 pixels, or as many as it has, and a piece of
one of the sizes is cut out of it. A third of the photographs, by a hash of their names, are for test.
"""

import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import options_of
from modalities.image.data.pictures import open_picture, stretched
from modalities.shared import save_png
from modalities.shared.hash_split import draw

PHOTOGRAPHS = {
    "usr/share/backgrounds/mate/nature/{}.jpg": """
        Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower""",
    "usr/share/backgrounds/{}.jpg": """
        Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace
        Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich
        friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi
        picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi""",
    "usr/share/wallpapers/{}/contents/images/2560x1600.jpg": """
        BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path
        summer_1am""",
    "usr/share/doc/opencv-doc/examples/{}": """
        alphamat/input_images/plant.jpg data/aero1.jpg data/aloeL.jpg data/apple.jpg data/baboon.jpg data/board.jpg
        data/building.jpg data/butterfly.jpg data/chicky_512.png data/ela_original.jpg data/fruits.jpg data/graf1.png
        data/home.jpg data/leuvenA.jpg data/licenseplate_motion.jpg data/orange.jpg data/rubberwhale1.png
        data/squirrel_cls.jpg data/stuff.jpg hfs/data/000.jpg text/scenetext01.jpg text/scenetext02.jpg
        text/scenetext03.jpg text/scenetext04.jpg text/scenetext05.jpg text/scenetext06.jpg
        text/scenetext_segmented_word01.jpg""",
    "skimage/data/{}": "astronaut.png chelsea.png coffee.png motorcycle_left.png rocket.jpg",
    "sklearn/datasets/images/{}.jpg": "china flower",
}
SIZES = (
    (48, 48), (48, 64), (64, 48), (64, 64), (56, 72), (72, 56), (48, 80), (80, 48), (40, 96), (96, 40)
)  # fmt: skip
"""(H, W) of tiles: multiples of 8, of at most 64 x 64 pixels in all."""
SHORTER = (96, 256)
"""Pixels of the shorter side of what tiles are cut from."""


def found(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each photograph; what is not there is told."""
    for pattern, names in PHOTOGRAPHS.items():
        for name in names.split():
            file = root / pattern.format(name)
            if file.is_file():
                yield Path(name).stem.replace("_", "-"), file
            else:
                print(f"left out: {file}, no such file", file=sys.stderr)


def tile(photograph: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: a piece of a smaller copy."""
    height, width = SIZES[rng.integers(len(SIZES))]
    own = min(photograph.size)
    shorter = min(own, np.exp(rng.uniform(*np.log(SHORTER))))
    shorter = max(shorter, own * max(height / photograph.height, width / photograph.width))
    whole = stretched(
        photograph, (round(photograph.height * shorter / own), round(photograph.width * shorter / own))
    )
    top, left = (rng.integers(n - part + 1) for n, part in zip(whole.shape, (height, width), strict=False))
    return whole[top : top + height, left : left + width]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("packages", type=Path, help="the folder that they were unpacked into")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=64, help="tiles of each photograph for training")
    parser.add_argument("--test", type=int, default=6, help="tiles of each for test")
    options = parser.parse_args()
    names = dict(found(options.packages))
    if not names:
        parser.error(f"{options.packages} has none of the photographs")
    splits, _ = draw(list(names), (2 / 3, 0))
    for split, (name, file) in zip(splits, names.items(), strict=True):
        photograph: Image.Image = open_picture(file)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        folder = options.out / split
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(options.train if split == "train" else options.test):
            save_png(folder / f"{name}_view{n:02}.png", tile(photograph, rng))
    print(f"tiles of {len(names)} photographs in {options.out}: {dict(Counter(splits))}")


if __name__ == "__main__":
    main()
