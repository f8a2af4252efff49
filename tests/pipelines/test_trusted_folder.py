"""Folders of pipelines: what export writes, what it never replaces, and what strangers put there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditmoe.export import export
from ditmoe.inference import publish
from ditmoe.modality import Report
from ditmoe.pipelines import Pipeline
from ditmoe.pipelines.card import write_card
from modalities.image import Image
from tests.modalities.image.test_adapter import autoencoder, trained
from tests.pipelines.test_pipeline import latents, opened

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CODEC = {"_target_": "modalities.image.Autoencoder", "_partial_": True, "path": "sd-vae"}
HUB = CODEC | {"path": "someone/sd-vae"}
EVAL = {"_target_": "builtins.eval"}


def tampered(exported: Path, tmp_path: Path, file: str, change: Callable[[dict], None]) -> Path:
    folder = shutil.copytree(exported, tmp_path / "tampered")
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model_index.json", lambda c: c.update(transformer=["os", "system"]), "trusted"),
        ("model_index.json", lambda c: c.update(vae=["ditmoe.pipelines", "Transformer"]), "trusted"),
        ("model_index.json", lambda c: c.update(vae=["diffusers", "UNet2DModel"]), "trusted"),
        ("model_index.json", lambda c: c.update(scheduler=["diffusers", "UNet2DModel"]), "trusted"),
        ("model_index.json", lambda c: c.update(scheduler=["ditmoe.diffusion", "../../x"]), "trusted"),
        ("model_index.json", lambda c: c.update(more=["subprocess", "Popen"]), "trusted"),
        ("model_index.json", lambda c: c.update(_class_name=["pipeline", "Evil"]), "trusted"),
        ("model_index.json", lambda c: c.pop("memory"), "lacks memory"),
        ("model_index.json", lambda c: c.update(scheduler=3), "trusted"),
        ("model_index.json", lambda c: c.update(vae="\x1b[2J\n"), r"trusted[^\n\x1b]*$"),
        ("memory/config.json", lambda c: c["data_facts"].update(classes=3), "cannot be built"),
        ("memory/config.json", lambda c: c["config"]["modality"].update(rows="\x1b\n"), r"rows[^\n\x1b]*$"),
        ("scheduler/scheduler_config.json", lambda c: c.update(shift=1e300), "shift must be"),
        ("transformer/config.json", lambda c: c["config"]["router"].update(_target_="os.system"), "trusted"),
        ("transformer/config.json", lambda c: c["config"]["modality"].update(data=EVAL), "trusted"),
        ("memory/config.json", lambda c: c["config"]["process"].update(_target_="subprocess.Popen"), "trusted"),
        ("memory/config.json", lambda c: c["config"]["process"].update(prediction="${oc.env:HOME}"), "interpolation"),
        ("memory/config.json", lambda c: c["config"]["modality"].update(latents="../../secret"), "holds a path"),
        ("memory/config.json", lambda c: c["config"]["modality"].update(codec=HUB), "holds a path"),
        ("transformer/config.json", lambda c: c["config"]["modality"]["data"].update(root="/etc"), "holds a path"),
    ],
)  # fmt: skip
def test_strangers_configurations(
    exported: Path, tmp_path: Path, file: str, change: Callable, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
        opened(tampered(exported, tmp_path, file, change))()


def test_an_autoencoder_that_is_not_there_is_not_fetched(exported: Path, tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["config"]["modality"].update(codec=CODEC)

    with pytest.raises(ValueError, match=r"must hold the autoencoder .* \(vae/\), got none"):
        opened(tampered(exported, tmp_path, "memory/config.json", change))()


def test_code_pickles_and_paths_of_strangers(exported: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"import os\nos.mkdir({str(ran)!r})\nclass Transformer: pass\n"
    for name in ("transformer/ditmoe.pipelines.py", "pipeline.py", "vae/__init__.py"):
        folder = shutil.copytree(exported, tmp_path / "code", dirs_exist_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
        with pytest.raises(ValueError, match=r"^[^\n]*could hold code, refused[^\n]*$"):
            opened(folder)
        (folder / name).unlink()
    for option in ({"trust_remote_code": True}, {"custom_pipeline": "x"}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=rf"{next(iter(option))} must be [^\n]*: a folder runs no code"):
            opened(exported, **option)
    folder = shutil.copytree(exported, tmp_path / "pickle")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="transformer must hold its weights as safetensors"):
        opened(folder)
    torch.save({}, (folder / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(ValueError, match="could hold code, refused"):
        opened(folder)
    opened(exported).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    index = tmp_path / "sharded/transformer/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../../pipes/x.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(
        (ValueError, OSError), match=r"^[^\n]*must name a file in the same folder for each tensor$"
    ):
        opened(tmp_path / "sharded")
    assert not ran.exists()


@pytest.mark.parametrize("damage", ["missing", "more", "shape", "cut", "elsewhere"])
def test_damaged_weights_are_named_and_never_made_up(exported: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "damaged")
    weights = load_file(folder / WEIGHTS)
    if damage == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    else:
        embed = weights.pop("net.embed.weight")
        weights |= {"missing": {}, "more": {"net.embed.weight": embed, "net.x": embed.clone()}}.get(
            damage, {} if damage == "elsewhere" else {"net.embed.weight": torch.zeros(2, 2)}
        )
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        if damage == "elsewhere":  # in a file that diffusers does not read
            save_file({"net.embed.weight": embed}, folder / "transformer/more.safetensors", {"format": "pt"})
    words = {
        "missing": "net.embed.weight is missing",
        "elsewhere": "net.embed.weight is missing",
        "more": "net.x is .* missing in the model",
        "shape": "net.embed.weight",
    }
    with pytest.raises((ValueError, OSError), match=rf"^[^\n]*{words.get(damage, WEIGHTS)}[^\n]*$"):
        opened(folder)


def test_nothing_else_is_ever_replaced(run: Path, exported: Path, tmp_path: Path) -> None:
    for folder, file in (
        (tmp_path / "full", "mine.txt"),
        (shutil.copytree(exported, tmp_path / "pipe"), "thesis.txt"),
        (shutil.copytree(exported, tmp_path / "within"), "transformer/thesis.txt"),
        (shutil.copytree(exported, tmp_path / "deep"), "memory/.git/config"),
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("keep")
        with pytest.raises(ValueError, match=r"out must be new, or a folder that export wrote, but .* holds"):
            export(run, folder)
        assert (folder / file).read_text() == "keep"
    (tmp_path / "pipe/thesis.txt").unlink()
    export(run, tmp_path / "pipe")  # one that export wrote is replaced


def test_a_folder_is_whole_or_not_there(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "pipe")
    before = latents(opened(tmp_path / "pipe"))

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Pipeline, "save_pretrained", full)
    for out in ("pipe", "new"):
        with pytest.raises(OSError, match="disk full"):
            export(run, tmp_path / out)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    assert torch.equal(latents(opened(tmp_path / "pipe")), before)


def test_the_card_and_what_stays_at_home(run: Path, tmp_path: Path) -> None:
    home = shutil.copytree(run, tmp_path / "home")
    publish(
        Report(
            {"fd/pixels": 1.25}, {"split": "test"}, {"fd/pixels": (1.0, 2.0)}, {"floor": {"fd/pixels": 0.5}}
        ),
        home,
    )
    export(home / "checkpoints", tmp_path / "pipe", licence="cc-by-4.0")
    card = (tmp_path / "pipe/README.md").read_text()
    for words in ("license: cc-by-4.0", "classes: 0, 1, 2", "are active for a token", "2 steps of 4 samples",
                  "FlowMatching, prediction residual", "2 steps of FlowAncestralScheduler, guidance 1.5",
                  "metrics: fd/pixels 1.25 (intervals", "licence: cc-by-4.0"):  # fmt: skip
        assert words in card
    assert (tmp_path / "pipe/metrics.json").is_file()
    for licence in ("CC BY: 4.0", "mit\n---\n# x", "mit\ntags: [x]", "\x1b", "[a, b]", "", "x" * 65):
        with pytest.raises(
            ValueError, match=r"^licence must be an identifier of the hub such as .*$"
        ) as refused:
            export(home, tmp_path / "licensed", licence=licence)
        assert len(str(refused.value)) < 200
    (home / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match=r"metrics\.json must be what evaluate wrote"):
        export(home, tmp_path / "other")
    autoencoder("sd").save_pretrained(tmp_path / "alice/vae")
    words = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'alice/vae'}"]
    trained(tmp_path / "run", *words)
    with pytest.raises(
        ValueError, match=r"wants to open modality.codec.path = '[^\n]*alice/vae': [^\n]*trust=true"
    ):
        export(tmp_path / "run", tmp_path / "public")
    export(tmp_path / "run", tmp_path / "public", trust=str(tmp_path / "alice/vae"))
    for part in ("transformer", "memory"):
        assert "alice" not in (tmp_path / "public" / part / "config.json").read_text()


def test_tokens_may_ask_the_codec(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of clips do: the codec's tensors are the memory's, and the transformer must be built before them."""
    tokens = Image.tokens
    monkeypatch.setattr(Image, "tokens", lambda self, width: tokens(self, self.codec.stride and width))
    export(run, tmp_path / "pipe")
    assert opened(tmp_path / "pipe")().samples


def test_a_card_obeys_no_name(tmp_path: Path) -> None:
    hostile = "x\n# forged\n---\n<script>alert(1)</script> ![a](b) ``` \x1b[2J"
    (tmp_path / "metrics.json").write_text(json.dumps({hostile: 1.5}))
    card = write_card("image", hostile, [hostile, "b"], {"found": hostile}, tmp_path / "metrics.json")
    plain = write_card("image", "x", ["a", "b"], {"found": "x"}, tmp_path / "metrics.json")
    assert len(card.splitlines()) == len(plain.splitlines())
    assert not any(mark in card for mark in ("<script", "![a]", "\x1b", "\n# forged", "x\n"))
    assert card.count("```") == 2
    assert "label=0" in card


def test_a_link_to_a_folder_elsewhere_is_refused_before_it_is_walked(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "linked")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (folder / "vae").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"^[^\n]*vae leads out of the folder, refused[^\n]*$"):
        opened(folder)


def test_files_of_the_hub_s_cache_are_links(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    (tmp_path / "blob").write_bytes((folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "blob")
    opened(folder)


@pytest.mark.parametrize(
    "sampling", [{}, {"steps": 10**9}, {"guidance": "x"}, {"interval": [1]}, {"other": 1}, "x"]
)
def test_a_stored_sampling_that_lacks_or_is_nonsense(
    exported: Path, tmp_path: Path, sampling: object
) -> None:
    """What is missing is the default; what cannot be is one line."""

    def change(content: dict) -> None:
        content["config"]["sampling"] = sampling

    folder = tampered(exported, tmp_path, "memory/config.json", change)
    if sampling == {}:
        pipe = opened(folder)
        assert len(pipe(num_samples=1, num_inference_steps=1, output_type="np").samples) == 1
        return
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        opened(folder)(num_samples=1, num_inference_steps=1)
