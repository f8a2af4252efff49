"""From a checkpoint to files: all of them or none, of every modality's and router's runs, packed or not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ditmoe.analysis import analyze_checkpoint, noted, pictures, take_record
from ditmoe.analysis.dial import settings
from ditmoe.analysis.dropping import drop_each
from ditmoe.analysis.probe import make_probe
from ditmoe.analysis.similarity import cka
from ditmoe.analysis.subject import open_subject
from ditmoe.config.compose import composed
from ditmoe.pretrained import convert_file, published, weights
from tests.modalities.image.test_adapter import trained as trained_image
from tests.training.test_trainer import trainer

FEW = {"samples": 4, "bins": 2, "permutations": 20, "batch_size": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    trainer(place / "cloud", "trainer.steps=1", "router=expert_choice")[0].run()
    trained_image(place / "image")
    return place


def test_all_files_and_numbers_that_fit_each_other(runs: Path, tmp_path: Path) -> None:
    told = analyze_checkpoint(runs / "image", **FEW, dial=[1, 4], draw=3, steps=2, out=tmp_path / "out")
    assert "bits of time" in told
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    with np.load(tmp_path / "out" / "analysis.npz") as arrays:
        counts = {name: arrays[f"counts/{name}"] for name in ("time", "place", "class")}
        layers, experts = arrays["load"].shape
        drops, cost = arrays["drop/expert"], arrays["dial/multiply_adds"]
        loss = arrays["dial/loss"]
    tokens = record["protocol"]["tokens"]
    assert tokens == 4 * 2 * 2 * 3  # samples, bins, and a grid of 2 x 3
    assert (layers, experts) == (2, 8)
    for each in counts.values():
        assert np.allclose(each.sum((1, 2)), 2 * tokens), "top_k of each token"
        assert np.allclose(each.sum(1), counts["time"].sum(1))
    assert drops.shape == (2, 8, 4, 2)
    assert [row["top_k"] for row in record["dial"]] == [1, 2, 4]
    assert (np.diff(cost) > 0).all()
    assert np.array_equal(record["dial"][1]["difference"], 0)
    assert np.allclose(loss[1].mean(0), record["loss_by_time"])
    assert all("fd/pixels" in row["metric"] for row in record["dial"])
    names = ["analysis.json", "analysis.npz", "asked.png", "dependence.png", "dial.png", "dropping.png", "paths.png",
             "place.png", "similarity.png", "time.png"]  # fmt: skip
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == names
    for name in names[2:]:
        assert min(Image.open(tmp_path / "out" / name).size) > 60


def test_a_cloud_of_a_router_whose_tokens_have_any_number(runs: Path, tmp_path: Path) -> None:
    analyze_checkpoint(runs / "cloud", **FEW)
    out = runs / "cloud" / "analysis"
    assert (out / "tokens.png").is_file()
    record = json.loads((out / "analysis.json").read_text())
    assert np.isclose(np.mean(record["experts_per_token"]["by_time"]), 2)
    assert "dial" not in record
    with pytest.raises(ValueError, match="dial must be left out"):
        analyze_checkpoint(runs / "cloud", **FEW, dial=[1], out=tmp_path / "x")


def test_the_same_twice_and_nothing_of_one_that_fails(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, out = {**FEW, "drop": False, "dial": []}, tmp_path / "out"
    analyze_checkpoint(runs / "image", **few, out=out)
    first = (out / "analysis.json").read_bytes()
    analyze_checkpoint(runs / "image", **{**few, "batch_size": 2}, out=out)
    assert _close(json.loads(first), json.loads((out / "analysis.json").read_text()))

    def stopped(findings: object) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(pictures, "draw", stopped)
    for place in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            analyze_checkpoint(runs / "image", **few, seed=1, out=place)
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads((out / "analysis.json").read_text())["protocol"]["seed"] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match=r"^out must be new, or hold an older analysis: .* something else$"):
        analyze_checkpoint(runs / "image", **few, out=tmp_path / "mine")
    (tmp_path / "mine" / "analysis.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"^out must be new, or hold an older analysis: .* holds diary\.txt$"
    ):
        analyze_checkpoint(runs / "image", **few, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"
    (tmp_path / "mine" / "dial.png").mkdir()
    (tmp_path / "mine" / "diary.txt").rename(tmp_path / "mine" / "dial.png" / "diary.txt")
    with pytest.raises(ValueError, match=r"^out must be new.* holds dial\.png/diary\.txt$"):
        analyze_checkpoint(runs / "image", **few, out=tmp_path / "mine")


def _close(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return all(_close(a[name], b[name]) for name in a)  # type: ignore[index]
    if isinstance(a, list):
        return all(map(_close, a, b))
    return bool(np.isclose(a, b, atol=1e-6)) if isinstance(a, float) else a == b  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"samples": 1}, "samples must be"), ({"bins": 0}, "bins must be"), ({"permutations": 3}, "permutations must"),
        ({"dial": [9]}, "dial must be whole numbers between 1 and num_experts = 8, got 9"),
        ({"split": "x"}, "x"), ({"process": {"_target_": "x"}}, "process must be left out: a run has its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(runs: Path, tmp_path: Path, words: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{expected}[^\n]*$"):
        analyze_checkpoint(runs / "image", **{**FEW, **words}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_has_nothing_to_show(tmp_path: Path) -> None:
    trainer(tmp_path / "dense", "trainer.steps=1", "router=dense")[0].run()
    with pytest.raises(ValueError, match="layers with experts, got a dense one"):
        analyze_checkpoint(tmp_path / "dense", **FEW)


@torch.no_grad()
def test_noting_changes_no_bit_and_packing_no_number(runs: Path) -> None:
    subject = open_subject(runs / "image")
    model, modality = subject.model, subject.modality
    probe = make_probe(model, modality, subject.process, "test", 3, 2, 0)
    x, t, asked = probe.x0, probe.t[:, 0], probe.asked
    before = model(x, t, asked)[0]
    record = take_record(model, probe, subject.process, 2)
    unpacked = noted(model(x, t, asked)[1], model.tokens.layout(x))
    rows, layout = model.tokens.pack(list(x))
    packed = noted(model(rows[None], t, asked, layout)[1], layout)
    assert all(np.array_equal(a, b) for a, b in zip(unpacked, packed, strict=True))
    assert torch.equal(model(x, t, asked)[0], before)
    assert (record.chosen.sum(-1) == 2).all()
    assert len(record.sample) == 3 * 2 * 6
    assert not model.mixtures[0].router._forward_hooks


@torch.no_grad()
def test_an_expert_that_nobody_takes_is_no_loss(runs: Path) -> None:
    subject = open_subject(runs / "image")
    model = subject.model
    probe = make_probe(model, subject.modality, subject.process, "test", 3, 2, 0)
    router = model.mixtures[0].router
    router.bias_rate, router.bias = 1.0, torch.tensor([-10.0, *[0.0] * 7])
    record = take_record(model, probe, subject.process, 4)
    load = record.chosen.sum(0)
    assert load[0, 0] == 0
    drops = drop_each(model, probe, subject.process, 4, record.loss)
    assert not drops.expert[load == 0].any()
    assert (drops.expert[load > 0] != 0).any((1, 2)).all()
    assert drops.layer.shape == (2, 3, 2)


def test_a_converted_model_needs_a_modality_and_a_process(tmp_path: Path) -> None:
    """Random weights in the published layout; the built-in digits as latents of four channels."""
    save_file(_published(), tmp_path / "source.safetensors")
    convert_file(tmp_path / "source.safetensors", tmp_path / "out", num_heads=2)
    with pytest.raises(
        ValueError, match="modality and process must be given, as modality=image process=ddpm"
    ):
        analyze_checkpoint(tmp_path / "out", **FEW)
    words = ["modality=image", "modality.size=[16,16]", "process=ddpm", "checkpoint=x"]
    for channels in (3, 4):
        patch = f"modality.codec.channels={channels}"
        config = composed("analyze", [*words, patch])
        given = {name: config[name] for name in ("modality", "process")}
        if channels == 3:
            with pytest.raises(
                ValueError, match=r"modality must give the model of .* 16 numbers of a token, got 12"
            ):
                analyze_checkpoint(tmp_path / "out", **FEW, **given)
            continue
        analyze_checkpoint(tmp_path / "out", **FEW, **given, dial=[1])
    record = json.loads((tmp_path / "out" / "analysis" / "analysis.json").read_text())
    assert record["protocol"]["step"] is None
    assert [row["top_k"] for row in record["dial"]] == [1, 2]


def _published() -> dict[str, torch.Tensor]:
    """A tiny DiT-MoE of ten classes, on latents of 4 channels in patches of 2."""
    arch = published.Architecture("DiT-MoE", 2, 32, 2, 10, 2, 4, 8, 4, (0, 1), 4, 64, 128, 0, False, False)
    with torch.device("meta"):
        model = weights.make(arch.config(2, 1.0))
    generator = torch.Generator().manual_seed(0)
    each = published.recipes(model, arch).values()
    return {key: torch.randn(r.shape, generator=generator) for r in each for key in r.keys}


def test_settings_of_the_dial() -> None:
    assert settings(2, 8, None) == [1, 2, 3, 4, 6, 8]
    assert settings(5, 6, None) == [1, 2, 3, 4, 5, 6]
    assert settings(2, 8, [8, 1]) == [1, 2, 8]
    for asked in (-1, 1e30, "4"):
        with pytest.raises(ValueError, match=r"dial must be a list, as \[1,2,4\], got"):
            settings(2, 8, asked)


def test_cka_sees_no_rotation_and_no_kinship_of_strangers() -> None:
    g = torch.Generator().manual_seed(0)
    y, turn = torch.randn(256, 8, generator=g), torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    found = cka(torch.stack([y, 3 * y @ turn, torch.randn(256, 8, generator=g)]))
    assert torch.allclose(found[0, 1], torch.ones((), dtype=torch.double), atol=1e-4)
    assert found[:2, 2].abs().max() < 0.05
