"""The benchmark of photographs with holes: tiles of a photograph stay on one side, and numbers mean what is said."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import given_photographs, photographs
from benchmarks.quality.given_photographs import (
    bootstrapped,
    by_size,
    cells,
    cosines,
    detail,
    holes,
    read,
    sheet,
    telea,
    texture,
    texture_distance,
    through_codec,
)
from benchmarks.quality.photographs import SIZES, tile
from modalities.image.data import Pictures

NAMES = ("Aqua", "Blinds", "Dune", "Garden", "Storm", "Wood")


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def packages(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for number, name in enumerate(names):
        file = root / f"usr/share/backgrounds/mate/nature/{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((120, 150, 3), 40 * number + 10, np.uint8)).save(file, quality=95)
    return root


def lay_out(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path) -> dict[str, np.ndarray]:
    words = ["photographs", str(source), str(out), "--train", "3", "--test", "2"]
    monkeypatch.setattr(sys, "argv", words)
    photographs.main()
    return {file.relative_to(out).as_posix(): np.asarray(Image.open(file)) for file in out.rglob("*.png")}


def test_tiles_of_a_photograph_stay_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    laid = lay_out(monkeypatch, packages(tmp_path / "packages"), tmp_path / "out")
    sides = {
        split: {n.split("/")[1].split("_view")[0] for n in laid if n.startswith(split)}
        for split in ("train", "test")
    }
    assert not sides["train"] & sides["test"]
    assert sides["train"] | sides["test"] == set(NAMES)
    assert len(laid) == 3 * len(sides["train"]) + 2 * len(sides["test"])
    assert capsys.readouterr().err.count("no such file") == 71 - len(NAMES)
    for name, picture in laid.items():
        tone = 40 * NAMES.index(name.split("/")[1].split("_view")[0]) + 10
        assert np.abs(picture.astype(int) - tone).max() <= 2
    understood = str(Pictures((64, 64), tmp_path / "out").understood())
    assert f"train {3 * len(sides['train'])}, val 0, test {2 * len(sides['test'])}" in understood


def test_a_missing_photograph_changes_no_other_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lay_out(monkeypatch, packages(tmp_path / "all"), tmp_path / "whole")
    fewer = lay_out(monkeypatch, packages(tmp_path / "some", NAMES[:4]), tmp_path / "fewer")
    shared = {name.split("/")[1]: picture for name, picture in whole.items()}
    assert all(
        np.array_equal(shared[name.split("/")[1]], picture)
        for name, picture in fewer.items()
        if name.split("/")[1] in shared
    )


def test_an_empty_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        lay_out(monkeypatch, tmp_path, tmp_path / "out")
    assert end.value.code == 2
    assert "has none of the photographs" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="must hold tiles"):
        read(tmp_path)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (20, 200), (97, 96)])
def test_tiles_have_the_sizes_that_they_should(size: tuple[int, int]) -> None:
    photograph, rng = Image.fromarray(noise(*size, 3)), np.random.default_rng(0)
    found = {tile(photograph, rng).shape for _ in range(60)}
    assert found <= {(*one, 3) for one in SIZES}
    assert len(found) > 6
    assert all(h % 8 == w % 8 == 0 and h * w <= 64 * 64 for h, w in SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_holes_leave_something_given(size: tuple[int, int]) -> None:
    own = holes(size)
    assert all(0.08 < hole.mean() < 0.6 for hole in own.values())
    assert own["right half"].mean() == 0.5
    assert own["middle"].mean() == pytest.approx(0.25, abs=0.02)
    assert all(np.array_equal(hole, holes(size)[name]) for name, hole in own.items())


def test_detail_is_the_slope_within_the_hole() -> None:
    hole = holes((64, 64))["middle"]
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 64, 3))
    outside = np.where(hole[..., None], ramp, noise(64, 64, 3))
    # 3 along one axis, 0 along the other.
    assert detail(np.stack([ramp, outside]), hole) == pytest.approx([1.5, 1.5])
    assert detail(ramp[None] * 0, hole) == 0


def test_textures_are_cosines_of_blocks_within_the_hole() -> None:
    assert cosines() @ cosines().T == pytest.approx(np.eye(8))
    hole = holes((48, 80))["middle"]
    flat = texture(np.full((48, 80, 3), 10), hole)
    assert flat[:, 0] == pytest.approx(80)  # 8 x 8 pixels of 10, orthonormal
    assert flat[:, 1:] == pytest.approx(0, abs=1e-9)
    picture = noise(48, 80, 3)
    changed = np.where(hole[..., None], picture, 0)
    assert np.array_equal(texture(picture, hole), texture(changed, hole))
    assert flat.shape == (((24 - 8) // 4 + 1) * ((40 - 8) // 4 + 1), 16)


def test_the_distance_of_textures_sees_blur_and_noise() -> None:
    hole, tiles = np.ones((64, 64), bool), np.arange(6)
    smooth = [
        np.cumsum(np.cumsum(noise(64, 64, 1, seed=i) - 127.5, 0), 1).repeat(3, 2) / 40 for i in range(6)
    ]

    def far(pictures: list[np.ndarray]) -> float:
        of = [[texture(p, hole) for p in some] for some in (pictures, smooth)]
        return texture_distance(of[0], of[1], tiles)

    def blurred(picture: np.ndarray, times: int) -> np.ndarray:
        for _ in range(times):
            picture = (
                picture + np.roll(picture, 2, 0) + np.roll(picture, 2, 1) + np.roll(picture, (2, 2), (0, 1))
            ) / 4
        return picture

    assert far(smooth) < 1e-6
    assert 0.01 < far([blurred(p, 1) for p in smooth]) < far([blurred(p, 4) for p in smooth])
    assert far([p + 0.3 * noise(64, 64, 1, seed=9) for p in smooth]) > 1


def test_intervals_are_those_of_photographs() -> None:
    values, names = np.repeat([0.0, 1.0, 2.0, 3.0], 50), np.repeat(["a", "b", "c", "d"], 50)

    def told(of: np.ndarray) -> list[float]:
        return [
            float(n)
            for n in re.findall(r"[\d.]*\d", bootstrapped(lambda tiles: float(values[tiles].mean()), of))
        ]

    mean, low, high = told(names)
    assert mean == 1.5
    assert low <= 0.6
    assert high >= 2.4
    _, low, high = told(np.arange(200).astype(str))  # as if each tile were a photograph of its own
    assert 1.2 < low < high < 1.8


def test_rows_are_measured_in_the_order_of_the_pictures() -> None:
    real = [noise(*SIZES[i % 2], 3, seed=i) for i in range(4)]
    train = [picture * 0 for picture in real]
    same = by_size(lambda some, hole, others: some, real, train, "middle")
    assert same is not None
    assert all(np.array_equal(a, b) for a, b in zip(same, real, strict=True))
    assert by_size(lambda some, hole, others: None, real, train, "middle") is None

    def hole_of(number: int) -> np.ndarray:
        return holes(real[number].shape[:2])["middle"]

    filled = [np.where(hole_of(i)[..., None], picture // 2, picture) for i, picture in enumerate(real)]
    made, names = {"real": real, "half": filled}, np.array(["a", "a", "b", "b"])
    assert cells(made, hole_of, names, "real") == ["1", "1", "0", ""]
    ring, slope, fd, psnr = (float(cell.split(" ")[0]) for cell in cells(made, hole_of, names, "half"))
    assert slope == pytest.approx(0.5, abs=0.02)
    assert ring > 0
    assert fd > 1
    assert psnr == pytest.approx(10 * np.log10(4 * 3), abs=0.2)  # of x against x / 2, x even up to 255


def test_a_sheet_shows_pictures_of_many_sizes(tmp_path: Path) -> None:
    real = [noise(*size, 3) for size in SIZES]
    sheet(
        {"real": real, "given": real}, lambda i: holes(SIZES[i])["middle"], [0, 4, 8], tmp_path / "sheet.png"
    )
    assert Image.open(tmp_path / "sheet.png").width >= 3 * 96


def test_what_is_given_stays_beside_the_codec() -> None:
    real, hole = noise(2, 48, 64, 3), holes((48, 64))["free-form"]
    modality = SimpleNamespace(encode=lambda x: x, decode=lambda x: 255 - x)
    found = through_codec(cast(Any, SimpleNamespace(modality=modality)), real, hole)
    assert np.array_equal(found[:, ~hole], real[:, ~hole])
    assert np.array_equal(found[:, hole], 255 - real[:, hole])


def test_classical_inpainting_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert telea(noise(1, 48, 64, 3), holes((48, 64))["middle"]) is None
    painted = SimpleNamespace(
        INPAINT_TELEA=1, inpaint=lambda picture, mask, radius, how: np.maximum(picture, mask[..., None])
    )
    monkeypatch.setitem(sys.modules, "cv2", cast(Any, painted))
    hole = holes((48, 64))["middle"]
    found = telea(noise(1, 48, 64, 3), hole)
    assert found is not None
    assert (found[:, hole] == 255).all()


def test_every_row_is_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model that fills black."""
    for split, num in (("train", 2), ("test", 4)):
        (tmp_path / split).mkdir()
        for number in range(num):
            picture = Image.fromarray(noise(*SIZES[number % 2], 3, seed=number))
            picture.save(tmp_path / split / f"{'ab'[number // 2]}_view{number % 2:02}.png")
    modality = SimpleNamespace(encode=lambda x: x, decode=lambda x: x // 2)
    monkeypatch.setattr(
        given_photographs, "restore", lambda _: SimpleNamespace(modality=modality, folder=tmp_path)
    )
    calls = []

    def fill(restored: object, real: np.ndarray, hole: np.ndarray, *told: float) -> np.ndarray:
        calls.append(told)
        return np.where(hole[..., None], 0, real)

    monkeypatch.setattr(given_photographs, "fill", fill)
    monkeypatch.setattr(sys, "argv", ["given_photographs", "run", str(tmp_path), "--guidance", "3"])
    given_photographs.main()
    said = capsys.readouterr().out
    assert {(0.0, 1.0, 25), (1.0, 1.0, 25), (1.0, 3.0, 25)} == set(calls)
    assert said.count("| given, guidance 3 |") == 3
    assert len(list((tmp_path / "given").glob("*.png"))) == 3
    drawn = len(calls)
    given_photographs.main()
    assert len(calls) == drawn
    assert capsys.readouterr().out == said
