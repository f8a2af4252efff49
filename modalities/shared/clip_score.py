"""Whether samples show what their prompts say, to a CLIP (CLIPScore, arXiv 2104.08718), with what makes it readable."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from tqdm import tqdm

from ditmoe.checkpoint.transformers_folder import library_for
from ditmoe.conditioning import TEXT, Condition, captions_of, text_rows
from ditmoe.modality import Report, Samples
from ditmoe.outside import is_regular, printable, read_object
from modalities.shared.clip_model import CLIP, Clip
from modalities.shared.confidence import Estimate

OPTION, NAME = "modality.evaluation.clip", "clip_score"
WEIGHT = 100
"""w of equation 1, which has 2.5."""
OTHERS, REAL = "other prompts", "held-out"
"""Rows of the controls."""
Pictures = Callable[[Any], Sequence[np.ndarray] | np.ndarray]
"""The pictures of a sample that are scored, of a clip some frames; none of one that cannot be read."""


def opened(clip: str | PathLike | None, prompts: Sequence[str] | None) -> Clip | None:
    """The CLIP of the option, for samples of these prompts; None without the option.

    Raises:
        ValueError: one line, if it is no CLIP, or if nothing was asked for by text.
    """
    if clip is None:
        return None
    if not any(prompts or ()):
        what = "none are known" if prompts is None else "none of them says anything"
        raise ValueError(
            f"{OPTION} scores samples by their prompts, of a model with conditioning=text or in prompts.json beside "
            f"their files, and {what}: leave it out"
        )
    return load(clip)


def option(evaluation: dict[str, Any]) -> str | PathLike | None:
    """Take the option out of those of an evaluation.

    Raises:
        ValueError: if it is neither text nor null.
    """
    clip = evaluation.pop("clip", None)
    if not isinstance(clip, str | PathLike | None):
        raise ValueError(f"{OPTION} must be a folder or a name on the hub, or null, got {clip!r}")
    return clip


def check_training(clip: str | PathLike | None, captions: bool) -> Clip | None:
    """Check before training that its samples will have prompts, and open the CLIP of the option.

    Raises:
        ValueError: one line, if not.
    """
    return opened(clip, ["its captions"] if captions else None)


def load(clip: str | PathLike) -> Clip:
    """The CLIP of the option, from a folder or a name on the hub.

    Raises:
        ValueError: one line, if it is none, or may not be opened.
    """
    path = os.fspath(clip)  # of a stranger's configuration it says how to allow it
    library_for(CLIP)
    try:
        return Clip(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{OPTION} must be a CLIP of transformers, a folder with CLIPModel in safetensors, its tokenizer and "
            f"preprocessor_config.json, or such a name on the hub: {error}"
        ) from error


def prompts_of(samples: Samples) -> list[str] | None:
    """What each sample was asked for by, "" for nothing; None if that is not known."""
    return None if samples.asked is None else captions_of(samples.asked)


def with_prompts(clip: str | PathLike | None, samples: Samples, path: Path) -> Samples:
    """A set that was read from `path`, for the option with the prompts that `ditmoe.sample` wrote there, if it did.

    Raises:
        ValueError: one line, if they are damaged, or not those of these samples.
    """
    file = path / "prompts.json" if path.is_dir() else path.with_suffix(".prompts.json")
    if clip is None or not is_regular(file):
        return samples
    prompts = read_object(file).get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{printable(file)} must hold a list of texts, prompts")
    if samples.names is None and len(prompts) != len(samples):
        raise ValueError(
            f"{printable(file)} must have a prompt for each of {len(samples)} samples, got {len(prompts)}"
        )
    told = prompts if samples.names is None else [_named(prompts, name, file) for name in samples.names]
    asked = Condition({TEXT: text_rows(told)}, torch.tensor([not one.strip() for one in told]))
    return replace(samples, asked=asked)


def _named(prompts: Sequence[str], name: str, file: Path) -> str:
    found = re.search(r"-(\d{4,9})(\.\w+)?$", name, re.ASCII)
    if found is None or int(found[1]) >= len(prompts):
        raise ValueError(
            f"{printable(file)} must have the prompt of {printable(name)}: the first of its {len(prompts)} prompts is "
            "that of sample-0000, and so on"
        )
    return prompts[int(found[1])]


def added(
    report: Report,
    clip: Clip | None,
    generated: Samples,
    reference: Samples,
    pictures: Pictures,
    shown: str,
    batch: int = 32,
    progress: bool = True,
) -> Report:
    """The report with `clip_score` if there is a CLIP: the mean over samples of 100 max(cos(picture, prompt), 0).

    Rows: "other prompts", the same samples, each with the next of the distinct prompts; "held-out", real samples with
    their own captions, if these are known. Samples without a prompt are left out and counted.

    Args:
        shown: what `pictures` takes of a sample, for the protocol.
    """
    if clip is None:
        return report
    drawn = _look(clip, generated, pictures, batch, progress)
    own = drawn.scores(drawn.own)
    values, intervals = {NAME: float(own.mean())}, {}
    if len(own) > 1:
        intervals[NAME] = _estimate(own).interval(0.0)
    rows, notes = dict[str, dict[str, float]](), list[str]()
    if len(drawn.prompts) > 1:
        other = drawn.scores((drawn.own + 1) % len(drawn.prompts))
        rows[OTHERS] = {NAME: float(other.mean())}
        notes += _about_gain(_estimate(own - other))
    else:
        notes.append(f"all samples have one prompt: {NAME} cannot be compared with {OTHERS}")
    if any(prompts_of(reference) or ()):
        real = _look(clip, reference, pictures, batch, progress)
        rows[REAL] = {NAME: float(real.scores(real.own).mean())}
    if drawn.cut:
        notes.append(
            f"{drawn.cut} of {len(drawn.prompts)} prompts have more than the {clip.limit} tokens that this CLIP reads: "
            f"{NAME} does not see their ends"
        )
    return report.joined(Report(values, _protocol(clip, drawn, shown), intervals, rows, notes))


@dataclass(frozen=True)
class _Looked:
    """What a CLIP sees of samples that have prompts.

    Attributes:
        seen: of all their pictures.
        owner: the sample that each picture is of.
        own: the prompt that each sample is of.
        prompts: of each distinct one.
        cut: how many of them are cut.
        left: how many samples were left out.
    """

    seen: Float[np.ndarray, "P W"]
    owner: Int64[np.ndarray, " P"]
    own: Int64[np.ndarray, " S"]
    prompts: Float[np.ndarray, "D W"]
    cut: int
    left: int

    def scores(self, of: Int64[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Of each sample with these prompts, the mean over its pictures."""
        cosines = np.einsum("pw, pw -> p", self.seen, self.prompts[of[self.owner]], dtype=np.float64)
        return np.bincount(self.owner, WEIGHT * cosines.clip(0)) / np.bincount(self.owner)


def _look(clip: Clip, samples: Samples, pictures: Pictures, batch: int, progress: bool) -> _Looked:
    told, owner, kept = prompts_of(samples) or [], list[int](), list[str]()

    def each() -> Any:
        bar = tqdm(samples.data, desc="clip", unit="sample", leave=False, mininterval=1, disable=not progress)
        for sample, prompt in zip(bar, told, strict=True):
            if prompt and len(some := pictures(sample)):
                owner.extend([len(kept)] * len(some))
                kept.append(prompt)
                yield from some

    seen = clip.of_pictures(each(), batch)
    if not kept:
        raise ValueError(f"{OPTION} scores samples that can be read, got none")
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(kept))}
    return _Looked(
        seen,
        np.array(owner, np.int64),
        np.array([distinct[prompt] for prompt in kept], np.int64),
        clip.of_captions(list(distinct), batch),
        sum(map(clip.is_cut, distinct)),
        len(told) - len(kept),
    )


def _estimate(each: Float[np.ndarray, " S"]) -> Estimate:
    """The mean of independent samples, two or more."""
    return Estimate(float(each.mean()), float(each.std(ddof=1)) / len(each) ** 0.5, df=len(each) - 1)


def _about_gain(gain: Estimate) -> list[str]:
    low, high = gain.interval()
    if low > 0:
        return []
    return [
        f"{NAME} is no higher than with {OTHERS}, as far as chance goes (by {gain.value:.3g}, {low:.3g} .. "
        f"{high:.3g}): to this CLIP the samples do not show what theirs say"
    ]


def _protocol(clip: Clip, drawn: _Looked, shown: str) -> dict[str, str]:
    prepared = clip.prepared
    resized = f"shorter side {prepared.size}" if isinstance(prepared.size, int) else f"{prepared.size}"
    crop = "" if prepared.crop is None else f", the middle {prepared.crop[0]} x {prepared.crop[1]}"
    left = f", {drawn.left} samples without a prompt or unreadable left out" if drawn.left else ""
    return {
        NAME: f"mean over {len(drawn.own)} samples of {WEIGHT} max(cos, 0) (arXiv 2104.08718, there 2.5 for {WEIGHT})",
        "clip": f"{clip.name}, SHA-256 {clip.fingerprint[:32]}",
        "clip pictures": f"{shown}; {resized}{crop}, PIL's filter {prepared.resample}",
        "clip prompts": f"{len(drawn.prompts)} distinct, as they are, {drawn.cut} cut at {clip.limit} tokens{left}",
    }
