"""IDX files, as MNIST is published: what was written is read, and what contradicts itself is refused in one line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from modalities.image.data import Pictures
from modalities.image.data.idx import read_idx


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, split: str, count: int, ending: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Random pictures of 6 x 5 and labels from 0 to 2."""
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 6, 5), np.uint8)
    labels = (np.arange(count) % 3).astype(np.uint8)
    for name, values in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
        content = idx(values)
        (folder / f"{name}{ending}").write_bytes(gzip.compress(content) if ending else content)
    return images, labels


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_pictures_and_labels_that_were_written(tmp_path: Path, ending: str) -> None:
    images, labels = write(tmp_path, "train", 24, ending)
    of_test, _ = write(tmp_path, "t10k", 3, ending)
    data = Pictures((6, 5), tmp_path)
    assert data.classes == ["0", "1", "2"]
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [22, 2, 3]
    read = [data.read(picture) for name in ("train", "val") for picture in data.split(name)]
    assert np.array_equal(np.stack(read), np.repeat(images[..., None], 3, -1))
    assert [p.label for name in ("train", "val") for p in data.split(name)] == labels.tolist()
    assert np.array_equal(data.reference("test").data[..., 0], of_test)
    assert data.own_sizes()[0][1] == (6, 5)
    assert "val is the last twelfth of train" in str(data.understood())


def test_names_of_classes_and_one_set_at_a_time(tmp_path: Path) -> None:
    one, other = tmp_path / "MNIST" / "raw", tmp_path / "KMNIST" / "raw"
    for folder in (one, other):
        folder.mkdir(parents=True)
        write(folder, "train", 12)
        write(folder, "train", 12, ".gz")  # as it was loaded, beside what became of it
    (one / "classes.txt").write_text("shirt\nshoe\nbag\n")
    data = Pictures((6, 5), one.parent)
    assert data.classes == ["shirt", "shoe", "bag"]
    assert "there twice" in str(data.understood())
    with pytest.raises(ValueError, match=r"^[^\n]*of one data set, got KMNIST/raw/\*, MNIST/raw/\*[^\n]*$"):
        Pictures((6, 5), tmp_path).understood()


WHOLE = idx(np.zeros((4, 3, 3), np.uint8))
BROKEN = {
    "cut": (WHOLE[:-1], "has 36 values, and"),
    "longer": (WHOLE + b"x", "has 36 values, and has more"),
    "no head": (WHOLE[:9], "must begin with 00 00 08 03"),
    "of floats": (b"\0\0\x0d\3" + WHOLE[4:], "got 00 00 0d 03"),
    "promises": (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "values, and can have"),
    "empty": (b"", "must begin"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_file_is_told_in_one_line(tmp_path: Path, kind: str, packed: bool) -> None:
    content, expected = BROKEN[kind]
    path = tmp_path / f"a{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(
        ValueError, match=rf"^[^\n]*a(\.gz)? must be a whole IDX file: [^\n]*{expected}[^\n]*$"
    ):
        read_idx(path, 3)


def test_what_is_small_only_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "many.gz").write_bytes(gzip.compress(idx(np.zeros((300_000, 1, 1), np.uint8))))
    with pytest.raises(ValueError, match="16 bytes of its file for each sample, got 300000"):
        read_idx(tmp_path / "many.gz", 3)
    (tmp_path / "large.gz").write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 20, 6700, 6700)))
    with pytest.raises(ValueError, match="says that it has 897800000 values, and can have 134217728 at most"):
        read_idx(tmp_path / "large.gz", 3)
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx(np.zeros(60_000, np.uint8))))
    assert len(read_idx(tmp_path / "labels.gz", 1)) == 60_000  # of one class


def test_what_is_cut_while_it_is_packed_and_what_lacks_its_partner(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(WHOLE)[:-10])
    with pytest.raises(ValueError, match=r"a\.gz must be a whole IDX file"):
        read_idx(tmp_path / "a.gz", 3)
    write(tmp_path, "train", 12)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(ValueError, match="a label of each of 12 pictures, got 11"):
        Pictures((6, 5), tmp_path).understood()
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="must have its labels beside it"):
        Pictures((6, 5), tmp_path).understood()
