"""Parameters by name and kind: who is in which group, how fast it learns, and that a run with groups goes on."""

from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from ditmoe.config.build import make_optimizer
from ditmoe.parallel import Mesh
from ditmoe.training import ParameterGroups
from ditmoe.training.parameter_groups import KINDS, parameters_of
from ditmoe.training.resume import resume
from tests.many import together
from tests.model.test_initialization import model
from tests.parallel.test_many import curve, on, trained
from tests.training.test_trainer import options, same, trainer

GROUPS = [
    "parameters.rates={router:0.5,blocks.0.*:0.1,norm:2.0}",
    "parameters.no_decay=[bias,norm,embedding]",
]
GROUPS += ["model.qk_norm=true", "model.base_width=24"]


def kinds(*overrides: str) -> dict[str, set[str]]:
    return {each.name: set(each.kinds) for each in parameters_of(model(*overrides))}


def test_kinds_come_from_what_holds_a_parameter() -> None:
    found = kinds(
        "model=masked", "model.depth=2", "model.moe_layers=[1]", "model.qk_norm=true", "router=race"
    )
    layer = "blocks.1.feed_forward"
    assert found["embed.weight"] == {"matrix"}
    assert found["embed.bias"] == {"bias"}
    assert found["conditioning.table.weight"] == {"embedding"}
    assert found["mask_token"] == {"token"}
    assert found["blocks.0.attention.q_norm.weight"] == found["blocks.0.attention.q_norm.bias"] == {"norm"}
    assert found["blocks.1.modulation.linear.weight"] == {"matrix"}
    assert found[f"{layer}.router.first.weight"] == {"router", "matrix"}
    assert found[f"{layer}.router.first.bias"] == {"router", "bias"}
    assert found[f"{layer}.experts.up"] == {"expert", "matrix"}
    assert found["tokens.head.output.weight"] == {"head", "matrix"}
    biased = kinds("model.activation=gelu", "router=soft")
    assert biased["blocks.0.feed_forward.experts.up_bias"] == {"expert", "bias"}
    assert biased["blocks.0.feed_forward.router.scale"] == {"router", "norm"}
    assert kinds("router=time_aware")["blocks.0.feed_forward.branch.weight"] == {"matrix"}


@pytest.mark.parametrize("router", options("router"))
def test_each_parameter_has_one_form_and_one_group(router: str) -> None:
    built = model(f"router={router}", "model.qk_norm=true")
    forms = set(list(KINDS)[:5])
    for each in parameters_of(built):
        assert len(each.kinds & forms) == 1
        assert each.kinds <= set(KINDS)
    groups = ParameterGroups(rates={"matrix": 0.5, "blocks.*": 0.1}, no_decay=["bias"])
    optimizer, rates = groups.optimizer(lambda p: torch.optim.AdamW(p, lr=1.0), built, Mesh())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(built.parameters()))
    assert sorted(set(rates)) == pytest.approx([0.05, 0.1, 0.5, 1.0])


def test_by_default_there_is_one_group_in_the_models_order() -> None:
    built = model()
    optimizer, rates = ParameterGroups().optimizer(lambda p: torch.optim.AdamW(p, lr=0.3), built, Mesh())
    plain = torch.optim.AdamW(built.parameters(), lr=0.3)
    assert rates == [0.3]
    assert len(optimizer.param_groups) == 1
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], built.parameters(), strict=True))
    assert optimizer.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


def test_factors_multiply_and_a_factor_of_zero_keeps_a_parameter(tmp_path: Path) -> None:
    frozen = "parameters.rates={blocks.0.*:0,router:0.5,blocks.1.*:0.1}"
    run, _ = trainer(tmp_path, "trainer.steps=3", frozen, "optimizer.weight_decay=0.1")
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert sorted(run.base_rates) == pytest.approx([0, 2e-3 * 0.05, 2e-3 * 0.1, 2e-3])
    run._train_step()
    factor = run.options.rate(0)
    assert [g["lr"] for g in run.optimizer.param_groups] == [rate * factor for rate in run.base_rates]
    for name, p in run.model.named_parameters():
        if before[name].any():  # what is zero at birth may have no gradient yet
            assert torch.equal(p, before[name]) == name.startswith("blocks.0."), name


def test_only_what_is_named_keeps_its_size_without_gradient() -> None:
    built = model("model.qk_norm=true")
    groups = ParameterGroups(no_decay=["bias", "norm", "embedding"])
    optimizer, _ = groups.optimizer(lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5), built, Mesh())
    with torch.no_grad():
        for p in built.parameters():
            p.fill_(1.0).grad = torch.zeros_like(p)
    optimizer.step()
    for each in parameters_of(built):
        kept = bool(each.kinds & {"bias", "norm", "embedding"})
        assert each.value.flatten()[0].item() == pytest.approx(1.0 if kept else 0.95), each.name


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "parameters.rates={roter:0.5}",
            r"rates must name parameters of this model or kinds .* none fits 'roter'",
        ),
        ("parameters.no_decay=[blocks.9.*]", r"no_decay must name parameters .* none fits 'blocks\.9\.\*'"),
        ("parameters.rates={router:-1}", r"parameters\.rates\.router must be at least 0, got -1"),
        ("parameters.rates={router:fast}", r"parameters\.rates\.router must be a finite number"),
    ],
)
def test_what_fits_nothing_is_named(tmp_path: Path, option: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, option)


def test_a_kind_that_a_model_has_none_of_is_no_mistake() -> None:
    built = model("model.qk_norm=false")
    assert not any("norm" in each.kinds for each in parameters_of(built))
    groups = ParameterGroups(no_decay=["bias", "norm"])
    assert len(groups.optimizer(lambda p: torch.optim.AdamW(p), built, Mesh())[0].param_groups) == 2


def test_an_optimiser_without_decay_has_none_to_leave_out() -> None:
    with pytest.raises(ValueError, match="must be empty for Rprop"):
        ParameterGroups(no_decay=["bias"]).optimizer(lambda p: torch.optim.Rprop(p, lr=0.1), model(), Mesh())


def test_a_run_with_groups_goes_on_bit_for_bit_and_with_those_alone(tmp_path: Path) -> None:
    whole, _ = trainer(tmp_path / "whole", "trainer.steps=4", *GROUPS, "trainer.save_every=2")
    whole.run()
    half = tmp_path / "parts" / "checkpoints"
    half.mkdir(parents=True)
    (tmp_path / "whole" / "checkpoints" / "step-0000002").rename(half / "step-0000002")
    second, settings = trainer(tmp_path / "parts", "trainer.steps=4", *GROUPS)
    resume(second, settings)
    assert second.step == 2
    second.run()
    a, b = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "parts")
    for part in ("model", "ema", "optimizer"):
        assert same(a[part], b[part]), part
    other, settings = trainer(tmp_path / "parts", "trainer.steps=5", *GROUPS[1:])
    with pytest.raises(ValueError, match="holds a run with another parameters"):
        resume(other, settings)


def test_groups_lie_on_any_mesh_and_a_run_goes_on_on_another(tmp_path: Path) -> None:
    trained(tmp_path / "one", 3, GROUPS)
    together(trained, 2, tmp_path / "experts", 3, [*on((1, 1, 2)), *GROUPS])
    trained(tmp_path / "moved", 1, GROUPS)
    together(trained, 2, tmp_path / "moved", 2, [*on((1, 1, 2)), *GROUPS])
    together(trained, 2, tmp_path / "moved", 3, [*on((1, 2, 1)), *GROUPS])
    for folder in ("experts", "moved"):
        for a, b in zip(curve(tmp_path / "one"), curve(tmp_path / folder), strict=True):
            for name in ("loss", "gradient_norm", *(n for n in a if n.startswith("loss_by_time/"))):
                assert b[name] == pytest.approx(a[name], abs=1e-5), (folder, a["step"], name)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("LBFGS", {}, "closure"),
        ("SparseAdam", {}, "dense gradients"),
        ("SGD", {"lr": 0.1, "differentiable": True}, "leaf Variable"),
        ("AdamW", {"fused": True, "foreach": True}, "cannot be"),
        ("Optimizer", {"defaults": {}}, "NotImplementedError"),
    ],
)
def test_an_optimiser_that_takes_no_step_by_gradients_alone_is_one_line(
    name: str, options: dict, reason: str
) -> None:
    config = {"_target_": f"torch.optim.{name}", "_partial_": True, **options}
    line = rf"optimizer must be one .*AdamW, got torch.optim.{name}, which raises: .*{reason}"
    with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
        make_optimizer({"optimizer": config}, [{"params": [torch.nn.Parameter(torch.ones(3, 3))]}])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Rprop", "Adafactor"])
def test_the_step_that_is_tried_moves_nothing(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    section = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 0.1}
    made = make_optimizer({"optimizer": section}, [{"params": [weight]}])
    assert torch.equal(weight, torch.ones(3, 3))
    assert made.param_groups[0]["params"][0] is weight
    assert not made.state
