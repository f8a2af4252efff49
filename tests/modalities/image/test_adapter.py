"""The image modality: codecs that invert, a contract that is fulfilled, commands that a person types."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.viewers import modality_of
from ditmoe.inference import evaluate_checkpoint, evaluate_files, sample_checkpoint
from ditmoe.train import make_modality, make_trainer
from ditmoe.training.resume import resume
from ditmoe.view import view
from modalities.image import Autoencoder, Pictures
from modalities.image import Image as Adapter
from modalities.latent import Identity, PatchPCA
from modalities.latent.codec import to_pixels

TINY = [
    "modality=image", "model=debug", "modality.size=[16,24]", "modality.codec.channels=3", "trainer.batch_size=4",
    "trainer.warmup=2", "trainer.preview_every=0", "trainer.log_every=1", "trainer.steps=2", "sampling.steps=2",
    "modality.evaluation.cache=null",
]  # fmt: skip


def config(*overrides: str, command: str = "train") -> dict:
    tiny = TINY if command == "train" else []
    if any(word.startswith("codec@") for word in overrides):
        tiny = [word for word in tiny if "codec" not in word]
    return composed(command, [*tiny, *overrides])


def trained(folder: Path, *overrides: str):
    settings = config(*overrides)
    run = make_trainer(settings, build.make_modality(settings), folder)
    run.run()
    return run, settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *trained(folder)


def test_a_codec_that_overflows_is_refused_at_its_first_use() -> None:
    """Not before: a pipeline builds its transformer with a blank one, of which only shapes are asked."""
    settings = config()
    facts = build.make_modality(settings).data_facts()
    facts["codec"] = {name: torch.zeros_like(value) for name, value in facts["codec"].items()}
    modality = build.make_modality(settings, facts)
    blank = torch.zeros(1, *facts["shape"])
    assert modality.tokens(48).grid(blank)
    for use in (
        lambda: modality.encode(np.zeros((1, 16, 24, 3), np.uint8)),
        lambda: modality.decode(blank),
    ):
        with pytest.raises(ValueError, match=r"^the codec must make latents within 1e\+09 of 0, got nan"):
            use()


def some_digits(num: int = 64, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    return to_pixels(Pictures(size).batch(num, 0, 0)[0])


# --- codecs


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_principal_components_invert_and_whiten(axes: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3, *[4] * axes)
    x = x + 2 * torch.roll(x, 1, dims=-1) + torch.tensor([0.5, -1.0, 0.0]).view(1, 3, *[1] * axes)
    whole = PatchPCA([2] * axes, 3 * 2**axes)
    whole.fit(x.split(100))
    z = whole.encode(x)
    assert z.shape == (400, *whole.shape([4] * axes))
    assert torch.allclose(whole.decode(z), x, atol=1e-4)
    rows = z.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-3)
    assert torch.allclose(rows.T @ rows / len(rows), torch.eye(rows.shape[1]), atol=1e-2)


def test_no_linear_codec_of_as_many_numbers_is_better() -> None:
    """The error of principal components is the sum of the eigenvalues that were left out, and no basis has less."""
    x = some_digits()
    errors = []
    for channels in (2, 4, 8):
        codec = PatchPCA([4, 4], channels)
        codec.fit([x])
        errors.append((codec.decode(codec.encode(x)) - x).square().mean())
        other = torch.linalg.qr(torch.randn(48, channels, generator=torch.Generator().manual_seed(channels)))[
            0
        ]
        codec.basis.copy_(other)
        assert (codec.decode(codec.encode(x)) - x).square().mean() > errors[-1]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2


def test_identity_is_one_and_has_unit_scale() -> None:
    codec, x = Identity(), some_digits()
    codec.fit([x])
    assert torch.allclose(codec.decode(codec.encode(x)), x, atol=1e-6)
    assert codec.encode(x).std().item() == pytest.approx(1, abs=1e-3)


def test_codecs_refuse_what_does_not_divide() -> None:
    with pytest.raises(
        ValueError, match=r"size must be a multiple of the codec's stride \[4, 4\].*\[18, 16\]"
    ):
        PatchPCA([4, 4], 3).encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match="channels must lie between 1 and the 48 of a patch, got 49"):
        PatchPCA([4, 4], 49)


AUTOENCODERS = {
    "sd": (diffusers.AutoencoderKL, {"latent_channels": 4, "scaling_factor": 0.18215}),
    "sd3": (
        diffusers.AutoencoderKL,
        {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    ),
    "statistics": (
        diffusers.AutoencoderKL,
        {"latent_channels": 2, "scaling_factor": 0.5, "latents_mean": [0.1, -2.0], "latents_std": [2.0, 3.0]},
    ),
    "tiny": (diffusers.AutoencoderTiny, {}),
    "dc": (diffusers.AutoencoderDC, {}),
}


def autoencoder(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    cls, options = AUTOENCODERS[kind]
    if kind == "tiny":
        options = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
                   "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4}  # fmt: skip
    elif kind == "dc":
        options = {"latent_channels": 8, "attention_head_dim": 4, "encoder_block_out_channels": (8, 8),
                   "decoder_block_out_channels": (8, 8), "encoder_layers_per_block": (1, 1),
                   "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), ()),
                   "decoder_qkv_multiscales": ((), ()), "encoder_block_types": "ResBlock",
                   "decoder_block_types": "ResBlock", "scaling_factor": 0.41407}  # fmt: skip
    else:
        options = options | {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
                             "down_block_types": ["DownEncoderBlock2D"] * 2,
                             "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    return cls(**options).eval()


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_published_autoencoders_hide_their_interfaces(tmp_path: Path, kind: str) -> None:
    model = autoencoder(kind)
    model.save_pretrained(tmp_path / "vae")
    codec = Autoencoder(str(tmp_path), subfolder="vae")
    x = some_digits(2, (16, 16))
    z = codec.encode(x)
    assert z.shape == (2, *codec.shape((16, 16)))
    with torch.no_grad():
        out = model.encode(x)
        raw = {"tiny": lambda: out.latents, "dc": lambda: out.latent}.get(
            kind, lambda: out.latent_dist.mode()
        )()
        expected = {
            "sd": raw * 0.18215, "sd3": (raw - 0.0609) * 1.5305, "tiny": raw, "dc": raw * 0.41407,
            "statistics": (raw - torch.tensor([0.1, -2.0]).view(1, 2, 1, 1))
            * 0.5 / torch.tensor([2.0, 3.0]).view(1, 2, 1, 1) if kind == "statistics" else None,
        }[kind]  # fmt: skip
        assert torch.allclose(z, expected, atol=1e-5)
        assert torch.allclose(codec.decode(z), model.decode(raw).sample, atol=1e-4)


def test_what_is_no_autoencoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^codec.path must hold an autoencoder[^\n]*$"):
        Autoencoder(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match=r"^codec.path must hold one of AutoencoderKL[^\n]*UNet2DModel$"):
        Autoencoder(str(tmp_path))


# --- the contract


def test_a_checkpoint_samples_without_its_data(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, _, _ = run
    monkeypatch.setattr(Pictures, "split", lambda *_: pytest.fail("the data were read"))
    sheet, *pictures = sample_checkpoint(folder, num=11, out=tmp_path / "out")
    assert len(pictures) == 11
    assert Image.open(pictures[0]).size == (24, 16)
    assert Image.open(sheet).width > 64
    one = sample_checkpoint(folder, num=11, batch_size=3, out=tmp_path / "set.npz")[1]
    with np.load(one) as stored:
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_1"].tolist() == [i % 10 for i in range(11)]
        for i, file in enumerate(pictures):
            difference = np.abs(np.asarray(Image.open(file)).astype(int) - stored["arr_0"][i])
            assert difference.max() <= 1  # another batch size may round otherwise
    drawn = np.load(sample_checkpoint(folder, num=40, label="random", out=tmp_path / "r.npz")[1])["arr_1"]
    assert drawn.tolist() != [i % 10 for i in range(40)]


def test_a_run_is_resumed(run) -> None:
    _, first, settings = run
    again = make_trainer(settings, build.make_modality(settings), first.folder)
    resume(again, settings)
    assert again.step == 2


def test_a_run_that_starts_from_another_keeps_its_codec(run, capsys: pytest.CaptureFixture) -> None:
    """The weights know the latents of that codec; one fitted to other data would give others."""
    folder, first, _ = run
    other = folder.parent / "other"

    def codec(*words: str) -> PatchPCA:
        settings = config(f"init={folder}", "modality.data.root=null", "modality.data.mirror=true", *words)
        modality = make_modality(settings, other)
        modality.fitting_data = lambda: [torch.randn(64, 3, 16, 24)]
        return modality.codec

    adopted = codec()
    assert torch.equal(adopted.basis, first.modality.codec.basis)
    assert capsys.readouterr().out == f"{folder}: the codec from there, too\n"
    for other_options in (
        "modality.codec.channels=5",
        "modality.codec.patch=[2,8]",
    ):  # the second has equal shapes
        found = codec(other_options).basis
        assert found.shape != adopted.basis.shape or not torch.equal(found, adopted.basis)
        assert "another codec than there, fitted to this data" in capsys.readouterr().out
    settings = config(f"init={folder}", "model=debug")
    resumed = make_modality(settings, folder)  # a run of its own already has one
    assert torch.equal(resumed.codec.basis, first.modality.codec.basis)
    assert not capsys.readouterr().out


def test_decoding_gives_back_what_was_encoded(run) -> None:
    modality = run[1].modality
    images, labels = modality.data.batch(8, 0, 0)
    asked = Condition.of_labels(torch.from_numpy(labels), len(modality.classes))
    decoded = modality.samples(modality.encode(images), asked)
    assert decoded.data.dtype == np.uint8
    assert decoded.data.shape == (8, 16, 24, 3)
    assert np.abs(decoded.data.astype(float) - images).mean() < 12  # three components of 48 numbers
    assert decoded.names[0].startswith(f"{labels[0]}-")


def test_training_on_latents_equals_encoding_on_the_fly(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for split, num in (("train", 40), ("val", 6)):
        for i in range(num):
            (place := source / split / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(Pictures((16, 24)).batch(1, 0, i)[0][0]).save(place / f"{i}.png")
    options = ["modality=image", "source=x", "out=y", "modality.size=[16,24]", "modality.codec.channels=3"]
    more = ["modality.preparation.dtype=float32", "modality.preparation.shard=16"]
    prepared = config(*options, *more, command="prepare")
    build.make(prepared["modality"]).prepare(source, tmp_path / "latents")
    cached = build.make_modality(config(f"modality.latents={tmp_path / 'latents'}"))
    onthefly = build.make_modality(config(f"modality.data.root={source}"))
    assert cached.data_facts()["classes"] == ["kind0", "kind1"]
    for step in range(3):
        a, b = cached.batch(8, 1, step), onthefly.batch(8, 1, step)
        assert torch.allclose(a[0], b[0], atol=1e-5)
        assert torch.equal(a[1].labels(2), b[1])
    trained(tmp_path / "run", f"modality.latents={tmp_path / 'latents'}", f"modality.data.root={source}")
    report = evaluate_checkpoint(tmp_path / "run", split="val", trust=True)
    assert np.isfinite(report.values["fd/pixels"])
    with pytest.raises(ValueError, match=r"modality.size must be that of .*, \[16, 24\], got"):
        build.make_modality(
            config(f"modality.latents={tmp_path / 'latents'}", "modality.size=[16,16]")
        ).data_facts()


def test_an_autoencoder_whose_latents_do_not_fit_is_one_line(tmp_path: Path) -> None:
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    overrides = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'vae'}"]
    run, _ = trained(tmp_path / "run", *overrides)
    assert run.modality.sample_shape == (4, 8, 12)
    assert len(sample_checkpoint(tmp_path / "run", num=2, trust=True)) == 3
    autoencoder("sd3").save_pretrained(tmp_path / "vae")
    with pytest.raises(
        ValueError, match=r"codec's latents must be \[4, 8, 12\] as the model's, got \[16, 8, 12\]"
    ):
        sample_checkpoint(tmp_path / "run", num=2, trust=True)


def test_another_size_than_in_training_can_be_drawn(run, tmp_path: Path) -> None:
    wide = sample_checkpoint(run[0], num=2, size=[8, 40], out=tmp_path / "wide")
    assert Image.open(wide[1]).size == (40, 8)
    with pytest.raises(ValueError, match=r"multiple of the codec's stride .* \[9, 40\]"):
        sample_checkpoint(run[0], num=2, size=[9, 40])
    with pytest.raises(
        ValueError, match=r"multiple of a token's \[8, 8\] pixels on each axis, got \[12, 40\]"
    ):
        sample_checkpoint(run[0], num=2, size=[12, 40])
    with pytest.raises(
        ValueError, match=r"frames is not an option; words of [^\n]*image and given: [^\n]*size \("
    ):
        sample_checkpoint(run[0], num=2, frames=9)


# --- measuring and looking


def test_a_run_is_measured_against_its_split_a_set_or_published_statistics(run, tmp_path: Path) -> None:
    folder, first, settings = run
    report = evaluate_checkpoint(folder, num=20)
    assert {"floor", "oracle"} <= report.rows.keys()
    assert report.protocol["generated"].startswith("20 images")
    real = first.modality.reference("test")
    np.savez(tmp_path / "real.npz", arr_0=real.data)
    other = evaluate_checkpoint(folder, reference=tmp_path / "real.npz", num=20)
    assert other.values["fd/pixels"] == pytest.approx(report.values["fd/pixels"])
    features = real.data.reshape(len(real), 2, 8, 3, 8, 3).mean((2, 4)).reshape(len(real), -1)
    np.savez(tmp_path / "statistics.npz", mu=features.mean(0), sigma=np.cov(features.T))
    with pytest.raises(ValueError, match="num must be given, since the reference holds no samples"):
        evaluate_checkpoint(folder, reference=tmp_path / "statistics.npz")
    with pytest.raises(
        ValueError, match=r"holds statistics of 18 features and no images, but these features are 192"
    ):
        evaluate_checkpoint(folder, reference=tmp_path / "statistics.npz", num=5)
    np.savez(tmp_path / "wrong.npz", sigma=np.eye(3))
    with pytest.raises(ValueError, match="must be a folder of pictures or an npz with arr_0"):
        evaluate_files(settings["modality"], str(tmp_path / "wrong.npz"), str(tmp_path / "real.npz"))


def test_pictures_are_viewed_on_a_sheet_and_told_from_clouds(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    folder, _, _ = run
    sample_checkpoint(folder, num=4, out=tmp_path / "samples")
    view([str(tmp_path)])
    assert "4 pictures on" in capsys.readouterr().out
    (tmp_path / "samples" / "bad.png").write_bytes(b"x")
    view([str(tmp_path / "samples"), "--out", str(tmp_path / "sheet.png")])
    assert "4 pictures on" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    for name in ("samples.png", "a.ply", "a.npy"):
        (clouds / name).write_bytes(b"x")
    assert modality_of([clouds]).name == "pointcloud"
    assert modality_of([tmp_path / "samples"]) is Adapter


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["modality.size=[16]"], r"modality.size must be \[height, width\] in pixels, got \[16\]"),
        (["modality.size=[18,16]"], r"size must be a multiple of the codec's stride \[4, 4\]"),
        (["modality.size=[20,16]"], r"the grid must be a multiple of the patch, got \(5, 4\) and \(2, 2\)"),
        (["modality.data.root=nowhere"], "modality.data.root must be a folder, got nowhere"),
        (["modality.latents=nowhere"], "modality.latents must be a folder that prepare wrote"),
    ],
)
def test_bad_input_is_one_line(overrides: list[str], line: str) -> None:
    settings = config(*overrides)
    with pytest.raises(ValueError, match=line):
        make_trainer(settings, build.make_modality(settings), Path("unused"))
