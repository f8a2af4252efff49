"""Published checkpoints, the whole way: file -> convert -> ditmoe.load -> the published output."""

import argparse
import json
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ditmoe
from ditmoe.config.compose import composed
from ditmoe.nn import LoRA
from ditmoe.pretrained import convert_file, weights, words_to_start_from
from ditmoe.pretrained.start import start_from
from tests.config.test_cli import call

State = dict[str, torch.Tensor]
IMAGES = ["dit_tiny.npz", "dit_moe_tiny.npz", "dit_moe_qknorm_tiny.npz"]


def state_of(z) -> State:
    return {key[3:]: torch.tensor(z[key]) for key in z.files if key.startswith("w::")}


def converted(state: object, folder: Path, **options) -> ditmoe.DiTMoE:
    torch.save(state, folder / "source.pt")
    convert_file(folder / "source.pt", folder / "out", **{"num_heads": 4, **options})
    return ditmoe.load(folder / "out", device="cpu")


@pytest.fixture
def moe(golden: Callable) -> State:
    return state_of(golden("dit_moe_tiny.npz"))


@pytest.mark.parametrize("file", IMAGES)
@pytest.mark.parametrize("time", ["scaled", "unscaled"])
@torch.no_grad()
def test_images(golden: Callable, tmp_path: Path, file: str, time: str) -> None:
    z = golden(file)
    model = converted(state_of(z), tmp_path, time=time)
    assert not model.training
    t, out = ("t", "out") if time == "scaled" else ("t_unscaled", "out_unscaled")
    times = torch.tensor(z[t]).float() * (1 if time == "scaled" else 1000)
    got = model(torch.tensor(z["x"]), times, torch.tensor(z["y"]))[0]
    assert torch.allclose(got, torch.tensor(z[out]), atol=1e-5)


@torch.no_grad()
def test_clouds(golden: Callable, tmp_path: Path) -> None:
    z = golden("golden_dit3d_tiny.npz")
    state = {f"model.module.{key}": value for key, value in state_of(z).items()}
    model = converted({"epoch": 3, "model_state": state, "optimizer_state": {"state": {}}}, tmp_path)
    x, t, y = torch.tensor(z["x"]).mT.contiguous(), torch.tensor(z["t"]).float(), torch.tensor(z["y"])
    assert torch.allclose(model(x, t, y)[0], torch.tensor(z["out"]).mT, atol=1e-4)


@torch.no_grad()
def test_other_sizes_than_it_was_trained_on(moe: State, tmp_path: Path) -> None:
    out = converted(moe, tmp_path)(torch.randn(1, 4, 12, 6), torch.tensor([1.0]), torch.tensor([0]))[0]
    assert out.shape == (1, 8, 12, 6)


def equal(model: ditmoe.DiTMoE, other: ditmoe.DiTMoE) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_wrapped_or_bare(moe: State, tmp_path: Path) -> None:
    bare = converted(moe, tmp_path)
    raw = {key: value + 1 for key, value in moe.items()} | {"pos_embed": moe["pos_embed"]}
    training = {
        "model": raw,
        "ema": moe,
        "opt": {"state": {0: torch.ones(2)}},
        "args": argparse.Namespace(lr=1),
    }
    assert equal(converted(training, tmp_path), bare)
    assert not equal(converted(training, tmp_path, entry="model"), bare)
    torch.save(moe, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(moe, tmp_path / "source.safetensors")
    for file in ("old.pth", "source.safetensors"):
        convert_file(tmp_path / file, tmp_path / "again", num_heads=4)
        assert equal(ditmoe.load(tmp_path / "again", device="cpu"), bare)


def test_the_file_says_what_it_is(golden: Callable, moe: State, tmp_path: Path) -> None:
    torch.save({"ema": moe}, tmp_path / "a.pt")
    line = convert_file(tmp_path / "a.pt", tmp_path / "a", num_heads=4, top_k=3, time="unscaled")
    assert line == (
        "DiT-MoE: 2 layers, 64 wide, 4 heads, 4 experts of width 256, shared width 128, patch 2 of 8 x 8 with 4 "
        "channels, learned sigma, 5 classes, top 3; time unscaled; weights ema"
    )
    torch.save(state_of(golden("dit_moe_qknorm_tiny.npz")), tmp_path / "b.pt")
    assert "4 heads, QK LayerNorm" in convert_file(tmp_path / "b.pt", tmp_path / "b")


def test_half_precision(moe: State, tmp_path: Path) -> None:
    model = converted({key: value.bfloat16() for key, value in moe.items()}, tmp_path)
    assert next(model.parameters()).dtype == torch.float32
    assert ditmoe.load(tmp_path / "out", "cpu", torch.bfloat16).embed.weight.dtype == torch.bfloat16


class Hostile:
    """Would make a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


def test_code_is_never_unpickled(moe: State, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    hostile = {**moe, "x": Hostile(trap)}
    torch.save(hostile, tmp_path / "new.pt")
    torch.save(hostile, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"x": Hostile(trap)}))
    for name in ("new", "old", "pickle"):
        with pytest.raises(ValueError, match=r"execute code .*mkdir"):
            convert_file(tmp_path / f"{name}.pt", tmp_path / "out", num_heads=4)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


def change(state: State, key: str, value: torch.Tensor | None) -> State:
    return {k: v for k, v in {**state, key: value}.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("blocks.1.attn.qkv.weight", torch.ones(192, 60), r"blocks.1.attn.qkv.weight is \(192, 60\), must be"),
        ("blocks.1.moe.experts.3.up_proj.weight", None, r"experts.3.up_proj.weight is missing, must be \(256, 64\)"),
        ("blocks.0.moe.experts.4.up_proj.weight", torch.ones(2), r"experts.4.up_proj.weight \(2,\) does not belong"),
        ("blocks.9.norm", torch.ones(2), r"blocks.2 is missing"),
        ("blocks.0.attn.rel_pos", torch.ones(2), r"blocks.0.attn.rel_pos \(2,\) does not belong"),
        ("x_embedder.proj.weight", None, r"must hold a DiT, DiT-MoE or DiT-3D"),
        ("y_embedder.embedding_table.weight", None, r"y_embedder.embedding_table.weight is missing"),
        ("pos_embed", torch.zeros(1, 16, 64), r"pos_embed must be the sin-cos table of 8"),
        ("pos_embed", torch.zeros(1, 15, 64), r"pos_embed must be"),
        ("pos_embed", torch.zeros(1, 10**8, 0), r"pos_embed must not be empty, got the shape \(1, 100000000, 0\)"),
        ("blocks.0.moe.gate.weight", torch.zeros(10**9, 0), r"gate.weight must not be empty"),
        ("blocks.0.attn.q_norm.weight", torch.zeros(0), r"q_norm.weight must not be empty"),
        ("final_layer.linear.bias", torch.ones(32, dtype=torch.int8), r"must be a tensor of floats, got torch.int8"),
        ("final_layer.linear.bias", torch.full((32,), torch.nan), r"not finite: final_layer.linear.bias"),
        ("final_layer.linear.bias", torch.ones(32).double() * 1e300, r"not finite in float32: final_layer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(moe: State, tmp_path: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        converted(change(moe, key, value), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": None}, "num_heads must be given for 2 layers of width 64"),
        ({"num_heads": 5}, "64 and 5"),
        ({"top_k": 9}, "num_experts = 4, got 9"),
        ({"top_k": 0}, "top_k must be a whole number from 1, got 0"),
        ({"size": 16}, "size must be 8"),
        ({"time": "seconds"}, "time must be scaled or unscaled"),
        ({"entry": "ema"}, "no entry ema"),
    ],
)
def test_options_are_checked(moe: State, tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        converted(moe, tmp_path, **options)


def test_shards_are_small_and_freed(moe: State, tmp_path: Path) -> None:
    converted(moe, tmp_path, max_shard_gb=3e-4)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(file.stat().st_size < 3e5 + 1e4 or len(safe_open(file, "pt").keys()) == 1 for file in shards)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["shards"] == [file.name for file in shards]
    alive: list[weakref.ref] = []
    most = 0

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for i in range(40):
            tensor = torch.ones(100)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"w{i}", tensor
            del tensor

    weights.write(tmp_path / "many", {}, tensors(), max_shard_bytes=4 * 400)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 10
    assert most <= 5  # one shard and the tensor that opens the next


def test_a_good_folder_stays_whole(moe: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = converted(moe, tmp_path)
    newer = change(moe, "x_embedder.proj.bias", moe["x_embedder.proj.bias"] + 1)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", full)
        with pytest.raises(OSError, match="disk full"):
            converted(newer, tmp_path)
    assert equal(ditmoe.load(tmp_path / "out", device="cpu"), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.pt"]
    assert not equal(converted(newer, tmp_path), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.pt"]


def test_another_folder_is_not_overwritten(moe: State, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else"):
        converted(moe, tmp_path)
    (tmp_path / "out" / "thesis.txt").rename(tmp_path / "thesis.txt")
    converted(moe, tmp_path)
    (tmp_path / "thesis.txt").rename(tmp_path / "out" / "thesis.txt")
    with pytest.raises(ValueError, match=r"a folder that convert wrote, got one that holds thesis\.txt$"):
        converted(moe, tmp_path)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_loading_trusts_no_configuration(moe: State, tmp_path: Path) -> None:
    converted(moe, tmp_path)
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    for target in ("os.system", "ditmoe.checkpoint.store.os.system"):
        config["tokens"]["_target_"] = target
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match="not trusted"):
            ditmoe.load(tmp_path / "out")
    for text in ("{", "[]", '{"format": "ditmoe-weights-1"}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            ditmoe.load(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ditmoe.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tokens": "abc"}, "tokens of [^ ]*config.json must be a section, got str"),
        ({"num_classes": "5"}, "num_classes of [^ ]*config.json must be a whole number"),
        ({"channels": 7}, "tokens.channels in config.json of .* must be half of .* got 7 for 32 rows"),
        ({"channels": None}, "tokens.channels in config.json of .* must be a whole number.* got None"),
        ({"channels": "7"}, "tokens.channels in config.json of .* must be a whole number.* got '7'"),
    ],
)
def test_what_a_training_would_start_from_is_checked(
    moe: State, tmp_path: Path, change: dict, line: str
) -> None:
    model = converted(moe, tmp_path)
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    assert config["tokens"]["learn_sigma"] is True
    spoilt = {"tokens": config["tokens"] | change} if "channels" in change else change
    file.write_text(json.dumps(config | spoilt))
    with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
        start_from(str(tmp_path / "out"), model, config["model"])


def test_damaged_shards_are_named(moe: State, tmp_path: Path) -> None:
    converted(moe, tmp_path)
    shard = next((tmp_path / "out").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights-00001\.safetensors is no checkpoint, or is damaged"):
        ditmoe.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["source=nowhere.pt", "out=x"], "nowhere.pt does not exist"),
        (["source=.", "out=x", "top_k=two"], "top_k must be a whole number from 1, got 'two'"),
    ],
)
def test_one_line_for_a_mistake(tmp_path: Path, words: list[str], expected: str) -> None:
    done = call("convert", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert expected in done.stderr


def test_the_command(moe: State, tmp_path: Path) -> None:
    torch.save(moe, tmp_path / "source.pt")
    done = call("convert", "source=source.pt", "out=a/b", "num_heads=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("DiT-MoE: 2 layers, 64 wide")
    assert ditmoe.load(tmp_path / "a" / "b").conditioning.num_classes == 5
    assert len({file.stat().st_mode for file in (tmp_path / "a" / "b").iterdir()}) == 1


@torch.no_grad()
def test_training_starts_from_the_prediction_without_its_variance(golden: Callable, tmp_path: Path) -> None:
    """With as many classes the first prediction is the published one, with adapters and without."""
    z = golden("dit_moe_qknorm_tiny.npz")
    published = converted(state_of(z), tmp_path)
    config = weights.admitted(tmp_path / "out")
    config["tokens"] = config["tokens"] | {"learn_sigma": False}
    model = weights.make(config)
    start_from(str(tmp_path / "out"), model, config["model"])
    x, t, y = torch.tensor(z["x"]), torch.tensor(z["t"]).float(), torch.tensor(z["y"])
    expected = published(x, t, y)[0]
    assert expected.shape[1] == 2 * x.shape[1]
    assert torch.equal(model(x, t, y)[0], expected[:, : x.shape[1]])
    LoRA(rank=2).attach(model)
    assert torch.equal(model(x, t, y)[0], expected[:, : x.shape[1]])


@pytest.mark.parametrize("file", IMAGES)
@pytest.mark.parametrize("time", ["scaled", "unscaled"])
@torch.no_grad()
def test_the_words_that_are_told_make_a_model_of_the_same_prediction(
    golden: Callable, tmp_path: Path, file: str, time: str
) -> None:
    z = golden(file)
    published = converted(state_of(z), tmp_path, time=time)
    words = words_to_start_from(tmp_path / "out")
    config = composed("train", ["modality=image", *words])
    tokens = weights.admitted(tmp_path / "out")["tokens"] | {"learn_sigma": False}
    assert config["modality"]["tokens"]["patch"] == tokens["patch"]
    model = weights.make({**config, "tokens": tokens, "num_classes": published.conditioning.num_classes})
    start_from(str(tmp_path / "out"), model, config["model"])
    x, t, y = torch.tensor(z["x"]), torch.tensor(z["t"]).float(), torch.tensor(z["y"])
    assert torch.equal(model(x, t, y)[0], published(x, t, y)[0][:, : x.shape[1]])
    assert config["process"]["_target_"].endswith("DDPM" if time == "scaled" else "FlowMatching")
    assert config["process"]["prediction"] == ("epsilon" if time == "scaled" else "velocity")


def test_published_sizes_are_named(tmp_path: Path) -> None:
    for name, qk_norm in (("s", False), ("xl", True)):
        config = composed("train", ["modality=image", f"model={name}", "router.num_experts=16"])
        section = {**config["model"], "moe_layers": list(range(config["model"]["depth"]))}
        tokens = {**config["modality"]["tokens"], "channels": 4, "learn_sigma": True}
        stored = {**config, "model": section, "tokens": tokens, "num_classes": 1000, "shards": []}
        (tmp_path / "config.json").write_text(
            json.dumps({k: stored[k] for k in (*weights.SECTIONS, "shards")} | {"format": weights.FORMAT})
        )
        assert section["qk_norm"] == qk_norm
        assert words_to_start_from(tmp_path) == [
            f"model={name}", "router.num_experts=16", "process=ddpm", "scheduler=dpmpp"
        ]  # fmt: skip


def test_training_embeds_time_as_the_weights_that_it_starts_from(moe: State, tmp_path: Path) -> None:
    model = converted(moe, tmp_path, time="unscaled")
    section = weights.admitted(tmp_path / "out")["model"]
    with pytest.raises(ValueError, match=r"model.time_scale must be that of .*, 0.001, got 1.0$"):
        start_from(str(tmp_path / "out"), model, section | {"time_scale": 1.0})
