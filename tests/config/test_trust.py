"""The gate: a stranger's configuration is plain, names listed classes, opens nothing and exhausts nobody."""

import collections
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmoe.checkpoint.fit import bounded
from ditmoe.config import build, cli, known_classes, plain_values, trust
from ditmoe.config.compose import composed

FILE = Path("run/checkpoints/step-0000001")
READ = ("clip", "geneval", "detector", "compbench", "vqa")
"""Options of evaluations, beside others."""
NOT_PLAIN = [
    (1,), {1}, frozenset(), b"x", bytearray(2), 1j, Path("x"), torch.zeros(1), torch.Size([1]), torch.float32,
    torch.device("cpu"), np.float64(1), np.zeros(2), collections.OrderedDict(a=1), collections.defaultdict(int),
    collections.Counter(), float("nan"), float("inf"), {1: 2}, {(1,): 2}, {None: 1}, object(), os.system, range(3),
    [({"_target_": "torch.utils.collect_env.run", "command": "touch PWNED"},)],
]  # fmt: skip
"""Among them all that a restricted unpickler hands out."""
GADGETS = [
    "os.system", "subprocess.run", "builtins.eval", "builtins.open", "torch.utils.collect_env.run", "torch.load",
    "torch.hub.load", "torch.optim", "torch.optim.Optimizer.__init__", "torch.optim.lr_scheduler.LambdaLR", "diffusers",
    "diffusers.ModularPipeline", "diffusers.DiffusionPipeline.from_pretrained", "diffusers.AutoencoderKL",
    "diffusers.utils.import_utils.os.system", "diffusers.schedulers.scheduling_ddim.DDIMScheduler.from_pretrained",
    "diffusers.FlaxDDIMScheduler", "ditmoe.config.build.make", "ditmoe.checkpoint.save",
    "ditmoe.sample.sample_checkpoint", "ditmoe.pretrained.weights.read", "ditmoe.config.trust.os.system",
    "modalities.pointcloud.data.prepare.prepare", "modalities.latent.autoencoder.load", "hydra.utils.instantiate",
    "shutil.rmtree", "", ".", "..", "os.", "ditmoe", "a b", "ditmoe.model.DiTMoE ", "DITMOE.model.DiTMoE", None, 3,
    ["os.system"], True,
]  # fmt: skip


def admit(value: Any, allowed: trust.Trust = False) -> Any:
    config = {"modality": value} if isinstance(value, dict) else {"modality": {"x": value}}
    admitted = trust.admit(config, ["modality"], FILE, allowed)["modality"]
    return admitted if isinstance(value, dict) else admitted["x"]


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
@pytest.mark.parametrize("section", sorted(trust.NESTED))
def test_a_section_has_options(section: str, value: Any) -> None:
    kind = "null" if value is None else type(value).__name__
    if section == "router" and value is None:  # of a dense model
        assert trust.admit({section: value}, [section], FILE) == {section: None}
        return
    with pytest.raises(ValueError, match=rf"^[^\n]*must have options in its section {section}, got {kind}$"):
        trust.admit({section: value}, [section], FILE)
    assert trust.admit({section: {}}, [section], FILE) == {section: {}}


def test_sections_with_options_are_those_of_training() -> None:
    made = composed("train", [])
    assert {name for name, value in made.items() if isinstance(value, dict)} == trust.NESTED


@pytest.mark.parametrize("value", NOT_PLAIN, ids=[f"{i}-{type(v).__name__}" for i, v in enumerate(NOT_PLAIN)])
def test_only_plain_values_pass(value: Any) -> None:
    for place in (value, [value], {"a": {"b": [[value]]}}, {"_target_": "ditmoe.model.DiTMoE", "x": value}):
        with pytest.raises(ValueError, match=r"^the configuration of [^\n]* must h[^\n]*$"):
            admit(place)


@settings(deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["full", "swiglu", "x y", "Стул"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcde", min_size=1), inner),
))  # fmt: skip
def test_what_is_plain_passes_as_it_is(value: Any) -> None:
    admitted = admit(value)
    assert admitted == value
    assert type(admitted) is type(value)


def test_depth_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_values, "MOST", 100)
    deep: Any = 1
    for _ in range(plain_values.DEEPEST + 1):
        deep = [deep]
    for value in (deep, [0] * (plain_values.MOST + 1), {str(i): None for i in range(plain_values.MOST + 1)}):
        most = "32 levels" if value is deep else "100 values"
        with pytest.raises(ValueError, match=f"must have at most {most}, got more at "):
            admit(value)


@pytest.mark.parametrize("target", GADGETS, ids=repr)
def test_no_other_class_is_made(target: Any) -> None:
    for place in ({"_target_": target}, {"x": [{"y": {"_target_": target, "_partial_": True}}]}):
        with pytest.raises(ValueError, match=r"^[^\n]*(not trusted|an option that is not for paths)[^\n]*$"):
            admit(place)


def test_the_list_is_what_our_yaml_names() -> None:
    named = {
        "model": "ditmoe.model.DiTMoE",
        "modality": "modalities.pointcloud.PointCloud",
        "modality.codec": "modalities.latent.PatchPCA",
        "router.router": "ditmoe.moe.TokenChoice",
        "scheduler": "diffusers.UniPCMultistepScheduler",
        "tokens": "modalities.image.LatentTokens",
    }
    for place, target in named.items():
        assert target in known_classes.classes(place)
        for other in known_classes.classes(place):
            assert known_classes.is_allowed(other, place)
            assert inspect.isclass(known_classes.find(other))
        assert not known_classes.is_allowed(target, "sampling")
    assert not known_classes.is_allowed("modalities.latent.PatchPCA", "process")
    assert known_classes.is_allowed("diffusers.DEISMultistepScheduler", "scheduler")
    assert known_classes.is_allowed("torch.optim.SGD", "optimizer")
    assert known_classes.is_allowed("collections.OrderedDict", None)
    assert not known_classes.is_allowed("os.system", None)  # a function, whoever is trusted


def test_nothing_is_made_before_somebody_asks() -> None:
    codec = {"_target_": "modalities.latent.PatchPCA", "patch": [1000, 1000], "channels": 8}
    with pytest.raises(ValueError, match="must have _partial_: true"):
        admit({"codec": codec})
    assert admit({"codec": codec | {"_partial_": True}})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("${oc.env:HOME}", "interpolation"),
        ({"_args_": [1]}, "option that is not allowed"),
        ({"_target_": "modalities.image.Image", "_recursive_": False}, "option that is not allowed"),
        ({"seed": 2**65}, "must lie between"),
        ({"x": 2**24 + 1}, "must lie between"),
        ({"evaluation": {"workers": 1000}}, "must lie between"),
        ({"iterations": 2**20}, "must lie between"),
        ({"x": "/etc/passwd"}, "an option that is not for paths"),
        ({"x": ["someone/model"]}, "an option that is not for paths"),
        (
            {"_target_": "modalities.pointcloud.PointCloud", "num_points": "~/x"},
            "an option that is not for paths",
        ),
    ],
)
def test_other_mischief(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        admit(value)


def sections(node: Any) -> Any:
    """Every dict of a YAML file that names a class."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for inner in node.values():
            yield from sections(inner)


def test_every_option_that_could_be_a_path_is_withheld() -> None:
    """By name or by type: whatever class a YAML names must say of such an option that it opens something."""
    seen = set()
    for file in cli.config_folder().rglob("*.yaml"):
        if file.parent.name not in ("modality", "codec", "model", "router", "process", "scheduler"):
            continue
        for node in sections(yaml.safe_load(file.read_text())):
            target, opens = known_classes.find(node["_target_"]), trust.opens(node)
            if target.__module__.startswith("diffusers"):
                continue
            for name, parameter in inspect.signature(target).parameters.items():
                path_like = any(word in str(parameter.annotation) for word in ("Path", "PathLike"))
                if path_like or name in (
                    "path",
                    "root",
                    "cache",
                    "weights",
                    "folder",
                    "file",
                    "latents",
                ):
                    assert name in opens, (node["_target_"], name)
                    seen.add(name)
            for group in ("evaluation", "preparation"):
                for name in node.get(group) or {}:
                    if name in (*READ, "cache", "weights", "root", "path"):
                        assert f"{group}.{name}" in opens, (node["_target_"], name)
                        seen.add(name)
    assert {"root", "path", "cache", "weights", "latents", *READ} <= seen


def test_what_would_be_opened_needs_the_persons_word() -> None:
    clouds = {"_target_": "modalities.pointcloud.Clouds", "_partial_": True, "root": "somewhere"}
    evaluation = {"cache": "/victim", "emd": "exact_l2"}
    value = {"_target_": "modalities.pointcloud.PointCloud", "data": clouds, "evaluation": evaluation}
    assert dict(trust.opened(value, "modality")) == {
        "modality.data.root": "somewhere",
        "modality.evaluation.cache": "/victim",
    }
    for allowed, open_ones in (
        (False, []),
        (["/victim"], ["/victim"]),
        ("somewhere", ["somewhere"]),
        (["x"], []),
    ):
        kept = admit(value, allowed)
        for found in (kept["data"]["root"], kept["evaluation"]["cache"]):
            if isinstance(found, str):
                assert found in open_ones
                continue
            with pytest.raises(ValueError, match=r"^[^\n]* wants to open [^\n]*trust=true[^\n]*$"):
                Path(found)
    assert admit(value, True) == value
    assert value["data"]["root"] == "somewhere"  # what came is left as it was
    value["evaluation"]["cache"] = "runs/cache"  # as ditmoe's own YAML has it
    assert admit(value)["evaluation"]["cache"] == "runs/cache"


def test_made_of_plain_sections() -> None:
    made = build.make(
        {"_target_": "builtins.dict", "a": [{"_target_": "builtins.dict", "b": 1}], "c": {"d": [2]}}, e=3
    )
    assert made == {"a": [{"b": 1}], "c": {"d": [2]}, "e": 3}
    later = build.make({"_target_": "builtins.dict", "_partial_": True, "a": {"_target_": "builtins.dict"}})
    assert later(b=1) == {"a": {}, "b": 1}
    argument = {"_target_": "os.system"}
    assert build.make({"_target_": "builtins.dict"}, x=argument) == {"x": argument}  # not one more section
    with pytest.raises(ValueError, match=r"nowhere\.X cannot be found"):
        build.make({"_target_": "nowhere.X"})


def test_why_a_module_of_ones_own_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that its package lacks it."""
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts" / "half.py").write_text("from math import no_such_thing\n\nclass X: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"half\.X cannot be found: cannot import name 'no_such_thing'"):
        build.make({"_target_": "own_parts.half.X"})
    with pytest.raises(ValueError, match=r"'own_parts' has no attribute 'other'"):
        build.make({"_target_": "own_parts.other.X"})


@pytest.mark.parametrize(
    "name", ["solver_order", "predictor_order", "num_train_timesteps", "original_inference_steps"]
)
def test_a_scheduler_makes_no_list_that_is_too_long(name: str) -> None:
    """Wherever it comes from: a checkpoint, or the file that diffusers wrote into a folder."""
    plain_values.check_scheduler({"_class_name": "X", "_diffusers_version": "0.1", name: 3}, FILE)
    for value in (2**24, -(2**24), 10**30):
        with pytest.raises(ValueError, match="must lie between"):
            plain_values.check_scheduler({"_class_name": "X", name: value}, FILE)
        with pytest.raises(ValueError, match="must lie between"):
            trust.admit(
                {
                    "scheduler": {
                        "_target_": "diffusers.UniPCMultistepScheduler",
                        "_partial_": True,
                        name: value,
                    }
                },
                ["scheduler"],
                FILE,
            )


def test_no_model_of_more_parts_than_its_tensors_is_made() -> None:
    with bounded(10):
        torch.nn.ModuleList(torch.nn.Identity() for _ in range(500))
    made = 0

    def part() -> torch.nn.Module:
        nonlocal made
        made += 1
        return torch.nn.Identity()

    with bounded(10), pytest.raises(ValueError, match="more parts than its 10 tensors"):
        torch.nn.ModuleList(part() for _ in range(10**6))
    assert made < 2000
    torch.nn.ModuleList(torch.nn.Identity() for _ in range(5000))  # nobody counts any more
