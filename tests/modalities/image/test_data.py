"""Pictures: files of any kind and layout, batches that are functions of their address, latents that stay on disk."""

import io
import itertools
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.image import Pictures
from modalities.image.data.picture_sets import read_set
from modalities.image.data.pictures import fitted, open_picture, read_pictures, size_of
from modalities.latent.codec import to_bytes, to_pixels
from modalities.latent.given import read_picture
from modalities.shared import digits
from modalities.video.io.reader import read_clip

RED = (250, 20, 30)


def picture(color: tuple[int, ...] = RED, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, color)


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def folder(root: Path, classes: int = 2, each: int = 6, prefix: str = "") -> Path:
    """Pictures of one colour each, so that a batch says which it took."""
    for label in range(classes):
        place = root / prefix / f"class{label}"
        place.mkdir(parents=True)
        for i in range(each):
            picture((100 * label, 10 * i, 0), (9, 9)).save(place / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture(), RED),
        (picture(77, mode="L"), (77, 77, 77)),
        (Image.fromarray(np.full((8, 12), 77 * 257, np.uint16)), (77, 77, 77)),
        (picture().convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (picture((*RED, 0), mode="RGBA"), (255, 255, 255)),
        (picture((*RED, 255), mode="RGBA"), RED),
        (picture((0, 128), mode="LA"), (127, 127, 127)),
        (picture(1, mode="1"), (255, 255, 255)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(image: Image.Image, expected: tuple) -> None:
    read = np.asarray(open_picture(io.BytesIO(encoded(image))))
    assert read.shape == (8, 12, 3)
    assert np.abs(read.astype(int) - expected).max() <= 1


def test_a_turned_picture_is_upright() -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6).repeat(3).reshape(4, 6, 3) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to view
    read = open_picture(io.BytesIO(encoded(image, exif=exif)))
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("told", range(1, 9))
def test_the_size_of_a_header_is_that_of_the_picture(ending: str, told: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = told
    Image.new("RGB", (24, 8)).save(path := tmp_path / f"a.{ending}", exif=exif)
    height, width = size_of(path)
    assert (width, height) == open_picture(path).size == ((24, 8) if told < 5 else (8, 24))


@pytest.mark.parametrize(
    "other",
    [
        struct.pack("<HHII", 0x0100, 7, 1, 5),  # a width of no number, which Pillow cannot write again
        struct.pack("<HHII", 0x011A, 2, 1, 5),
        struct.pack("<HHII", 0x8769, 4, 1, 2**32 - 1),  # a table before the file's beginning
    ],
)
def test_other_tags_of_a_turned_picture_may_be_damaged(other: bytes, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    tags = struct.pack("<H", 2) + struct.pack("<HHII", 0x0112, 3, 1, 6) + other + bytes(4)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags
    (tmp_path / "frames").mkdir()
    path = tmp_path / "frames" / "a.webp"
    image.save(path, lossless=True, exif=exif)
    wanted = np.rot90(np.asarray(image), -1)
    assert np.array_equal(np.asarray(open_picture(path)), wanted)
    assert np.array_equal(read_picture(path), wanted)
    assert np.array_equal(read_clip(path.parent, 0, 1)[0], wanted)
    assert size_of(path) == (6, 4)


def test_damaged_exif_data_turns_nothing() -> None:
    image = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    read = open_picture(io.BytesIO(encoded(image, exif=b"Exif\0\0garbage")))
    assert np.array_equal(np.asarray(read), np.asarray(image))


def test_what_is_no_picture_ends_in_one_line_that_names_it(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "jpeg")
    bad = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.jpg": whole[: len(whole) // 2],
        "head.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^[^\n]*{name} is no readable picture: [^\n]+$"):
            open_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC is not read, convert it to PNG or JPEG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not read, convert it to PNG or JPEG"),
        (b"\xff\x0a", "JPEG XL is not read, convert it to PNG or JPEG"),
        (b"", "it is empty"),
    ],
)
def test_kinds_that_people_have_and_nobody_reads_are_called_by_their_names(
    head: bytes, said: str, tmp_path: Path
) -> None:
    for name in ("a.heic", "a.jpg"):  # phones and messengers rename them
        (tmp_path / name).write_bytes(head + bytes(64) if head else b"")
        with pytest.raises(ValueError, match=rf"^\S*{name} is no readable picture: {said}$"):
            open_picture(tmp_path / name)


@pytest.mark.parametrize("kind", ["png", "jpeg", "progressive", "ppm", "webp"])
def test_a_picture_that_breaks_off_is_refused_or_kept_as_far_as_it_decodes(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(50, 200, (20, 15, 3), np.uint8)).resize((60, 80))
    as_kind = {"progressive": "jpeg"}.get(kind, kind)
    whole = encoded(image, as_kind, **({"progressive": True} if kind == "progressive" else {}))
    for i, share in enumerate((1, 0.7, 0.05)):
        (tmp_path / f"{i}.{as_kind}").write_bytes(whole[: int(len(whole) * share)])
    for damaged in ("refuse", "keep"):
        data = Pictures((8, 8), tmp_path, damaged=damaged)
        each = {picture.name: picture for picture in itertools.chain(*data._listing.pictures.values())}
        pictures = [each[name] for name in sorted(each)]
        sizes = [data.own_size(picture) for picture in pictures]
        read = [data.read(picture) is not None for picture in pictures]
        some = damaged == "keep" and kind in ("png", "jpeg", "progressive", "ppm")
        assert read == [True, some, False]
        assert len(data.kept) == some
        if some and kind != "progressive":
            assert sizes[1] is not None
            assert 20 <= sizes[1][0] < 80
            kept: list[str] = []
            rows = np.asarray(open_picture(tmp_path / f"1.{as_kind}", keep=kept.append))
            assert kept == [f"{len(rows)} of 80 rows"]
            truth = np.asarray(open_picture(tmp_path / f"0.{as_kind}"))[: len(rows)]
            # Chroma at the edge.
            assert np.abs(rows.astype(int) - truth).max() <= (60 if kind == "jpeg" else 0)
    with pytest.raises(ValueError, match=r"^damaged must be refuse or keep, got all$"):
        Pictures((8, 8), tmp_path, damaged="all")


def test_a_limit_on_pixels_is_the_callers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own, which is the whole process's, neither counts nor changes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (40, 30))))
    assert open_picture(tmp_path / "a.png", max_pixels=1200).size == (40, 30)
    with pytest.raises(ValueError, match="at most 1199 pixels, got 40 x 30"):
        open_picture(tmp_path / "a.png", max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (32, 16), (100, 40)])
def test_a_fitted_picture_covers_its_size_and_keeps_the_middle(size: tuple[int, int]) -> None:
    for shape in ((8, 8), (40, 13), (13, 40), (200, 90)):
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        out = fitted(
            Image.fromarray(np.stack([127 + 120 * x, 127 + 120 * y, 0 * x], -1).astype(np.uint8)), size
        )
        assert out.shape == (*size, 3)
        middle = out.astype(float).mean(axis=(0, 1))  # a pixel is cut off on one side where they are odd
        assert np.abs(middle[:2] - 127).max() < 130 / min(*shape, *size)
    assert np.array_equal(fitted(picture(size=size[::-1]), size), np.asarray(picture(size=size[::-1])))


def test_layouts_say_the_same(tmp_path: Path) -> None:
    """Class folders, the same below train/, and the same in a tar."""
    plain, below = folder(tmp_path / "plain"), folder(tmp_path / "below", prefix="train")
    folder(below, each=1, prefix="val")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for file in sorted(plain.rglob("*.png")):
            label = int(file.parent.name[-1])
            for ending, content in (("png", file.read_bytes()), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{label}{file.stem}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    found = {}
    for root in (below, shards):
        images, labels = Pictures((9, 9), root).batch(12, seed=3, step=0)
        found[root.name] = images, labels
        assert np.array_equal(images[:, 0, 0, 0], 100 * labels)
        assert len(np.unique(images[:, 0, 0], axis=0)) == 12  # an epoch has every picture once
    assert np.array_equal(found["below"][0], found["shards"][0])
    assert Pictures((9, 9), below).classes == ["class0", "class1"]
    assert len(Pictures((9, 9), below).split("test")) == 2  # val serves as both
    many = folder(tmp_path / "many", each=300)
    parts = [Pictures((9, 9), many).split(s) for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == 600
    assert 0.85 < len(parts[0]) / 600 < 0.95
    assert not {p.name for p in parts[0]} & {p.name for p in parts[2]}


def test_labels_of_json_and_names_of_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(30):
            for ending, content in (
                ("jpg", encoded(picture(), "jpeg")),
                ("json", json.dumps({"label": i % 3}).encode()),
            ):
                entry = tarfile.TarInfo(f"{i:03d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    data = Pictures((8, 8), tmp_path)
    assert data.classes == ["0", "1", "2"]
    assert {p.label for p in data.split("train")} == {0, 1, 2}
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"classes.txt must name 3 classes, got 2"):
        Pictures((8, 8), tmp_path).classes  # noqa: B018
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700] + b"junk" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is no readable tar"):
        Pictures((8, 8), tmp_path).classes  # noqa: B018


def test_a_batch_is_a_function_of_its_address(tmp_path: Path) -> None:
    root = folder(tmp_path, each=10, prefix="train")
    one, other = (Pictures((9, 9), root, mirror=True) for _ in range(2))
    whole = one.batch(12, seed=1, step=1)
    other.batch(12, seed=1, step=0)
    assert all(np.array_equal(a, b) for a, b in zip(whole, other.batch(12, seed=1, step=1), strict=True))
    halves = [other.batch(6, seed=1, step=1, rank=rank, world=2) for rank in range(2)]
    assert np.array_equal(np.concatenate([half[0] for half in halves]), whole[0])
    assert not np.array_equal(one.batch(12, seed=2, step=1)[0], whole[0])


def test_unreadable_pictures_give_way_and_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = folder(tmp_path, each=6, prefix="train")
    (root / "train/class1/3.png").write_bytes(b"broken")
    data = Pictures((9, 9), root)
    for step in range(3):
        images, labels = data.batch(12, seed=0, step=step)
        assert np.array_equal(images[:, 0, 0, 0], 100 * labels)
        assert 30 not in images[labels == 1][:, 0, 0, 1]
    assert list(data.unreadable) == ["train/class1/3.png"]
    assert capsys.readouterr().err.count("skipped unreadable picture") == 1
    assert len(data.reference("train")) == 11
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"must hold readable pictures, got 6 others: [^:]*0\.png is no"):
        Pictures((9, 9), root).batch(1, seed=0, step=0)


def test_an_empty_or_missing_root_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold pictures"):
        Pictures((8, 8), tmp_path).classes  # noqa: B018
    with pytest.raises(ValueError, match="must be a folder"):
        Pictures((8, 8), tmp_path / "nowhere").classes  # noqa: B018


def test_the_built_in_digits_are_split_without_overlap_and_centred() -> None:
    splits = [digits.digits(split)[0] for split in digits.SPLITS]
    assert sum(map(len, splits)) == 1797
    assert all(set(digits.digits(split)[1].tolist()) == set(range(10)) for split in digits.SPLITS)
    images, labels = Pictures((40, 56)).batch(4, seed=0, step=0)
    assert images.shape == (4, 40, 56, 3)
    assert images[:, :5].max() == images[:, :, :13].max() == 0
    assert images.max(axis=(1, 2, 3)).min() > 200
    assert labels.dtype == np.int64
    with pytest.raises(ValueError, match="size must be at least 8"):
        Pictures((6, 6)).classes  # noqa: B018


def test_pixels_and_numbers_are_the_same() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    assert np.array_equal(to_bytes(to_pixels(images)), images)


def test_a_set_to_be_measured_has_one_size(tmp_path: Path) -> None:
    for i in range(3):
        picture(size=(8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    images, names, unreadable = read_pictures(tmp_path)
    assert (len(images), names, len(unreadable)) == (3, ["0.png", "1.png", "2.png"], 1)
    picture(size=(9, 8)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"one size, got 0.png of 8 x 8 and 3.png of 9 x 8"):
        read_pictures(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [np.array(["a"] * 4), np.full(4, np.nan), np.full(4, 0.5), np.full(4, np.inf), np.zeros((4, 4)), np.zeros(3),
     np.array(0), np.full(4, 2**63, np.uint64), np.zeros(4, bool)],
)  # fmt: skip
def test_labels_of_a_set_are_a_whole_number_for_each(labels: np.ndarray, tmp_path: Path) -> None:
    """NaN became -9223372036854775808."""
    arrays = {"arr_0": np.zeros((4, 8, 8, 3), np.uint8), "arr_1": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="arr_1 must be 4 whole numbers, got"):
        read_set(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**arrays, "arr_1": np.arange(4, dtype=np.float32)})
    assert read_set(tmp_path / "a.npz").labels.tolist() == [0, 1, 2, 3]
