"""Videos by other autoencoders, from latents on disk, and together with pictures: as the commands train on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditmoe
from ditmoe import checkpoint
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.export import export
from ditmoe.inference import evaluate_checkpoint, sample_checkpoint
from ditmoe.train import make_trainer
from modalities.latent import latent_cache
from modalities.video import Video
from modalities.video.data import MovingDigits
from tests.autoencoders import video_autoencoder

CLIP = ["modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.data.workers=0"]
OWN = ["modality.codec.channels=6", "modality.codec.steps=2", "modality.codec.width=8"]
RUN = ["model=debug", "trainer.batch_size=4", "trainer.warmup=2", "trainer.steps=2", "trainer.preview_every=0",
       "sampling.steps=2", "modality.evaluation.cache=null", "modality.evaluation.frames=5"]  # fmt: skip


def config(*overrides: str, command: str = "train") -> dict:
    words = [*CLIP, *(RUN if command == "train" else ["source=x", "out=y"]), *overrides]
    return composed(command, words)


def modality(*overrides: str, data_facts=None, command: str = "train") -> Video:
    return build.make_modality(config(*overrides, command=command), data_facts)


def trained(folder: Path, *overrides: str):
    settings = config(*overrides)
    run = make_trainer(settings, build.make_modality(settings), folder)
    run.run()
    return run


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of 8 frames, in which 4 clips of 5 frames can start."""
    root = tmp_path_factory.mktemp("videos")
    clips = MovingDigits((16, 16), 8).batch(10, 0, 0)[0]
    for i, clip in enumerate(clips):
        place = root / ("train" if i < 7 else "test") / f"kind{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{i}.npy", clip)
    return root


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wan")
    video_autoencoder("wan2.1").save_pretrained(folder / "vae")
    return [
        "codec@modality.codec=video_autoencoder",
        f"modality.codec.path={folder}",
        "modality.codec.subfolder=vae",
        "modality.codec.whiten=4",
    ]


# --- published autoencoders


def test_a_run_and_a_pipeline_use_a_published_autoencoder(
    videos: Path, vae: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(vae[1].split("=")[1], copy)
    words = [*vae[:1], f"modality.codec.path={copy}", *vae[2:], f"modality.data.root={videos}"]
    run = trained(tmp_path / "run", *words)
    assert run.modality.sample_shape == (4, 2, 4, 4)
    assert set(checkpoint.load(tmp_path / "run")["facts"]["codec"]) == {"mean", "scale"}
    paths = sample_checkpoint(tmp_path / "run", num=2, seed=1, out=tmp_path / "s.npz", trust=str(copy))
    expected = np.load(paths[1])["videos"]
    assert expected.shape == (2, 5, 16, 16, 3)
    export(tmp_path / "run", tmp_path / "pipe", trust=True)
    shutil.rmtree(copy)
    pipe = ditmoe.Pipeline.from_pretrained(tmp_path / "pipe")
    assert np.array_equal((pipe(num_samples=2, seed=1, output_type="np").samples * 255).round(), expected)
    with pytest.raises(ValueError, match=r"^codec.path must hold an autoencoder of diffusers, got"):
        sample_checkpoint(tmp_path / "run", num=1, trust=True)


def test_a_codec_of_pictures_or_frames_that_do_not_fit_are_one_line(vae: list[str]) -> None:
    image = ["codec@modality.codec=autoencoder", *vae[1:3]]
    with pytest.raises(
        ValueError, match=r"codec.path must hold one of AutoencoderKL, .* with AutoencoderKLWan"
    ):
        modality(*image).data_facts()
    with pytest.raises(
        ValueError, match=r"modality.codec must be one for videos, got modalities.latent.codec.Identity"
    ):
        modality("codec@modality.codec=identity").data_facts()
    with pytest.raises(
        ValueError, match=r"^frames must be 1 \+ a multiple of 4, .* for AutoencoderKLWan, got \[6,"
    ):
        modality(*vae, "modality.frames=6").data_facts()


# --- latents on disk


@pytest.mark.parametrize("starts", [1, 4])
def test_latents_on_disk_are_the_batches_of_the_videos(
    videos: Path, vae: list[str], tmp_path: Path, starts: int
) -> None:
    words = [*vae, "modality.preparation.dtype=float32", "modality.preparation.shard=3"]
    maker = modality(*words, f"modality.preparation.starts={starts}", command="prepare")
    maker.prepare(videos, tmp_path / "latents")
    stored = modality(*vae, f"modality.latents={tmp_path / 'latents'}")
    on_the_way = modality(*vae, f"modality.data.root={videos}", data_facts=stored.data_facts())
    assert stored.data_facts()["classes"] == ["kind0", "kind1"]
    for step in range(3):
        (a, y), (b, z) = stored.batch(4, 1, step), on_the_way.batch(4, 1, step)
        assert torch.equal(y.labels(2), z)
        assert a.shape == (4, 4, 2, 4, 4)
        if starts == 4:  # as many as there are, so that the same ones are drawn
            assert torch.allclose(a, b, atol=1e-4)
    assert (stored.batch(32, 0, 0)[0].std((0, 2, 3, 4)) - 1).abs().max() < 0.5


def test_a_run_trains_on_latents_and_is_measured_on_the_videos(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality(*OWN, command="prepare").prepare(videos, tmp_path / "latents")
    record = latent_cache.read_record(tmp_path / "latents")
    made = latent_cache.codec_file(tmp_path / "latents", record).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "modalities.video.codec.causal_patches.CausalPatches.fit", lambda *_: pytest.fail("trained again")
        )
        # Takes the codec that is there.
        modality(*OWN, command="prepare").prepare(videos, tmp_path / "latents")
        words = [*OWN, f"modality.latents={tmp_path / 'latents'}"]
        run = trained(tmp_path / "run", *words, "modality.images=0.5", f"modality.data.root={videos}")
    assert made == latent_cache.codec_file(tmp_path / "latents", record).read_bytes()
    shapes = {run.modality.batch(2, 0, step)[0].shape[2] for step in range(8)}
    assert shapes == {1, 2}
    assert len(evaluate_checkpoint(tmp_path / "run", split="test", num=3, trust=True).values)
    assert run.modality.reference("test").data.shape == (3, 5, 16, 16, 3)
    with pytest.raises(ValueError, match=r"modality.data.root must be given .* names .*videos\d"):
        modality(*words).reference("test")
    for option, value in {"frames": 9, "size": [16, 32], "stride": 2}.items():
        with pytest.raises(ValueError, match=rf"modality.{option} must be that of .*latents, "):
            modality(*words, f"modality.{option}={value}".replace(" ", "")).data_facts()
    with pytest.raises(ValueError, match=r"the codec must be the one .*made with"):
        modality(*words, "modality.codec.channels=5").data_facts()


def test_latents_of_what_is_not_causal_have_no_pictures(videos: Path, vae: list[str], tmp_path: Path) -> None:
    video_autoencoder("hunyuan").save_pretrained(tmp_path / "vae")
    words = [vae[0], f"modality.codec.path={tmp_path / 'vae'}"]
    modality(*words, command="prepare").prepare(videos, tmp_path / "latents")
    stored = [*words, f"modality.latents={tmp_path / 'latents'}"]
    assert modality(*stored).batch(2, 0, 0)[0].shape == (2, 4, 2, 2, 2)
    with pytest.raises(ValueError, match="AutoencoderKLHunyuanVideo is not causal"):
        modality(*stored, "modality.images=0.5").data_facts()


def test_check_looks_through_videos_and_is_theirs_alone(videos: Path, tmp_path: Path) -> None:
    modality(command="prepare").prepare(videos, tmp_path / "checked", check=True)
    assert [file.name for file in (tmp_path / "checked").iterdir()] == ["manifest.jsonl"]
    for other in ("image", "pointcloud"):
        made = build.make(plain_config(other))
        with pytest.raises(ValueError, match="check is for videos"):
            made.prepare(videos, tmp_path / "x", check=True)
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        modality("modality.preparation.starts=0", command="prepare").prepare(videos, tmp_path / "y")


def plain_config(name: str) -> dict:
    return composed("prepare", [f"modality={name}", "source=x", "out=y"])["modality"]


# --- pictures among the videos


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(12):
        place = tmp_path / "pictures" / "train" / ("kind1" if i % 3 else "another")
        place.mkdir(parents=True, exist_ok=True)
        image = np.full((20, 20, 3), 20 * i, np.uint8)
        Image.fromarray(image).save(place / f"{i}.png")
    return tmp_path / "pictures"


def test_pictures_and_videos_are_mixed_by_share_and_class(
    videos: Path, pictures: Path, tmp_path: Path
) -> None:
    words = [*OWN, f"modality.data.root={videos}", f"modality.pictures.root={pictures}"]
    mixed = modality(*words, "modality.images=0.4")
    assert list(mixed.classes) == ["kind0", "kind1", "another"]
    batches = [mixed.batch(4, 3, step) for step in range(60)]
    shown = [x.shape[2] == 1 for x, _ in batches]
    assert 0.2 < np.mean(shown) < 0.6
    for step in (shown.index(True), shown.index(False)):  # a function of seed, step and rank
        x, y = modality(*words, "modality.images=0.4", data_facts=mixed.data_facts()).batch(4, 3, step)
        parts = [mixed.batch(2, 3, step, rank, 2) for rank in range(2)]
        assert torch.equal(batches[step][0], x)
        assert torch.equal(torch.cat([labels for _, labels in parts]), y)
        assert torch.allclose(torch.cat([part for part, _ in parts]), x, atol=1e-4)
    labels = torch.cat([y for (_, y), one in zip(batches, shown, strict=True) if one])
    assert set(labels.tolist()) == {1, 2}  # kind1 is the videos' class of that name
    images, own = mixed.pictures.batch(4, 3, shown.index(True))
    assert torch.allclose(mixed.encode(images[:, None]), batches[shown.index(True)][0], atol=1e-5)
    assert [mixed.pictures.classes[i] for i in own] == [
        mixed.classes[i] for i in batches[shown.index(True)][1]
    ]
    dropped = modality(*words, "modality.images=1", "modality.merge=false")
    assert list(dropped.classes) == ["kind0", "kind1"]
    assert dropped.batch(4, 0, 0)[1].tolist() == [2] * 4  # the null class
    assert trained(tmp_path / "run", *words, "modality.images=0.5", "modality.merge=false").step == 2


def test_pictures_without_a_share_are_one_line(pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"modality.images, the share of pictures, must be above 0"):
        modality(*OWN, f"modality.pictures.root={pictures}")
