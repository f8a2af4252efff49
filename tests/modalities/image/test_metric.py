"""Reports on sets of images, and on files in the place of the real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditmoe.modality import Samples
from modalities.image import evaluate_images
from modalities.image.metrics import features, inception_weights
from tests.modalities.image.sets import images


def test_a_report_of_pixels() -> None:
    real, train = images(120, 1), images(200, 2)
    good = evaluate_images(images(100, 3), real, train, progress=False)
    bad = evaluate_images(images(100, 3, noise=80), real, train, progress=False)
    assert set(good.values) == {
        *("fd/pixels", "mmd/pixels", "precision/pixels", "recall/pixels", "classes/agreement")
    }
    assert set(good.rows["floor"]) == set(good.rows["oracle"]) == set(good.values)
    assert good.values["fd/pixels"] < bad.values["fd/pixels"]
    assert good.values["classes/agreement"] == 1
    low, high = bad.intervals["fd/pixels"]
    assert low < bad.values["fd/pixels"] < high
    assert low > bad.rows["floor"]["fd/pixels"]
    assert any("above the floor" in note for note in bad.notes)
    assert good.protocol["floor"] == "60 real images against 60"
    assert good.protocol["generated"] == "100 images of 16 x 16"
    assert not any("fid" in name for name in good.values)
    assert any("fewer than the 192 features" in note for note in good.notes)


def test_bias_is_taken_off_where_it_is_known() -> None:
    report = evaluate_images(images(400, 0), images(400, 1), progress=False)
    assert abs(report.rows["corrected"]["fd/pixels"]) < 0.3 * report.values["fd/pixels"]
    assert any("is bias of the small sets" in note for note in report.notes)
    assert "corrected" not in evaluate_images(images(40, 0), images(400, 1), progress=False).rows


def test_class_control_is_measured() -> None:
    real, wrong = images(60, 1), images(60, 2)
    wrong = Samples(wrong.data, (np.asarray(wrong.labels) + 1) % 3)
    assert evaluate_images(wrong, real, progress=False).values["classes/agreement"] == 0
    assert "classes/agreement" not in evaluate_images(wrong.data, real, progress=False).values


def test_copies_are_told() -> None:
    real, train = images(20, 1), images(20, 2)
    same = evaluate_images(real, real, progress=False)
    assert same.values["fd/pixels"] == pytest.approx(0, abs=1e-6)
    assert same.notes[0].startswith("every generated image is an exact copy of a reference image")
    mixed = Samples(np.concatenate([train.data[:3], real.data[:2], images(9, 3).data]))
    leaky = Samples(np.concatenate([real.data, train.data[:1]]))
    notes = evaluate_images(mixed, leaky, train, progress=False).notes
    assert "3 generated images are exact copies of reference images" in notes
    assert "3 generated images are exact copies of training images: memorised" in notes
    assert "1 reference images are exact copies of training images: not held out" in notes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((4, 8, 8, 3)), r"uint8 RGB \(S, H, W, 3\), got float64"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), "got float32"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"got uint8 of shape \(4, 3, 8, 8\)"),
        (np.zeros((4, 8, 8), np.uint8), r"of shape \(4, 8, 8\)"),
        (np.zeros((4, 0, 8, 3), np.uint8), r"of shape \(4, 0, 8, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "at least 2 images, got 1"),
    ],
)
def test_bad_images_are_refused(data: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=f"generated must .*{said}"):
        evaluate_images(data, images(4), progress=False)
    with pytest.raises(ValueError, match=f"reference must .*{said}"):
        evaluate_images(images(4), data, progress=False)


def test_a_single_real_image_is_not_blamed_on_what_was_drawn_for_it() -> None:
    with pytest.raises(ValueError, match="reference must hold at least 2 images, got 1"):
        evaluate_images(images(4).data[:1], images(4).data[:1], progress=False)


def test_bad_options_are_refused() -> None:
    with pytest.raises(
        ValueError, match="features must be one of pixels, efficientnet-lite0, inception, got vgg"
    ):
        features.make("vgg")
    with pytest.raises(ValueError, match="protocol must be one of adm, clean, pytorch-fid, got tf"):
        features.make("inception", "tf")
    with pytest.raises(ValueError, match="a label per image, got 3 for 4"):
        evaluate_images(Samples(images(4).data, np.zeros(3, int)), images(4))


@pytest.mark.parametrize("num", [2, 3, 4])
def test_very_few_images_are_measured_and_told(num: int) -> None:
    report = evaluate_images(images(num, 0), images(num, 1), progress=False)
    assert report.values["fd/pixels"] > 0
    assert all(np.isfinite(list(report.values.values())))
    if num < 4:
        assert "precision/pixels" not in report.values


def write(file: Path, **arrays: np.ndarray) -> Path:
    np.savez(file, **arrays)
    return file


def test_reference_files(tmp_path: Path) -> None:
    generated, real = images(30, 0, size=20), images(40, 1)
    whole = evaluate_images(generated, Samples(real.data), progress=False)
    rng = np.random.default_rng(0)
    inception = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    from_images = evaluate_images(generated, write(tmp_path / "a.npz", arr_0=real.data), progress=False)
    assert from_images.values == whole.values
    unused = evaluate_images(
        generated, write(tmp_path / "b.npz", arr_0=real.data, **inception), progress=False
    )
    assert unused.values == whole.values
    assert any("sharpness alone" in note for note in whole.notes)
    evaluate_images(generated, Samples(real.data), cache=tmp_path / "cache", progress=False)
    (file,) = (tmp_path / "cache").iterdir()  # holds mu and sigma, and is a reference by itself
    statistics = evaluate_images(generated, file, progress=False)
    assert statistics.values == {"fd/pixels": pytest.approx(whole.values["fd/pixels"])}
    assert any("no floor" in note for note in statistics.notes)
    low, high = statistics.intervals["fd/pixels"]
    assert high - low < np.subtract(*whole.intervals["fd/pixels"][::-1])
    for arrays, said in (
        (
            {"mu": np.zeros(4), "images": rng.random(3)},
            r"must hold mu and sigma \(.*\), or arr_0, but has mu, images",
        ),
        (inception, "2048 features and no images, but these features are 192"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"must hold mu \(F,\) and sigma \(F, F\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "finite"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma must be a covariance, got negative variances"),
        (
            {"mu": np.zeros(2), "sigma": np.array([[1, 3], [3, 1]])},
            r"covariance, got .* correlations beyond 1",
        ),
        (
            {"mu": np.zeros(2), "sigma": np.array([[1, 0.9], [0, 1]])},
            "covariance, got one that is not symmetric",
        ),
        ({"mu": np.full(2, 1e200), "sigma": np.eye(2)}, r"must lie below 1e\+18, got 1e\+200"),
        ({"arr_0": rng.random((3, 4, 4, 3))}, "arr_0 of .* must be uint8 RGB"),
        ({"arr_0": np.array([None])}, "is no npz, or is damaged"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate_images(generated, write(tmp_path / "c.npz", **arrays), progress=False)
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="is no npz, or is damaged"):
        evaluate_images(generated, str(tmp_path / "c.npz"))
    with pytest.raises(ValueError, match="does not exist"):
        evaluate_images(generated, tmp_path / "d.npz")


def test_real_images_are_looked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def run(batch: np.ndarray) -> dict[str, Tensor]:
        seen.append(len(batch))
        return features.pixels(batch)

    extractor = features.Extractor("pixels", "fd/pixels", "mmd/pixels", {"features": "test"}, run)
    data = images(10).data
    first = features.extract(extractor, data, tmp_path, batch=4)
    again = features.extract(extractor, data, tmp_path)
    assert seen == [4, 4, 2]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = data.copy()
    other[3, 2, 1, 0] ^= 1
    features.extract(extractor, other, tmp_path)
    assert seen == [4, 4, 2, 10]  # one bit is another set
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:99])
    features.extract(extractor, data, tmp_path)
    assert seen[4:] == [10]
    assert "damaged and computed anew" in capsys.readouterr().err


class Small(torch.nn.Module):
    """Three outputs as Inception's, of few features, for what is done with them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse = torch.nn.functional.avg_pool2d(x, 149).flatten(1)  # 2 x 2 places of 3 colours
        return coarse, coarse[:, :7].square(), coarse[:, :4].softmax(dim=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception_weights, "load", lambda weights: (Small(), "0" * 64))


@pytest.mark.usefixtures("small")
def test_names_by_the_protocol_of_adm(tmp_path: Path) -> None:
    real, generated = images(30, 1), images(25, 0)
    report = evaluate_images(generated, real, features="inception", cache=tmp_path, progress=False)
    assert set(report.values) == {
        "fid/adm",
        "sfid/adm",
        "kid/adm",
        "is",
        "precision",
        "recall",
        "classes/agreement",
    }
    assert set(report.values) == set(report.rows["floor"])
    assert set(report.rows["corrected"]) == {"fid/adm", "sfid/adm"}
    assert set(report.values) - set(report.intervals) == {"is"}  # of a single split
    for words in (
        "not byte for byte the published",
        "take 50,000 generated images, not 25",
        "is is low for want",
    ):
        assert any(words in note for note in report.notes)
    (file,) = tmp_path.iterdir()
    with np.load(file) as stored:
        adm = {name: stored[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    assert adm["mu_s"].shape == (7,)
    whole = write(tmp_path / "adm.npz", arr_0=real.data, **adm)
    again = evaluate_images(generated, whole, features="inception", progress=False).values
    assert again == {name: pytest.approx(report.values[name]) for name in again}
    assert set(again) == set(report.values) - {"classes/agreement"}
    del adm["mu_s"]
    less = evaluate_images(
        generated, write(tmp_path / "less.npz", **adm), features="inception", progress=False
    )
    assert set(less.values) == {"fid/adm", "is"}
    assert any("no sFID" in note for note in less.notes)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("protocol", ["clean", "pytorch-fid"])
def test_names_by_other_protocols(protocol: str, tmp_path: Path) -> None:
    real = images(8, 1).data
    report = evaluate_images(images(9, 0), real, features="inception", protocol=protocol, progress=False)
    assert set(report.values) == {f"{name}/{protocol}" for name in ("fid", "kid", "precision", "recall")}
    assert report.protocol["resize"] == protocol
    file = write(tmp_path / "a.npz", mu=np.zeros(12), sigma=np.eye(12))
    report = evaluate_images(images(9, 0), file, features="inception", protocol=protocol, progress=False)
    assert any("another resize moves FID by itself" in note for note in report.notes)
