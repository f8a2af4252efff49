"""The examples: short, packages by themselves, right in what they compute. The laws of every router, every modality and
the contract are held by the tests of those; docs/extending.md is followed by `test_docs`.
"""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.modality import Metric, Samples
from ditmoe.moe import MoE, Router
from tests.routers import B, D, E, N, batch, expert
from tests.strangers import ROOT, install, run

EXAMPLES = ROOT / "examples"
TINY = ("model=debug", "trainer.steps=2", "trainer.batch_size=2", "sampling.steps=2", "finish.num=0")
CLOUDS = ("modality.num_points=64", "modality.tokens.resolution=16")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in the folder that holds them."""
    monkeypatch.syspath_prepend(EXAMPLES / "router")
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.parametrize("name", ["signals", "router"])
def test_short(name: str) -> None:
    assert sum(len(file.read_text().splitlines()) for file in (EXAMPLES / name).rglob("*.py")) < 200


def test_the_package_of_signals_is_whole(tmp_path: Path) -> None:
    """Its wheel has the class, the YAML files and the entry point."""
    shutil.copytree(EXAMPLES / "signals", tmp_path / "signals", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "signals", check=True, capture_output=True)
    shutil.unpack_archive(next((tmp_path / "signals/out").glob("*.whl")), tmp_path / "site", "zip")
    ((code, out, error),) = run(
        tmp_path / "home", ("train", "modality=signals", "--cfg", "job"), path=(tmp_path / "site",)
    )
    assert code == 0, error
    assert "_target_: signals.Signals" in out
    assert "batch_size: 64" in out, "its recipe"


def test_the_router_works_within_two_modalities(tmp_path: Path) -> None:
    """Found by --config-dir; trained, drawn from with other experts per token, measured and exported."""
    home, site = tmp_path / "home", install(tmp_path / "site", "signals")
    shutil.copytree(EXAMPLES / "router", home / "router")
    where = ("--config-dir", "router/configs")
    train = ("train", *where, "router=cosine", *TINY, "finish.evaluate=false")
    done = run(
        home,
        ("sample", "checkpoint=nowhere"),  # without the folder, which the next commands name
        (*train, "modality=pointcloud", *CLOUDS),
        ("sample", *where, "num=1", "checkpoint=runs/pointcloud/default", "top_k=1"),
        (*train, "modality=signals"),
        ("sample", *where, "num=1", "checkpoint=runs/signals/default", "length=96"),
        ("evaluate", *where, "num=8", "checkpoint=runs/signals/default"),
        ("export", *where, "checkpoint=runs/signals/default", "out=waves"),
        (*train, "modality=signals", "router.top_k=9", "name=x"),
        ("sample", "checkpoint=runs/signals/default", "num=1"),
        path=(site, home / "router"),
    )
    codes, _, errors = zip(*done, strict=True)
    assert codes == (2, 0, 0, 0, 0, 0, 0, 2, 2), errors
    assert errors[7] == "error: top_k must be between 1 and 8, got 9\n"
    assert "names a class that is not trusted, refused: router._target_ = 'cosine.Cosine'" in errors[8]


def cosine(**options: float) -> Router:
    from cosine import Cosine

    return Cosine(D, num_experts=E, top_k=2, **options)


@torch.no_grad()
def test_the_router_equals_its_formula() -> None:
    torch.manual_seed(0)
    moe, (x, context) = MoE(cosine(), D, 24, 8, "swiglu"), batch()
    for parameter in moe.parameters():
        parameter.normal_(std=0.3)
    moe.router.update([moe(x, context)[1].batch_stats])
    expected = moe.shared(x)
    for b in range(B):
        for n in range(N):
            like = torch.nn.functional.cosine_similarity(x[b, n], moe.router.weight, dim=-1)
            scores = (like / moe.router.temperature).softmax(-1)
            for e in (scores + moe.router.bias).topk(2).indices:
                expected[b, n] += scores[e] * expert(moe, e, x[b, n])
    assert torch.allclose(moe(x, context)[0], expected, atol=1e-5)
    assert torch.allclose(moe.router(5 * x, context).scores, moe.router(x, context).scores, atol=1e-5)


@torch.no_grad()
def test_its_bias_evens_out_the_load() -> None:
    """A router whose tokens all like the same experts, left to its bias."""
    torch.manual_seed(0)
    router, (x, context) = cosine(bias_rate=0.002), batch(size=16)
    router.weight.normal_()
    x, loads = x + router.weight[0], []
    for _ in range(400):
        routing = router(x, context)
        router.update([routing.batch_stats])
        loads.append(routing.load)
    assert loads[0].max() > 0.45
    assert torch.stack(loads[-100:]).mean(0).max() < 0.3, "of 0.25 at best"


@pytest.fixture
def signals() -> Metric:
    from signals import Pieces, Signals

    return Signals(partial(Pieces, patch=4))


def test_signals_have_their_partials(signals: Metric) -> None:
    from signals import WAVES, spectra

    for row, series in zip(spectra(signals.reference("test"))[:4], WAVES.values(), strict=True):
        assert np.allclose(np.sort(row)[-8:] / row.max(), np.sort(np.abs(series)), atol=1e-6)


def test_the_metric_tells_noise_from_signals(signals: Metric) -> None:
    real, rng = signals.reference("test"), np.random.default_rng(0)
    noise = Samples(rng.normal(size=real.data.shape), rng.permutation(real.labels))
    good, bad = (signals.evaluate(made, real) for made in (signals.reference("val"), noise))
    assert good.values["fd/spectra"] < 0.1 * bad.values["fd/spectra"]
    assert good.intervals["fd/spectra"][1] < bad.intervals["fd/spectra"][0]
    assert good.values["classes/agreement"] > 0.9 > 0.5 > bad.values["classes/agreement"]
    same = signals.evaluate(real, real)
    assert same.values["fd/spectra"] == pytest.approx(0, abs=1e-6)
    assert same.values["classes/agreement"] == 1


def test_signals_are_written_and_read(signals: Metric, tmp_path: Path) -> None:
    made = replace(signals.reference("val"), names=[f"wave-{i:02d}" for i in range(64)])  # in their order
    signals.write(made, tmp_path / "all.npz")
    read = signals.read(tmp_path / "all.npz")
    assert np.array_equal(read.data, made.data)
    assert np.array_equal(read.labels, made.labels)
    signals.write(made, tmp_path / "each")
    assert np.allclose(signals.read(tmp_path / "each").data, made.data, atol=1e-5)
    (tmp_path / "each/short.signal").write_text("1\n2\n")
    with pytest.raises(ValueError, match=r"must hold .signal files of one length, got 65 files"):
        signals.read(tmp_path / "each")
