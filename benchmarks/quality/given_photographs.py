"""How an image model of native sizes fills holes in held-out photographs, against baselines that need no model.

    python -m benchmarks.quality.photographs packages/ photographs/    # its help says where packages/ come from
    python -m ditmoe.train modality=image modality.native=true model.rope=true modality.data.root=photographs/ \\
      modality.data.mirror=true 'modality.size=[64,64]' modality.codec.channels=12 given=0.7 \\
      trainer.condition_dropout=0.5 trainer.steps=4000 name=photographs
    python -m benchmarks.quality.given_photographs runs/image/photographs photographs/

A hole in the middle (a quarter of the picture), one over the right half and a free-form one (three strokes of a brush
of 13 pixels) are filled, without a label. Given pixels must come out bit for bit. Measured are

    ring     step across the border of the hole, relative to the real pictures there
    detail   step between neighbouring pixels within the hole, relative to the real pictures: below 1 is blurred
    fd       squared Fréchet distance to the real pictures, of grey blocks of 8 x 8 pixels within the holes, as their 16
             longest cosines, each scaled to a deviation of 1 in the real ones: texture counts as much as shading
    PSNR     of the hole, in dB; nobody knows what should be there, so a blur scores well

with 95 % bootstrap intervals over photographs, whose tiles are drawn together. Rows:

- "mean": the mean colour of what is given
- "nearest": the training tile of that size, or its mirror image, that is nearest in what is given
- "Telea": OpenCV's classical inpainting (J. Graphics Tools 9(1), 2004), if `opencv-python-headless` is installed
- "codec": the real hole after the codec, whose PSNR no model of its latents can be expected to beat
- "replacement": the same model, not told what is given

Rows that are in --out are not drawn again.
"""

import importlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import options_of
from benchmarks.quality.given_pictures import Pictures, fill, plain, ring
from ditmoe.checkpoint import replacing
from ditmoe.config.restore import Restored, restore
from modalities.image.data.pictures import open_picture
from modalities.shared import lay_out, save_png
from modalities.shared.frechet import Statistics, distance

BLOCK = 8
"""Pixels of a side of what `fd` compares."""
WAVES = 4
"""Cosines along each axis of it: 0 to 1.5 waves in a block."""
HOLES = ("middle", "right half", "free-form")
BRUSH = 6
"""Radius of a stroke."""
Rows = dict[str, list[np.ndarray]]
"""Row of the table -> a picture (H, W, 3), or numbers, for each of the tiles."""


def holes(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Name -> where something is to be drawn, the same for all pictures of a size."""
    height, width = size
    middle, half = np.zeros(size, bool), np.zeros(size, bool)
    middle[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    half[:, width // 2 :] = True
    free = strokes(size, np.random.default_rng(size))
    return dict(zip(HOLES, (middle, half, free), strict=True))


def strokes(size: tuple[int, int], rng: np.random.Generator, num: int = 3) -> np.ndarray:
    """(H, W) where a round brush went: from a point to another and on to a third, `num` times."""
    place = np.moveaxis(np.indices(size), 0, -1)
    painted = np.zeros(size, bool)
    for _ in range(num):
        points = [rng.uniform(0, size)]
        for _ in range(2):
            points.append(points[-1] + rng.uniform(-0.4, 0.4, 2) * min(size))
        for start, end in pairwise(points):
            for share in np.linspace(0, 1, 32):
                at = start + share * (end - start)
                painted |= ((place - at) ** 2).sum(-1) <= BRUSH**2
    return painted


def through_codec(restored: Restored, real: Pictures, hole: np.ndarray) -> Pictures:
    """Real pictures whose holes went through the codec."""
    back = restored.modality.decode(restored.modality.encode(real))  # type: ignore[attr-defined]
    return np.where(hole[..., None], back, real)


def telea(real: Pictures, hole: np.ndarray) -> Pictures | None:
    """OpenCV's inpainting, None where it is not installed."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return None
    mask = hole.astype(np.uint8) * 255
    return np.stack([cv2.inpaint(picture, mask, 3, cv2.INPAINT_TELEA) for picture in real])


def detail(pictures: Pictures, hole: np.ndarray) -> np.ndarray:
    """Mean absolute step between neighbouring pixels that both lie within a hole, of each picture."""
    grey, steps = pictures.mean(-1), []
    for axis in (0, 1):
        within = np.take(hole, range(1, hole.shape[axis]), axis) & np.take(
            hole, range(hole.shape[axis] - 1), axis
        )
        steps.append(np.abs(np.diff(grey, axis=axis + 1))[:, within])
    return np.concatenate(steps, 1).mean(1)


def cosines(num: int = BLOCK) -> np.ndarray:
    """(num, num) the orthonormal cosine transform: a row is a wave."""
    waves = np.cos(np.pi * np.arange(num)[:, None] * (np.arange(num) + 0.5) / num)
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def texture(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(N, 16) the longest cosines of the grey blocks that lie in a hole, each half a block beside the last."""
    blocks = np.lib.stride_tricks.sliding_window_view
    each = (slice(None, None, BLOCK // 2),) * 2
    inside = blocks(hole, (BLOCK, BLOCK))[each].all((2, 3))
    grey, turn = blocks(picture.mean(-1), (BLOCK, BLOCK))[each][inside], cosines()[:WAVES]
    return (turn @ grey @ turn.T).reshape(len(grey), -1)


def bootstrapped(value: Callable[[np.ndarray], float], photographs: np.ndarray, draws: int = 400) -> str:
    """A value of tiles, by their numbers, with 95 % of what it is for photographs drawn with replacement."""
    groups = [np.flatnonzero(photographs == name) for name in np.unique(photographs)]
    rng = np.random.default_rng(0)
    found = [
        value(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(draws)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{value(np.arange(len(photographs))):.2f} ({low:.2f} .. {high:.2f})"


def texture_distance(made: Sequence[np.ndarray], real: Sequence[np.ndarray], tiles: np.ndarray) -> float:
    """`fd` of the textures of some tiles."""
    scale = np.concatenate(real).std(0)
    sides = (np.concatenate([of[i] for i in tiles.tolist()]) / scale for of in (made, real))
    return distance(*map(Statistics.of, sides))


def cells(made: Rows, of: Callable[[int], np.ndarray], photographs: np.ndarray, name: str) -> list[str]:
    """The numbers of a row.

    Args:
        of: the hole of a picture by its number.
    """
    if name == "real":
        return ["1", "1", "0", ""]

    def ratio(measure: Callable[[Pictures, np.ndarray], np.ndarray]) -> str:
        own, true = (
            np.array([measure(p[None], of(i))[0] for i, p in enumerate(made[row])]) for row in (name, "real")
        )
        return bootstrapped(lambda tiles: own[tiles].sum() / true[tiles].sum(), photographs)

    textures, true = ([texture(p, of(i)) for i, p in enumerate(made[row])] for row in (name, "real"))
    errors = np.array(
        [
            ((one[of(i)].astype(float) - real[of(i)]) ** 2).mean()
            for i, (one, real) in enumerate(zip(made[name], made["real"], strict=True))
        ]
    )
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-3))
    return [
        ratio(ring),
        ratio(detail),
        bootstrapped(lambda tiles: texture_distance(textures, true, tiles), photographs),
        bootstrapped(lambda tiles: float(psnr[tiles].mean()), photographs),
    ]


def read(folder: Path, tiles: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """The tiles of a folder, or the first of each photograph, and of which photograph each is."""
    files = sorted(folder.glob("*_view*.png"))
    if not files:
        raise SystemExit(f"{folder} must hold tiles, as benchmarks.quality.photographs writes them")
    names = [file.stem.rpartition("_view") for file in files]
    kept = [i for i, (_, _, number) in enumerate(names) if tiles is None or int(number) < tiles]
    return [np.asarray(open_picture(files[i])) for i in kept], np.array([names[i][0] for i in kept])


def by_size(
    make: Callable[[Pictures, np.ndarray, Pictures], Pictures | None],
    real: Sequence[np.ndarray],
    train: Sequence[np.ndarray],
    place: str,
) -> list[np.ndarray] | None:
    """What is made of pictures, of a hole and of the training pictures of a size; in the order of the pictures."""
    made: dict[int, np.ndarray] = {}
    for size in dict.fromkeys(picture.shape for picture in real):
        own = [i for i, picture in enumerate(real) if picture.shape == size]
        others = np.stack([picture for picture in train if picture.shape == size])
        drawn = make(np.stack([real[i] for i in own]), holes(size[:2])[place], others)
        if drawn is None:
            return None
        made |= dict(zip(own, drawn, strict=True))
    return [made[i] for i in range(len(real))]


def sheet(made: Rows, hole_of: Callable[[int], np.ndarray], chosen: Sequence[int], file: Path) -> None:
    """A line for each chosen tile, a column for each row of the table, in 256 colours."""
    grey = {
        "hole": [np.where(hole_of(i)[..., None], 128, p).astype(np.uint8) for i, p in enumerate(made["real"])]
    }
    columns = {"real": made["real"], **grey, **{name: of for name, of in made.items() if name != "real"}}
    side = max(max(made["real"][i].shape[:2]) for i in chosen)
    tiles, names = [], []
    for line, i in enumerate(chosen):
        for name, pictures in columns.items():
            whole = np.full((side, side, 3), 255, np.uint8)
            height, width = pictures[i].shape[:2]
            top, left = (side - height) // 2, (side - width) // 2
            whole[top : top + height, left : left + width] = pictures[i]
            tiles.append(whole)
            names.append("" if line else name.removeprefix("given, "))
    laid = Image.fromarray(lay_out(tiles, names, columns=len(columns)))
    save_png(file, np.asarray(laid.quantize(256).convert("RGB")))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pictures", type=Path, help="the folder that benchmarks.quality.photographs wrote")
    parser.add_argument("--tiles", type=int, help="of each photograph; all by default")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", choices=HOLES, default=HOLES, help="some of the holes")
    parser.add_argument("--out", type=Path, help="a folder for what is drawn; the run's by default")
    options = parser.parse_args()
    restored = restore(options.checkpoint)
    real, photographs = read(options.pictures / "test", options.tiles)
    train, _ = read(options.pictures / "train")
    train = [*train, *(picture[:, ::-1] for picture in train)]
    out = options.out or restored.folder / "given"
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(real)} tiles of {len(set(photographs))} photographs")
    print("| hole | row | ring | detail | fd | PSNR |\n|---|---|---|---|---|---|")

    def model(trained: float, guidance: float) -> Callable[[Pictures, np.ndarray, Pictures], Pictures]:
        return lambda some, hole, _: fill(restored, some, hole, trained, guidance, options.steps)

    drawn: dict[str, Callable[[Pictures, np.ndarray, Pictures], Pictures | None]] = {
        "real": lambda some, hole, others: some,
        "mean": lambda some, hole, others: plain(some, others, hole)["mean"],
        "nearest": lambda some, hole, others: plain(some, others, hole)["nearest"],
        "Telea": lambda some, hole, others: telea(some, hole),
        "codec": lambda some, hole, others: through_codec(restored, some, hole),
        "replacement": model(0.0, 1.0),
        "given": model(1.0, 1.0),
        f"given, guidance {options.guidance:g}": model(1.0, options.guidance),
    }
    for place in options.only:
        made: Rows = {}
        for name, make in drawn.items():
            kept = out / f"{place} {name}.npz".replace(" ", "-").replace(",", "")
            if kept.exists():
                with np.load(kept) as arrays:
                    made[name] = [arrays[f"arr_{i}"] for i in range(len(real))]
            elif (found := by_size(make, real, train, place)) is not None:
                made[name] = found
                with replacing(kept) as stream:
                    np.savez_compressed(stream, *found)

        def hole_of(number: int, place: str = place) -> np.ndarray:
            return holes(real[number].shape[:2])[place]

        for name in made:
            print(f"| {place} | {name} | {' | '.join(cells(made, hole_of, photographs, name))} |", flush=True)
        firsts = np.unique(photographs, return_index=True)[1]
        sheet(made, hole_of, firsts[:8].tolist(), out / f"{place}.png".replace(" ", "-"))


if __name__ == "__main__":
    main()
