"""Kept results: only what was kept, as it was kept, is believed; anything else is one line and computed anew."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modalities.image.metrics import features as image_features
from modalities.pointcloud.metrics.nearest import nearest
from modalities.shared import cache
from modalities.video.metrics import features as video_features
from modalities.video.metrics.clip_sets import Side, look

FORMS: cache.Forms = {"features": ("f4", (3, "F")), "mu": ("f8", ("F",)), "sigma": ("f8", ("F", "F"))}
GOOD = {"features": np.ones((3, 5), np.float32), "mu": np.zeros(5), "sigma": np.eye(5)}
BAD = {
    "rows": {"features": np.ones((4, 5), np.float32)},
    "axes": {"features": np.ones(3, np.float32)},
    "letters": {"sigma": np.eye(6)},
    "type": {"features": np.ones((3, 5))},
    "order": {"mu": np.zeros(5, ">f8")},
    "objects": {"mu": np.array([{}] * 5)},
    "words": {"features": np.full((3, 5), "x")},
    "nan": {"mu": np.full(5, np.nan)},
    "infinite": {"features": np.full((3, 5), -np.inf, np.float32)},
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_of_its_form_is_computed_anew(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, **{**GOOD, **BAD[kind]})
    found = cache.computed(file, lambda: GOOD, FORMS)
    assert all(np.array_equal(found[name], GOOD[name]) for name in GOOD)
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged and computed anew" in line
    again = cache.computed(file, lambda: pytest.fail("it is kept now"), FORMS)
    assert all(np.array_equal(again[name], GOOD[name]) for name in GOOD)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to(os.devnull)])
def test_what_lies_in_the_way_costs_no_result(
    make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make(file := tmp_path / "a.npz")
    assert cache.computed(file, lambda: GOOD, FORMS) == GOOD
    assert f"results cannot be kept in {tmp_path}: {file} must be a plain file" in capsys.readouterr().err
    assert not file.is_file()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a letter")
    (file := tmp_path / "a.npz").symlink_to("mine")
    cache.store(file, **GOOD)
    assert (tmp_path / "mine").read_text() == "a letter"
    assert not file.is_symlink()


def test_no_byte_that_flips_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By the sums of the archive: a damaged disk changes no number."""
    cache.store(file := tmp_path / "a.npz", mu=GOOD["mu"])
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = cache.load(file, {"mu": FORMS["mu"]})
        assert found is None or np.array_equal(found["mu"], GOOD["mu"])
    assert capsys.readouterr().err.count("damaged and computed anew") > len(whole) // 2


def test_what_nobody_asked_for_is_not_read(tmp_path: Path) -> None:
    cache.store(tmp_path / "a.npz", **GOOD, more=np.array([np.nan]))
    assert set(cache.load(tmp_path / "a.npz", FORMS) or {}) == set(GOOD)


def test_the_form_is_known_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise of far more than fits costs nothing, within what a compressed file may hold too."""
    head = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**7, 3)}
    np.lib.format.write_array_header_1_0(head, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", head.getvalue() + bytes(12 * 10**7))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was read"))
    assert cache.load(tmp_path / "a.npz", {"features": ("f4", (3, "F"))}) is None


def spoilt(file: Path, **arrays: np.ndarray) -> None:
    with np.load(file) as stored:
        np.savez(file, **{**dict(stored), **arrays})


def test_features_of_pictures(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    extractor = image_features.make("pixels")
    first = image_features.extract(extractor, images, tmp_path)
    (file,) = tmp_path.iterdir()
    other = {"features": np.ones((4, 7), np.float32), "mu": np.zeros(7), "sigma": np.eye(7)}
    for lie in ({"features": first["features"][:3]}, {"sigma": np.full_like(first["sigma"], np.nan)}, other):
        spoilt(file, **lie)
        again = image_features.extract(extractor, images, tmp_path, like=first)
        assert all(np.array_equal(first[name], again[name]) for name in first)


def test_features_of_clips(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)

    side = Side(look(list(clips), [np.arange(2)] * 3, "reference"))
    calls = []

    class Extractor(video_features.Extractor):
        def __call__(self, *_: object, **__: object) -> np.ndarray:
            calls.append(1)
            return video_features.pixels(clips).numpy()

    extractor = Extractor("fd/pixels", "mmd/pixels", {"features": "test"}, video_features.pixels)
    first = video_features.extract(extractor, side, tmp_path)
    (file,) = tmp_path.iterdir()
    for lie in (first[:2], first[:, :7], np.full_like(first, np.inf)):
        spoilt(file, features=lie)
        assert np.array_equal(video_features.extract(extractor, side, tmp_path, width=384), first)
    assert len(calls) == 4


def test_distances_of_pairs_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    reference, generated = list(rng.random((4, 8, 3))), list(rng.random((5, 8, 3)))
    expected = nearest(reference, generated, workers=1, folder=tmp_path)
    files = sorted(tmp_path.iterdir())
    lies = [{"i": np.int32([99])}, {"j": np.int32([-1])}, {"level": np.int8([77])}]
    for file, lie in zip(files, lies, strict=True):
        arrays = {"i": np.int32([0]), "j": np.int32([1]), "level": np.int8([4]), "value": np.zeros(1)}
        np.savez(file, **{**arrays, **lie})
    found = nearest(reference, generated, workers=1, folder=tmp_path)
    assert found.reused == 0
    assert np.array_equal(found.rs.min(axis=1), expected.rs.min(axis=1))
    assert len(capsys.readouterr().err.splitlines()) == 3
