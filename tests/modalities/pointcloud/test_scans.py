"""HDF5, LAS, LAZ and E57, where the extra `scans` is installed."""

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud.data import scans
from modalities.pointcloud.data.channels import Channels
from modalities.pointcloud.data.formats import read_points, read_set, read_surface
from modalities.pointcloud.data.labelled_sets import classes_within
from modalities.pointcloud.data.prepare import prepare

COLOURED = Channels(("xyz", "rgb"))
BYTES = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(np.uint8)
POINTS = np.random.default_rng(0).random((50, 3)).round(3)
FAR = np.array([694386, 5155487, 381])


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "find_spec", lambda name: None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(ValueError, match=r"a\.las: \.las needs laspy: pip install 'ditmoe\[scans\]'"):
        read_surface(tmp_path / "a.las", 10, 0)


@pytest.mark.parametrize("chunks", [None, (1, 50, 3), (2, 50, 3), (3, 7, 2)])
def test_each_chunk_of_a_set_is_read_once(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    clouds = np.stack([POINTS + number for number in range(5)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=clouds, chunks=chunks)
    scans._chunks.cache_clear()
    for number in (0, 1, 2, 3, 4, 4):
        found = scans.read_scan(tmp_path / "a.h5", item=number).points
        np.testing.assert_array_equal(found, clouds[number])
        found[:] = 0  # which changes no other cloud
    assert scans._chunks.cache_info().misses == (0 if chunks is None else -(-5 // chunks[0]))


def test_a_set_of_modelnet_is_read_and_no_other_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([POINTS, POINTS + 1])
    np.testing.assert_array_equal(read_set(tmp_path / "a.h5").data, np.float32([POINTS, POINTS + 1]))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = h5py.ExternalLink("a.h5", "data")
    with pytest.raises(ValueError, match="must not name other files"):
        read_set(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("data", (10**9, 3), "f4", chunks=(1000, 3))
    with pytest.raises(ValueError, match="must hold the 3000000000 numbers"):
        read_set(tmp_path / "c.h5")


def test_an_hdf5_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    twice = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    twice.set_chunk((3, 3))
    twice.set_deflate(9)
    twice.set_deflate(9)
    places = h5py.h5s.create_simple((3, 3))
    hostile = {
        "in chunks of their size": {"dtype": "f4", "maxshape": (None, 3), "chunks": (2**26, 3)},
        "compressed once": {},
        "must hold numbers": {"dtype": np.dtype("V100000000")},
    }
    for number, (line, how) in enumerate(hostile.items()):
        with h5py.File(file := tmp_path / f"{number}.h5", "w") as stream:
            if how:
                stream.create_dataset("data", (3, 3), **{"compression": "gzip", **how})
            else:
                h5py.h5d.create(stream.id, b"data", h5py.h5t.IEEE_F64LE, places, twice)
        with pytest.raises(ValueError, match=line):
            read_set(file)


@pytest.mark.parametrize(
    "how", [{}, {"fillvalue": 1.0}, {"chunks": (1, 1)}, {"chunks": (9, 3), "compression": "gzip"}]
)
def test_an_hdf5_of_what_was_never_written_is_refused(how: dict, tmp_path: Path) -> None:
    """It would read as so many zeros, and fill the memory with a chunk for each."""
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (4_000_000, 3), "f4", **how)
    with pytest.raises(
        ValueError, match="must hold all of its data, got one of which parts were never written"
    ):
        read_set(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", data=np.repeat(POINTS, 2, axis=0), **how)
    assert read_set(tmp_path / "b.h5").data.shape == (1, 100, 3)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("how", [{}, {"shuffle": True}, {"fletcher32": True, "shuffle": True}])
def test_chunks_are_read_however_they_are_filtered(
    how: dict, compression: str | None, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    values = np.stack([POINTS, POINTS.round(), np.zeros_like(POINTS)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(2, 40, 3), compression=compression, **how)
    np.testing.assert_array_equal(read_set(tmp_path / "a.h5").data, np.float32(values))


@pytest.mark.parametrize(
    ("chunk", "compression"),
    [
        (zlib.compress(bytes(12)), "gzip"),  # the rest would be uninitialised memory
        (zlib.compress(bytes(10**8)), "gzip"),
        (zlib.compress(bytes(range(240)) * 5)[:-20], "gzip"),
        (b"abc", "gzip"),
        (b"\x02abc", "lzf"),
        (b"\x00a" + b"\xe0\xff\x00" * 100, "lzf"),
        (b"\x20", "lzf"),
    ],
)
def test_a_chunk_of_another_size_is_refused(chunk: bytes, compression: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (2, 50, 3), "f4", chunks=(2, 50, 3), compression=compression)
        data.id.write_direct_chunk((0, 0, 0), chunk)
    tracemalloc.start()
    for item in (None, 1):
        with pytest.raises(ValueError, match="an HDF5 must hold whole chunks"):
            scans.read_scan(tmp_path / "a.h5", item=item)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_filters_whose_result_cannot_be_checked_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=np.zeros((2, 50, 3), int), chunks=(2, 50, 3), scaleoffset=0)
    with pytest.raises(ValueError, match="must be compressed by gzip or lzf, got its data stored otherwise"):
        read_set(tmp_path / "a.h5")


@pytest.mark.parametrize("label", [np.array([0.5, 1]), np.zeros((2, 9), int), 3, None])
def test_labels_that_are_not_read_are_told(
    label: object, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
        file["data"] = np.stack([POINTS, POINTS + 1])
        file["label"] = h5py.ExternalLink("b.h5", "label") if label is None else label
    assert prepare(tmp_path / "in", tmp_path / "out", num_points=9, workers=1)["counts"]
    line = "must not name other files" if label is None else "label must be a whole number for each cloud"
    assert f"its labels are left out: {'an HDF5 ' * (label is None)}{line}" in capfd.readouterr().err


@pytest.mark.parametrize("place", [100, 243])
def test_a_las_that_counts_records_without_end_is_refused(tmp_path: Path, place: int) -> None:
    laspy = pytest.importorskip("laspy", reason="the extra `scans` is not installed")
    las = laspy.LasData(laspy.LasHeader(point_format=7, version="1.4"))
    las.x, las.y, las.z = POINTS.T
    las.write(str(file := tmp_path / "a.las"))
    content = bytearray(file.read_bytes())
    content[place : place + 4] = b"\xff" * 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match="records that it counts"):
        read_set(file)


def test_a_laz_that_ends_its_reader_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    laspy = pytest.importorskip("laspy", reason="the extra `scans` is not installed")
    las = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    las.x, las.y, las.z = POINTS.T
    las.write(str(file := tmp_path / "a.laz"))
    content = file.read_bytes()
    start = int.from_bytes(content[96:100], "little")
    table = int.from_bytes(content[start : start + 8], "little")
    hostile = {"chunks": (table + 4, 4), "bytes of a layer": (start + 8 + 30 + 4, 4), "length": (start, 8)}
    for number, length in hostile.values():
        changed = bytearray(content)
        changed[number : number + length] = b"\xff" * length
        file.write_bytes(changed)
        with pytest.raises(
            ValueError, match=r"a\.laz: not a readable laz file \((ChildProcess|Runtime)Error: "
        ):
            read_points(file)
    assert capfd.readouterr().err == ""


def test_a_scale_that_leads_to_infinity_is_no_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    laspy = pytest.importorskip("laspy", reason="the extra `scans` is not installed")
    points = laspy.LasData(laspy.LasHeader())
    points.x, points.y, points.z = POINTS.T
    points.write(tmp_path / "a.las")
    content = bytearray((tmp_path / "a.las").read_bytes())
    content[131:139] = np.float64(1e308).tobytes()
    (tmp_path / "a.las").write_bytes(content)
    with pytest.raises(ValueError, match="points must be finite"):
        read_points(tmp_path / "a.las")
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_a_scan_keeps_its_digits(tmp_path: Path, suffix: str) -> None:
    laspy = pytest.importorskip("laspy", reason="the extra `scans` is not installed")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), FAR
    las = laspy.LasData(header)
    las.x, las.y, las.z = (POINTS + FAR).T
    las.red, las.green, las.blue = BYTES.T.astype(np.uint16) * 257
    las.write(tmp_path / f"a{suffix}")
    read = read_surface(tmp_path / f"a{suffix}", 50, 0) - FAR
    np.testing.assert_allclose(np.sort(read, axis=0), np.sort(POINTS, axis=0), atol=1e-6)
    coloured = read_points(tmp_path / f"a{suffix}", channels=COLOURED)
    np.testing.assert_allclose(coloured, np.concatenate([POINTS + FAR, BYTES / 255], axis=1), atol=1e-6)


def test_an_e57_is_one_cloud_of_all_its_scans(tmp_path: Path) -> None:
    pye57 = pytest.importorskip("pye57", reason="the extra `scans` is not installed")
    file = pye57.E57(str(tmp_path / "a.e57"), mode="w")
    for part in (slice(0, 30), slice(30, 50)):
        columns = {f"cartesian{axis}": POINTS[part, i] for i, axis in enumerate("XYZ")}
        colours = {f"color{name}": BYTES[part, i] for i, name in enumerate(("Red", "Green", "Blue"))}
        file.write_scan_raw(columns | colours, translation=FAR.astype(np.float64))
    file.close()
    read = read_points(tmp_path / "a.e57", channels=COLOURED)
    np.testing.assert_allclose(read, np.concatenate([POINTS + FAR, BYTES / 255], axis=1), atol=1e-6)
    np.testing.assert_allclose(read_points(tmp_path / "a.e57"), POINTS + FAR, atol=1e-6)
    file = pye57.E57(str(tmp_path / "plain.e57"), mode="w")
    file.write_scan_raw({f"cartesian{axis}": POINTS[:, i] for i, axis in enumerate("XYZ")})
    file.close()
    np.testing.assert_allclose(read_points(tmp_path / "plain.e57"), POINTS, atol=1e-6)
    (tmp_path / "b.e57").write_bytes((tmp_path / "a.e57").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"b\.e57: "):
        read_points(tmp_path / "b.e57")
    assert (tmp_path / "b.e57").exists()


def crc32c(page: bytes) -> bytes:
    """The checksum of a page of an E57."""
    register = 2**32 - 1
    for byte in page:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    return (register ^ 2**32 - 1).to_bytes(4, "big")


def test_an_e57_holds_the_points_that_it_counts(tmp_path: Path) -> None:
    """What is not there would be what the memory held before."""
    pye57 = pytest.importorskip("pye57", reason="the extra `scans` is not installed")
    file = pye57.E57(str(tmp_path / "a.e57"), mode="w")
    file.write_scan_raw({f"cartesian{axis}": POINTS[:, i] for i, axis in enumerate("XYZ")})
    file.close()
    content = (tmp_path / "a.e57").read_bytes()
    assert content.count(b'recordCount="50"') == 1
    content = content.replace(b'recordCount="50"', b'recordCount="99"')
    pages = [content[at : at + 1020] for at in range(0, len(content), 1024)]
    (tmp_path / "a.e57").write_bytes(b"".join(page + crc32c(page) for page in pages))
    with pytest.raises(ValueError, match="an E57 must hold the 99 points that it counts, got 50"):
        read_points(tmp_path / "a.e57")


def test_labels_and_splits_of_modelnet_are_those_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    source = tmp_path / "modelnet40_ply_hdf5_2048"
    source.mkdir()
    (source / "shape_names.txt").write_text("airplane\n../bath tub\nbed\n")
    for name, labels in {
        "ply_data_train0": [0, 1, 1],
        "ply_data_train1": [2],
        "ply_data_test0": [1, 7],
    }.items():
        with h5py.File(source / f"{name}.h5", "w") as file:
            offset = np.arange(len(labels))[:, None, None]
            file["data"] = (POINTS + offset * [[1, 2, 3]] * POINTS + len(labels)).astype(np.float32)
            file["normal"] = np.broadcast_to(np.float32([0, 1, 0]), file["data"].shape)
            file["label"] = np.array(labels, np.uint8)[:, None]
    for channels in (Channels(), Channels(("xyz", "normals"))):
        out = tmp_path / f"data{channels.width}"
        report = prepare(source, out, num_points=50, workers=1, channels=channels)
        assert report["splits"] == "from the names of 3 files"
        counts = {name: (of["train"], of["val"], of["test"]) for name, of in report["counts"].items()}
        assert counts["airplane"] == (1, 0, 0)
        assert counts["bed"] == (1, 0, 0)
        assert counts["class-07"] == (0, 0, 1)
        bath = next(name for name in counts if "bath" in name)
        assert counts[bath] == (2, 0, 1)
        assert "/" not in bath
        assert not report["ignored"]
        written = sorted(out.rglob("*.npy"))
        assert len(written) == 6
        assert {np.load(file).shape for file in written} == {(50, channels.width)}
        assert not (tmp_path / "bath tub").exists()


def classes_of(labels: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str] | None:
    """The classes of an HDF5 with these labels, also where h5py is not installed."""
    (folder / "a.h5").touch()
    monkeypatch.setattr(scans, "check_library", lambda suffix: None)
    monkeypatch.setattr(scans, "read_labels", lambda stream: np.array(labels))
    return classes_within(folder / "a.h5", len(labels))


def test_negative_labels_are_no_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert classes_of([0, -1], tmp_path, monkeypatch) is None
    told = "a.h5: its labels are left out: they must be whole numbers from 0, got -1\n"
    assert capsys.readouterr().err.endswith(told)


def test_equal_names_of_classes_would_be_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shape_names.txt").write_text("bed\ncup\nbed\n")
    with pytest.raises(
        ValueError, match=r"shape_names.txt must name each class once, got bed more than once$"
    ):
        classes_of([0, 1, 2], tmp_path, monkeypatch)
