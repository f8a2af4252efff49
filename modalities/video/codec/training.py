"""Trains the built-in video autoencoder alone: python -m ditmoe.train_codec modality=video out=codec/"""

import inspect
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ditmoe import checkpoint
from ditmoe.checkpoint import replacing
from ditmoe.outside import printable, tell
from modalities.latent.codec import Batches, to_bytes, to_pixels
from modalities.video.codec.causal_patches import KIND, CausalPatches, Refinement
from modalities.video.metrics.reconstruction import WINDOW, psnr, ssim

SAVE_EVERY = 30.0  # seconds
REPORT = "codec.json"

Clips = UInt8[np.ndarray, "S T H W 3"]


def train_codec(
    codec: CausalPatches,
    fitting: Callable[[], Batches],
    draw: Callable[[int], Float[Tensor, "B 3 T H W"]],
    held_out: Clips,
    setting: Mapping[str, Any],
    out: Path,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Initialise in closed form, refine for `codec.steps` steps, and write checkpoints and codec.json into `out`.

    A call with the same setting resumes a stopped or killed one, with the same result as an uninterrupted run. Shows a
    bar, and at the end PSNR and SSIM on held-out clips, beside those of the closed form.

    Args:
        fitting: gives batches of clips for the principal components and for the latents' statistics.
        draw: step -> training clips of that step.
        setting: what training depends on besides the codec's options; plain values.
        stopped: whether to save and stop after the current step.

    Returns:
        False, if it was stopped.

    Raises:
        ValueError: if `out` has other content.
    """
    record = {"kind": KIND, "options": codec.options,
              "setting": {**setting, "steps": codec.steps, "batch": codec.batch}}  # fmt: skip
    with checkpoint.exclusive_lock(out):
        found = _earlier(out, record)
        step, closed = 0, {}
        refinement = Refinement(codec, codec.steps)
        if found is None:
            codec.begin(iter(tqdm(fitting(), "closed form", unit="batch", leave=False)))
            closed = quality(codec, held_out)
        else:
            checkpoint.fill(found, "fitted_state", codec.state())
            step, closed = found.plain["step"], found.plain["closed form"]
            if found.plain["finished"]:
                tell(f"{out} is trained; another out= starts anew", sys.stdout)
                return True
            refinement.resume(step, found)
            print(f"going on from step {step}")
        step = _refine(
            refinement, draw, step, stopped, lambda now: _save(out, record, refinement, now, closed)
        )
        if step < codec.steps:
            print(f"stopped at step {step}; the same command goes on from there")
            return False
        codec.requires_grad_(False).whiten(fitting())
        reached = quality(codec, held_out)
        protocol = {"clips": len(held_out), "frames": held_out.shape[1], "size": list(held_out.shape[2:4])}
        report = {"closed form": closed, "trained": reached, "held out": protocol, **record}
        with replacing(out / REPORT) as stream:
            stream.write(json.dumps(report, indent=1).encode() + b"\n")
        _save(out, record, refinement, step, closed, finished=True)
    print(summary(report, out))
    return True


def quality(codec: CausalPatches, clips: Clips) -> dict[str, float]:
    """Means over clips of PSNR and, if frames are large enough, SSIM of their reconstructions."""
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    with torch.no_grad():
        for clip in clips:
            x = to_pixels(clip[None]).to(codec.mean.device)
            other = to_bytes(codec.decode(codec.encode(x)))[0]
            found["psnr"].append(psnr(clip, other))
            if min(clip.shape[1:3]) >= WINDOW:
                found["ssim"].append(ssim(clip, other))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def summary(report: Mapping[str, Any], out: Path) -> str:
    """Summarise the results, and the next command to run."""
    held = report["held out"]
    rows = {"closed form": report["closed form"],
            f"after {report['setting']['steps']} steps": report["trained"]}  # fmt: skip
    width = max(map(len, rows))
    lines = [f"{'':{width}}  PSNR (dB)   SSIM   of {held['clips']} held-out clips of {held['frames']} frames of "
             f"{held['size'][0]} x {held['size'][1]}"]  # fmt: skip
    for name, values in rows.items():
        lines.append(f"{name:{width}}  {values['psnr']:9.2f}  {values.get('ssim', math.nan):5.3f}")
    defaults = inspect.signature(CausalPatches).parameters
    words = [shlex.quote(f"modality.codec.path={printable(out)}")] + [
        f"modality.codec.{name}={value}".replace(" ", "")
        for name, value in report["options"].items()
        if list(np.ravel(value)) != list(np.ravel(defaults[name].default))
    ]
    return "\n".join([*lines, f"\nNext:\n  python -m ditmoe.train modality=video {' '.join(words)}"])


def _refine(
    refinement: Refinement,
    draw: Callable[[int], Float[Tensor, "B 3 T H W"]],
    step: int,
    stopped: Callable[[], bool],
    save: Callable[[int], None],
) -> int:
    """Refine from a step on, to the end or until stopped; saves regularly and at the end."""
    saved, kept, error = time.monotonic(), step, math.nan
    with tqdm(total=refinement.steps, initial=step, desc="autoencoder", unit="step", mininterval=1) as bar:
        while step < refinement.steps and not stopped():
            squared = refinement.step(draw(step)).item()
            error = squared if math.isnan(error) else 0.95 * error + 0.05 * squared
            step += 1
            bar.set_postfix_str(f"{10 * math.log10(4 / max(error, 1e-10)):.1f} dB", refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_EVERY:
                save(step)
                saved, kept = time.monotonic(), step
    if kept < step or step == 0:
        save(step)
    return step


def _save(
    out: Path,
    record: Mapping[str, Any],
    refinement: Refinement,
    step: int,
    closed: Mapping[str, float],
    finished: bool = False,
) -> None:
    state = {"fitted_state": refinement.codec.fitted_state(), "optimizer": refinement.state()}
    plain = {"step": step, "finished": finished, "closed form": dict(closed)}
    checkpoint.save(out, step + finished, {**record, **state, **plain})
    checkpoint.keep(out, last=1)


def _earlier(out: Path, record: Mapping[str, Any]) -> checkpoint.Checkpoint | None:
    """The checkpoint of an earlier call, which must be of the same training."""
    if not checkpoint.exists(out):
        if other := [file.name for file in out.iterdir() if file.name != checkpoint.FOLDER]:
            raise ValueError(f"out must be new or a folder of train_codec, but {out} holds {other[0]}")
        return None
    found = checkpoint.find(out)
    if found.plain.get("kind") != KIND:
        raise ValueError(f"out must be new or a folder of train_codec, but {out} holds another checkpoint")
    _check_state(found)
    for part in ("options", "setting"):
        for name, value in record[part].items():
            if found.plain[part].get(name) != value:
                there = printable(found.plain[part].get(name))[:80]
                raise ValueError(
                    f"{out} holds an autoencoder with {name} {there}, got {value}: "
                    "give this one its own out=..., or remove the folder"
                )
    if found.plain["step"] > record["setting"]["steps"] + found.plain["finished"]:
        raise ValueError(f"{found.path} is no state of train_codec: it is behind the last step")
    return found


def _check_state(found: checkpoint.Checkpoint) -> None:
    """Raise ValueError if a checkpoint's plain values are not what `_save` writes: the folder is not trusted."""
    plain = found.plain
    closed, finished = plain.get("closed form"), plain.get("finished")
    sections = all(isinstance(plain.get(part), dict) for part in ("options", "setting"))
    numbers = isinstance(closed, dict) and all(
        name in ("psnr", "ssim") and isinstance(value, float) for name, value in closed.items()
    )
    if not (sections and numbers and type(finished) is bool):
        raise ValueError(f"{found.path} is no state of train_codec, or is damaged")
