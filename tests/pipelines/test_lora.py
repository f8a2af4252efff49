"""LoRA on a pipeline: the same by the call, by the file and merged; experts too; weights come back to the bit."""

import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ditmoe
from ditmoe.export import export
from ditmoe.inference import sample_checkpoint
from ditmoe.nn import LoRA, lora
from ditmoe.pipelines import lora_files
from ditmoe.pipelines.lora_files import PREFIX
from tests.modalities.image.test_adapter import trained
from tests.pipelines.test_pipeline import bits, latents, opened

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def pipe(exported: Path) -> ditmoe.Pipeline:
    return opened(exported)


@pytest.fixture
def adapter(pipe: ditmoe.Pipeline, tmp_path: Path) -> Path:
    """A file that changes the attention and the experts of the model, made without a pipeline."""
    net = opened(pipe.config._name_or_path).transformer.net
    LoRA(rank=2).attach(net, torch.Generator().manual_seed(0))
    state = {}
    for name, _, _, (low,) in lora.adapted(net):
        torch.nn.init.normal_(low.lora_B, std=10)
        layer = name.removesuffix(".weight")
        end = ".weight" if name.endswith(".weight") else ""
        state |= {
            f"{PREFIX}{layer}.lora_A{end}": low.lora_A.detach(),
            f"{PREFIX}{layer}.lora_B{end}": low.lora_B.detach(),
        }
    assert any("experts.up" in name for name in state)
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / FILE)
    return tmp_path / "adapter"


def test_an_adapter_is_loaded_weighed_and_taken_off(pipe: ditmoe.Pipeline, adapter: Path) -> None:
    before, weights = latents(pipe), {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(adapter)
    assert pipe.get_active_adapters() == ["default"]
    assert pipe.get_list_adapters() == {"transformer": ["default"]}
    full = latents(pipe)
    assert (full - before).abs().max() > 1e-3
    pipe.set_adapters("default", 0.5)
    half = latents(pipe)
    pipe.load_lora_weights(adapter / FILE, adapter_name="twice")
    pipe.set_adapters(["default", "twice"], [0.25, 0.25])
    assert torch.allclose(latents(pipe), half, atol=1e-4)
    pipe.disable_lora()
    assert torch.equal(latents(pipe), before)
    assert pipe.get_active_adapters() == []
    pipe.set_adapters("default")
    assert torch.equal(latents(pipe), full)
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), before)
    state = pipe.transformer.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())
    pipe.load_lora_weights(load_file(adapter / FILE))
    pipe.fuse_lora()
    assert torch.allclose(latents(pipe), full, atol=1e-4)
    assert pipe.transformer.state_dict().keys() == weights.keys()


def test_adapters_rest_and_go_and_are_fused_and_taken_out(pipe: ditmoe.Pipeline, adapter: Path) -> None:
    """Bit for bit."""
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    plain = latents(pipe)
    pipe.load_lora_weights(adapter, adapter_name="a")
    pipe.load_lora_weights(adapter, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.25])
    both = latents(pipe)
    pipe.disable_lora()
    pipe.disable_lora()
    assert torch.equal(latents(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(latents(pipe), both)
    pipe.fuse_lora(components=["transformer"], lora_scale=1.0, adapter_names=["b"])
    assert (pipe.get_list_adapters(), pipe.num_fused_loras) == ({"transformer": ["a"]}, 1)
    assert torch.allclose(latents(pipe), both, atol=1e-4)
    pipe.fuse_lora(lora_scale=0.5)
    assert (pipe.get_list_adapters(), pipe.num_fused_loras) == ({}, 2)
    pipe.unfuse_lora()
    assert (set(pipe.get_active_adapters()), pipe.num_fused_loras) == ({"a", "b"}, 0)
    assert torch.allclose(latents(pipe), both, atol=1e-4)
    pipe.delete_adapters("b")
    assert pipe.get_list_adapters() == {"transformer": ["a"]}
    pipe.delete_adapters(["a"])
    assert torch.equal(latents(pipe), plain)
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    for wrong, line in (
        (lambda: pipe.delete_adapters("a"), "adapter_names must be loaded adapters (none), got 'a'"),
        (lambda: pipe.fuse_lora(components=["text_encoder"]), "components must be ['transformer'], got"),
        (lambda: pipe.load_lora_weights(adapter, hotswap=True), "load_lora_weights takes revision, token"),
    ):
        with pytest.raises(ValueError, match=re.escape(line)):
            wrong()


def test_an_adapter_on_the_hub(pipe: ditmoe.Pipeline, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(name: str, allow_patterns: list[str], **options) -> str:
        asked.extend([name, allow_patterns, options])
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pipe.load_lora_weights("someone/lora", weight_name=FILE, revision="v1")
    assert asked == ["someone/lora", [FILE], {"revision": "v1"}]
    assert pipe.get_active_adapters() == ["default"]


def test_a_pipeline_goes_to_the_hub_with_its_adapter(
    pipe: ditmoe.Pipeline, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []

    def create(name: str, **options) -> SimpleNamespace:
        assert options == {"exist_ok": True, "private": True, "token": None}
        return SimpleNamespace(repo_id=f"someone/{name}")

    def upload(repo_id: str, folder_path: Path, **_) -> None:
        files.extend([repo_id, *(str(f.relative_to(folder_path)) for f in Path(folder_path).rglob("*.*"))])

    monkeypatch.setattr(huggingface_hub, "create_repo", create)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    pipe.load_lora_weights(adapter)
    pipe.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    assert files[0] == "someone/mine"
    assert {"README.md", "pipeline.py", "model_index.json", FILE} <= set(files)
    assert "library_name: diffusers" in (tmp_path / "mine/README.md").read_text()

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "create_repo", offline)
    for push in (
        lambda: pipe.push_to_hub("a/b"),
        lambda: pipe.save_pretrained(tmp_path / "b", push_to_hub=True),
    ):
        with pytest.raises(
            ConnectionError, match=r"^\S+ must be a repository that the hub lets you write, got no network$"
        ):
            push()


def test_a_pipeline_saved_with_an_adapter_reopens_with_it(
    pipe: ditmoe.Pipeline, adapter: Path, tmp_path: Path
) -> None:
    plain = latents(pipe)
    pipe.load_lora_weights(adapter)
    pipe.set_adapters("default", 0.5)
    active = latents(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(latents(pipe), active)
    again = opened(tmp_path / "saved")
    assert torch.allclose(latents(again), active, atol=1e-4)
    again.unload_lora_weights()
    assert torch.equal(latents(again), plain)
    again.save_pretrained(tmp_path / "saved")
    assert torch.equal(latents(opened(tmp_path / "saved")), plain)


def test_a_file_that_does_not_fit_is_one_line(pipe: ditmoe.Pipeline, adapter: Path, tmp_path: Path) -> None:
    state = load_file(adapter / FILE)
    name = next(name for name in state if "lora_A" in name)
    before = latents(pipe)
    for wrong, line in (
        ({**state, name: state[name][..., :-1].contiguous()}, "must be of shape"),
        ({key: value for key, value in state.items() if key != name}, "must have both lora_A and lora_B"),
        (
            {f"{PREFIX}x.lora_A.weight": state[name], f"{PREFIX}x.lora_B.weight": state[name]},
            "fits no matrix",
        ),
        ({**state, "x": state[name]}, "must hold nothing but lora_A and lora_B of weights, got x"),
        ({**state, name: state[name] / 0}, "must be finite"),
        (
            {each: torch.full_like(value, 1e30) for each, value in state.items()},
            "must have a finite product B A",
        ),
        ({}, "at least one weight"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
            pipe.load_lora_weights(wrong)
    assert torch.equal(latents(pipe), before)
    torch.save(state, tmp_path / "lora.bin")
    with pytest.raises(ValueError, match="could hold code, refused"):
        pipe.load_lora_weights(tmp_path, weight_name="lora.bin")
    with pytest.raises(FileNotFoundError, match="must be a LoRA file"):
        pipe.load_lora_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="needs an active adapter"):
        pipe.save_lora_weights(tmp_path / "none")
    with pytest.raises(ValueError, match=r"adapter_names must be loaded adapters \(none\), got 'x'"):
        pipe.set_adapters("x")


def test_what_is_no_matrix_of_numbers_is_one_line() -> None:
    """Whatever a dictionary holds; virtual views are refused before anything is made of them."""
    down, up = torch.ones(2, 6), torch.ones(4, 2)
    for wrong, line in (
        (3, "must be a plain tensor of floating-point numbers, got int"),
        (down.numpy(), "got ndarray"),
        (down.long(), "got torch.int64"),
        (down.to_sparse(), "must be a plain tensor"),
        (down.to("meta"), "must store each of its numbers"),
        (down[:, :1].expand(2, 10**9), "must store each of its numbers"),
        (torch.zeros(1, 1).expand(10**9, 6), "must have a rank between 1 and 4096"),
        (down[:0], "must have a rank between 1 and 4096"),
        (torch.tensor(1.0), "must have a rank between 1 and 4096"),
        (down.double() * 1e300, "must be finite"),
    ):
        with pytest.raises(ValueError, match=rf"^lora_A of x\.weight [^\n]*{line}[^\n]*$"):
            lora_files.named({"x.lora_A.weight": wrong, "x.lora_B.weight": up})
    both = {"x.lora_A.weight": down, "transformer.net.x.lora_A.weight": down}
    with pytest.raises(ValueError, match="LoRA of x must have one lora_A, got two"):
        lora_files.named(both)


def test_a_trained_one_is_exported_merged_or_kept(run: Path, tmp_path: Path) -> None:
    trained(
        tmp_path / "run",
        f"init={run}",
        "lora.rank=2",
        "lora.alpha=4",
        "optimizer.lr=0.05",
        "trainer.warmup=0",
    )
    drawn = np.load(sample_checkpoint(tmp_path / "run", num=2, out=tmp_path / "s.npz")[1])["arr_0"]
    export(tmp_path / "run", tmp_path / "merged")
    merged = opened(tmp_path / "merged")
    assert np.array_equal(bits(merged(num_samples=2, output_type="np").samples), drawn)
    assert not (tmp_path / "merged" / FILE).exists()
    export(tmp_path / "run", tmp_path / "kept", lora="keep")
    kept = opened(tmp_path / "kept")
    assert (tmp_path / "kept" / FILE).stat().st_size < 1e5
    assert torch.allclose(latents(kept), latents(merged), atol=1e-4)
    kept.unload_lora_weights()
    own = kept.transformer.state_dict()
    assert any(not torch.equal(value, own[name]) for name, value in merged.transformer.state_dict().items())
    with pytest.raises(ValueError, match="lora=keep needs a run that trained LoRA"):
        export(run, tmp_path / "other", lora="keep")


def test_a_file_is_written_whole_and_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("dear diary")
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    lora_files.write(tmp_path, {"x": torch.ones(2, 2)})
    assert (tmp_path / "other").read_text() == "dear diary"
    assert torch.equal(load_file(tmp_path / FILE)["x"], torch.ones(2, 2))
