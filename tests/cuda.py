"""python -m tests.cuda: every router, layout, modality, process and scheduler on a GPU that is not there.

It needs the CUDA build of torch, and no GPU:

    python3 -m venv cuda && cuda/bin/pip install -e '.[test]' && cuda/bin/python -m tests.cuda

Shapes, types and devices of all that runs are CUDA's (`tests/fake_cuda.py`). It fails for an error, and unless the host
waits exactly where `WAITS` says. What it cannot show: values, kernels, times, and gradients (the backward pass needs a
real device).
"""

import argparse
import fnmatch
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ditmoe.conditioning import Embedded
from ditmoe.config import build
from ditmoe.diffusion import denoise, make_scheduler
from ditmoe.given import Given
from ditmoe.model import DiTMoE, LowMemory
from ditmoe.model.masked import MaskedDiTMoE
from ditmoe.moe import Context
from ditmoe.nn import FirstBlockCache, Layout
from ditmoe.training import Options, ParameterGroups, Trainer
from modalities.pointcloud.tokens.voxel_tables import touched
from tests import subjects
from tests.fake_cuda import CUDA, Waits, fake_cuda, there
from tests.routers import GRIDS, ROUTERS, D, N, layer

WAITS = {
    "base.py:choose": "BASE's assignment is solved by SciPy on the host, in every layer",
    "block_cache.py:stale": "first_block_cache: which samples the later blocks run for decides shapes, once per pass",
    "capacity.py:forward": "router.sparsify: how many tokens an expert takes depends on the step, which is a buffer",
    "experts.py:from_store": "offload=experts: the host fetches those that have rows, so it must know, in every layer",
    "layout.py:_cells_on_host": "windows of occupied tokens: who shares one is found on the host, once per pass",
    "layout.py:rows_on_host": "experts by noise segment, times of cells that are no tokens: where they are, per layer",
    "sampler.py:check": "whether samples are finite, once after the last step",
    "sampler.py:denoise": "fresh noise of a scheduler is drawn on the host, at its address, and copied in each step",
    "schedulers.py:step": "the same, of the default one",
    "masked.py:draw_kept": "masked training: how many of a sample's tokens are empty, once per pass",
    "router.py:times_on_host": "experts by noise segment, with given parts: where those lie only the device knows",
    "voxel_tables.py:touched": "occupied tokens: how many there are decides all shapes, once per pass",
}
"""Where the host waits, and why."""

Case = tuple[str, Callable[[], Any]]


# --- layers


def context(axes: int, how: str) -> tuple[torch.Tensor, Context]:
    """Tokens of three samples and what is known beside them; `how` they lie."""
    grid = GRIDS[axes]
    layout = Layout.even(grid, 3, CUDA)
    if how == "packed":
        layout = Layout.pack([grid, grid, [2] * axes], CUDA)
    elif how.startswith("partly"):
        layout = Layout.partly(grid, torch.zeros(9, axes, dtype=torch.long, device=CUDA), (3, 2, 4))
    rows = (1, sum(layout.lengths)) if layout.packed else (3, N)
    x, unmodulated = (torch.empty(*rows, D, device=CUDA) for _ in range(2))
    shape = {"times per token": (3, N), "partly, times per token": (1, 3 * N)}.get(how, (3,))
    t, time, c = (torch.empty(*shape, *more, device=CUDA) for more in ((), (D,), (D,)))
    asked = Embedded(torch.empty(3, D, device=CUDA), torch.zeros(3, dtype=torch.bool, device=CUDA))
    told = np.linspace(0, 999, t.numel(), dtype=np.float32).reshape(shape)
    return x, Context(t, time, c, layout, unmodulated, asked, None if how == "times untold" else told)


def run_layer(name: str, how: str, training: bool, dtype: torch.dtype) -> None:
    """A mixture of experts, what is counted of it, and the router's update."""
    moe = there(layer(name, shared=8)).train(training)
    x, known = context(ROUTERS[name].axes, how)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y, routing = moe(x, known)
    assert (y.shape, y.device.type) == (x.shape, "cuda")
    assert all(v.is_cuda for v in (routing.counts, routing.load, routing.unrouted, routing.chosen))
    if training:
        moe.router.update([routing.batch_stats])


def layers() -> Iterator[Case]:
    for how in ("partly, times per token", "times untold"):
        yield f"layer timestep, {how}", partial(run_layer, "timestep", how, True, torch.bfloat16)
    for name in ROUTERS:
        for how in ("even", "packed", "partly", "times per token"):
            for training in (True, False):
                if not training and how == "partly":
                    continue
                for dtype in (torch.bfloat16, torch.float32) if how == "even" else (torch.bfloat16,):
                    mode = "training" if training else "sampling"
                    kind = str(dtype).removeprefix("torch.")
                    yield (
                        f"layer {name}, {how}, {mode}, {kind}",
                        partial(run_layer, name, how, training, dtype),
                    )


# --- models and training steps

TINY = {
    "image": ["modality.size=[32,32]", "modality.codec.channels=4"],
    "pointcloud": ["modality.num_points=90", "modality.tokens.resolution=16"],
    "video": ["modality.frames=5", "modality.size=[16,16]", "modality.codec.channels=4", "modality.codec.steps=0"],
}  # fmt: skip
MODELS: dict[str, list[str]] = {
    "image": ["modality=image"],
    "image, rope": ["modality=image", "model.rope=true"],
    "image, windows": ["modality=image", "model.attention=window", "model.window=[2,2]"],
    "image, native": ["modality=image", "modality.native=true", "modality.budget=100"],
    "image, native, windows": [
        "modality=image", "modality.native=true", "modality.budget=100", "model.attention=window",
        "model.window=[2,2]",
    ],
    "image, text": ["modality=image", "conditioning=text", "encoder@conditioning.encoder=learned"],
    "image, ddpm": ["modality=image", "process=ddpm", "scheduler=ddim"],
    "image, given": ["modality=image", "given=0.7"],
    "image, times per token": ["modality=image", "trainer.time_per=token"],
    "image, timestep": ["modality=image", "router=timestep"],
    "image, min_snr": ["modality=image", "objective=min_snr"],
    "image, huber": ["modality=image", "objective=huber"],
    "clouds": ["modality=pointcloud"],
    "clouds, voxels alone": ["modality=pointcloud", "tokens@modality.tokens=voxels"],
    "clouds, occupied": ["modality=pointcloud", "modality.tokens.kept=occupied"],
    "clouds, occupied, windows": [
        "modality=pointcloud", "modality.tokens.kept=occupied", "model.attention=window", "model.window=[2,2,2]",
    ],
    "clouds, masked": ["modality=pointcloud", "model=masked", "model.hidden_size=48", "model.num_heads=4"],
    "clips": ["modality=video"],
    "clips, factorised": ["modality=video", "model.attention=factorised"],
    "clips, times per frame": ["modality=video", "trainer.time_per=frame"],
}  # fmt: skip


def settled(words: list[str]) -> dict[str, Any]:
    modality = words[0].partition("=")[2]
    model = [] if any(word.startswith("model=") for word in words) else ["model=debug"]
    return subjects.composed(
        "train", *words, *model, *TINY[modality], "trainer.batch_size=2", "trainer.precision=bf16"
    )


def some_patches(coords: torch.Tensor, resolution: int, patch: int) -> Layout:
    """What `touched` finds, of which only a GPU would have the values."""
    with suppress(Exception):
        touched(coords, resolution, patch)
    grid = (resolution // patch,) * 3
    return Layout.partly(
        grid, torch.empty(9 * len(coords), 3, dtype=torch.long, device=CUDA), (9,) * len(coords)
    )


def some_tokens(
    model: MaskedDiTMoE, occupied: torch.Tensor, layout: Layout
) -> tuple[torch.Tensor, list[int]]:
    """What `draw_kept` draws, likewise."""
    with suppress(Exception):
        draw_kept(model, occupied, layout)
    counts = [5] * len(layout.grids)
    return torch.empty(sum(counts), dtype=torch.long, device=CUDA), counts


draw_kept = MaskedDiTMoE.draw_kept


def run_training(words: list[str]) -> None:
    """Two steps of a trainer, all but the gradients' values."""
    with (
        patch("modalities.pointcloud.tokens.voxel_tokens.touched", some_patches),
        patch.object(MaskedDiTMoE, "draw_kept", some_tokens),
    ):
        _run_training(settled(words))


def _run_training(config: dict[str, Any]) -> None:
    modality = build.make_modality(config)
    build.remember_conditioning(config, modality)
    model = there(build.make_model(config, modality))
    process = build.make(config["process"])
    options: Options = build.make(config["trainer"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model, process, build.make_objective(config, process), modality,
            lambda parameters: build.make_optimizer(config, parameters), Path(folder), {}, None, options, 0,
            ParameterGroups(), given=config["given"],
        )  # fmt: skip
        for step in range(2):
            trainer.step = step
            numbers = trainer._train_step()
            assert numbers is not None
            trainer.meter.add(numbers)


def models() -> Iterator[Case]:
    for name, words in MODELS.items():
        yield f"train {name}", partial(run_training, words)
    for name in subjects.find("router", subjects.OWN):
        if name != "dense":
            yield f"train router {name}", partial(run_training, ["modality=image", f"router={name}"])
    yield "train router dense", partial(run_training, ["modality=image", "router=dense"])


# --- sampling


def made(config: dict[str, Any], modality: Any, memory: LowMemory) -> DiTMoE:
    """A model that samples, its weights kept as is wanted: packed, or the experts on the host."""
    whole = build.make_model(config, modality)
    weights = {name: value.detach() for name, value in whole.named_parameters()}
    model = there(memory.emptied(whole)).eval()
    memory.fill(model, weights.__getitem__, CUDA)
    return model


stale = FirstBlockCache.stale


def some_stale(cache: FirstBlockCache, change: torch.Tensor) -> list[int]:
    """What is stale: all at first, then one sample, of which only a GPU would have the values."""
    rows = stale(cache, change)
    return rows if cache._change is None else [0]


def pieces_of(noise: torch.Tensor) -> Given:
    """Of each sample the first quarter, told to the model, and of a place beside it some pieces."""
    known = torch.zeros(1, 1, *noise.shape[2:], dtype=torch.bool)
    pieces = known.clone()
    known[:, :, : noise.shape[2] // 4], pieces[:, :, -1:] = True, True
    return Given(torch.zeros(noise.shape), known, pieces=pieces)


def run_sampling(
    words: list[str],
    guidance: float = 2.0,
    memory: LowMemory = LowMemory(),  # noqa: B008  (frozen)
    first_block_cache: float = 0.0,
    weaker: bool = False,
    given: Callable[[torch.Tensor], Given] | None = None,
) -> None:
    """Three steps with guidance."""
    config = settled(words)
    modality = build.make_modality(config)
    model = made(config, modality, memory)
    other = made(config, modality, LowMemory(memory.weights)) if weaker else None
    process = build.make(config["process"])
    scheduler = make_scheduler(build.make(config["scheduler"]), process)
    asked = model.conditioning.ask(2, modality.classes).to(CUDA, non_blocking=True)
    generators = [torch.Generator() for _ in range(2)]
    noise = torch.empty(2, *modality.sample_shape, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16), patch.object(FirstBlockCache, "stale", some_stale):
        x = denoise(
            model, process, scheduler, noise, asked, steps=3, guidance=guidance, generators=generators,
            weaker=other, first_block_cache=first_block_cache,
            given=None if given is None else given(noise).to(CUDA),
        )  # fmt: skip
    assert (x.shape, x.device.type) == (noise.shape, "cuda")


def sampling() -> Iterator[Case]:
    flow = ("flow_ancestral", "flow_euler", "flow_heun", "dpmpp", "dpmpp_sde", "unipc")
    for process, names in {
        "flow_matching": flow,
        "ddpm": ("ddim", "ddpm", "euler", "dpmpp", "dpmpp_sde", "unipc"),
    }.items():
        for name in names:
            words = ["modality=image", f"process={process}", f"scheduler={name}"]
            yield f"sample {process}, {name}", partial(run_sampling, words)
    for name, words in {"clouds": ["modality=pointcloud"], "clips": ["modality=video"]}.items():
        yield f"sample {name}", partial(run_sampling, words)
    image = ["modality=image"]
    for form in ("bf16", "int8"):
        yield f"sample weights {form}", partial(run_sampling, image, memory=LowMemory(form))
    for form in (None, "int8"):
        yield (
            f"sample offload experts, {form}",
            partial(run_sampling, image, memory=LowMemory(form, "experts")),
        )
    for words in ([*image], [*image, "router=relu"]):
        yield (
            f"sample first_block_cache {' '.join(words)}",
            partial(run_sampling, words, first_block_cache=0.1),
        )
    yield "sample guidance_model", partial(run_sampling, image, weaker=True)
    yield (
        "sample guidance_model, int8, cached",
        partial(run_sampling, image, memory=LowMemory("int8"), weaker=True, first_block_cache=0.1),
    )
    yield "sample given pieces", partial(run_sampling, image, given=pieces_of)
    for name in subjects.find("router", subjects.OWN):
        if name != "dense":
            yield f"sample router {name}", partial(run_sampling, ["modality=image", f"router={name}"])


# --- torch.compile, on tensors of the host that have values

BREAKS = {
    "image, router base": "SciPy solves its assignment",
    "image, router timestep": "the segments of the noise are found on the host",
}
"""What torch.compile cannot trace as one graph, and why; it runs in parts."""


def run_compiled(words: list[str]) -> None:
    """One graph of the whole model, training with its gradients and sampling, and what it gives."""
    config = settled(words)
    modality = build.make_modality(config)
    model = build.make_model(config, modality)
    x, told = modality.batch(2, 0, 0)
    asked, t = model.conditioning.read(told), torch.tensor([300.0, 700.0])
    for training in (True, False):
        torch._dynamo.reset()
        model.train(training)
        y, _ = torch.compile(model, fullgraph=True, backend="aot_eager")(x, t, asked)
        assert torch.allclose(y, model(x, t, asked)[0], atol=1e-4)
        if training:
            y.square().mean().backward()


def compiled() -> Iterator[Case]:
    kinds = {"clouds": ["modality=pointcloud"], "clips": ["modality=video"]}
    kinds |= {
        f"image, router {name}": ["modality=image", f"router={name}"]
        for name in subjects.find("router", subjects.OWN)
    }
    for name, words in kinds.items():
        yield f"compile {name}", partial(run_compiled, words)


# --- what is wrong


def check(case: Callable[[], Any], waits: Waits, there_is_none: bool = True) -> str:
    """What is wrong with a case, nothing if nothing."""
    try:
        with fake_cuda(waits) if there_is_none else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)
        own = next(
            (f for f in reversed(frame) if "/tests/" not in f.filename and "ditmoe" in f.filename), frame[-1]
        )
        return f"{type(error).__name__} at {Path(own.filename).name}:{own.lineno}: {str(error).splitlines()[0][:200]}"
    return ""


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="cases whose name fits, such as 'layer relu*'")
    parser.add_argument("--verbose", action="store_true", help="each case, and where the host waits in it")
    options = parser.parse_args()
    if not torch.version.cuda:
        sys.exit(
            "torch must be its CUDA build (pip install torch in an environment of its own), got a CPU build"
        )
    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    wrong, total, met, start = 0, 0, set(), time.monotonic()
    for name, case in [*layers(), *models(), *sampling(), *compiled()]:
        if not fnmatch.fnmatch(name, options.only):
            continue
        waits = Waits()
        compiles = name.startswith("compile ")
        said = check(case, waits, not compiles)
        if compiles and name.removeprefix("compile ") in BREAKS:
            said = "" if said else "is traced as one graph: strike it from BREAKS"
        known = {place for place in WAITS if any(place in found for found in waits.found)}
        more = sorted(found for found in waits.found if not any(place in found for place in WAITS))
        met, total = met | known, total + 1
        if said or more or options.verbose:
            print(
                "; ".join([name, *filter(None, [said]), *more, *(f"({place})" for place in known)]),
                flush=True,
            )
        wrong += bool(said or more)
    unmet = [] if options.only != "*" else sorted(WAITS.keys() - met)
    for place in unmet:
        print(f"nobody waits at {place}: strike it from WAITS")
    took = time.monotonic() - start
    print(f"{total} cases, {wrong} wrong, waits at {', '.join(sorted(met)) or 'none'}, {took:.0f} s")
    sys.exit(bool(wrong or unmet))


if __name__ == "__main__":
    main()
