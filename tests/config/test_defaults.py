"""What the default run of a modality is made of: what it states, and what all share where it states nothing."""

import shutil
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ditmoe.config.cli import config_folder
from tests.config.test_cli import call


def composed(*words: str, folder: Path | None = None) -> DictConfig:
    with initialize_config_dir(str(folder or config_folder()), version_base="1.3"):
        return compose("train", list(words))


def put(folder: Path, name: str, content: dict) -> None:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))


def test_a_modality_needs_one_file(tmp_path: Path) -> None:
    folder = shutil.copytree(config_folder(), tmp_path / "configs")
    put(folder, "modality/sound", {"_target_": "sounds.Sound"})
    plain, clouds = composed("modality=sound", folder=folder), composed()
    assert plain.modality == {"_target_": "sounds.Sound"}
    for section in ("model", "router", "process", "trainer"):
        assert plain[section] == clouds[section]
    # The recipe of clouds has a guidance of its own.
    assert plain.sampling == composed("modality=image").sampling

    put(folder, "router/for_sound", {"defaults": ["soft"]})
    put(folder, "process/for_sound", {"defaults": ["flow_matching", "_self_"], "mean": 0.5})
    own = composed("modality=sound", folder=folder)
    assert (own.router["_target_"], own.process.mean) == ("ditmoe.moe.Soft", 0.5)
    other = composed("modality=sound", "router=expert_choice", "process=ddpm", folder=folder)
    assert other.router["_target_"] == "ditmoe.moe.ExpertChoice"
    assert other.process == composed("process=ddpm").process


def test_a_modality_from_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "modality/sound", {"_target_": "sounds.Sound"})
    put(tmp_path, "process/for_sound", {"defaults": ["ddpm"]})
    done = call("train", "--config-dir", str(tmp_path), "modality=sound", "--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(done.stdout)
    assert config["router"]["_target_"] == "ditmoe.moe.TokenChoice"
    assert config["process"]["_target_"] == "ditmoe.diffusion.DDPM"


@pytest.mark.parametrize(
    ("modality", "router", "mean"),
    [("image", "TokenChoice", -0.3), ("pointcloud", "TokenChoice", -0.3), ("video", "TimeAware", 0.3)],
)
def test_the_default_runs(modality: str, router: str, mean: float) -> None:
    config = composed(f"modality={modality}")
    assert (config.router["_target_"], config.process.mean) == (f"ditmoe.moe.{router}", mean)
    assert composed(f"modality={modality}", "router=dense").router == {"num_experts": 0}


def test_models_state_what_is_their_own() -> None:
    files = sorted((config_folder() / "model").glob("[!_]*.yaml"))
    base = yaml.safe_load((config_folder() / "model/_base.yaml").read_text())
    for file in files:
        own = yaml.safe_load(file.read_text())
        assert [key for key, value in own.items() if key in base and base[key] == value] == [], file
        assert set(composed(f"model={file.stem}").model) == set(base) | set(own) - {"defaults"}


def test_a_mistake_names_models_alone(tmp_path: Path) -> None:
    done = call("plan", "model=huge", cwd=tmp_path)
    assert done.returncode == 2
    assert "choose from b, debug, g, l" in done.stderr
