"""The score of a set of pictures in GenEval (arXiv 2310.11513), with what makes it readable."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ditmoe.checkpoint.atomic import digest
from ditmoe.checkpoint.transformers_folder import library_for
from ditmoe.modality import Report, Samples
from ditmoe.outside import at_home, printable
from modalities.image.metrics import by_prompt, geneval
from modalities.image.metrics.by_prompt import Paths
from modalities.image.metrics.detector import DETECTOR, Detector
from modalities.image.metrics.geneval import COLOURS, MOST, OF_COUNTING, THRESHOLD, Found, Required
from modalities.shared.clip_model import LONGEST, Clip
from modalities.shared.clip_score import OTHERS
from modalities.shared.confidence import of_mean, share_of_groups, wilson

NAME, OPTION, WITH = "geneval", "modality.evaluation.geneval", "modality.evaluation.detector"
TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
GREY = 0x99
DIFFERS = (
    "compare numbers of one detector and CLIP only: published ones are by mmdet's Mask2Former (Swin-S, shorter side "
    "800, at most 1333) and open_clip's ViT-L/14, these by models of transformers and their preprocessing"
)


def option(evaluation: dict[str, Any]) -> Paths | None:
    """Take the options out of those of an evaluation.

    Raises:
        ValueError: if they are neither text nor null, or one of them lacks the other.
    """
    return by_prompt.option(evaluation, NAME, "detector", "a file of requirements, and what finds objects")


class Colours:
    """The colour of an object, to a CLIP: that whose captions, on average, are nearest to its crop on grey."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self.told = clip, f"{clip.name}, SHA-256 {clip.fingerprint[:32]}"
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"], found: Found, name: str) -> str:
        """Of an object in a picture, whose class has this name."""
        if name not in self._known:
            told = [each.format(colour=colour, name=name) for colour in COLOURS for each in TEMPLATES]
            each = self._clip.of_captions(told).reshape(len(COLOURS), len(TEMPLATES), -1)
            mean = each.mean(1)
            self._known[name] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        seen = self._clip.of_pictures([cropped(picture, found)])[0]
        return COLOURS[int((self._known[name] @ seen).argmax())]


def cropped(picture: UInt8[np.ndarray, "H W 3"], found: Found) -> UInt8[np.ndarray, "h w 3"]:
    """The box of an object, grey outside its mask; of one too long for a CLIP, which looks at a square, the middle."""
    left, top, right, bottom = found.box
    part = np.where(found.mask[..., None], picture, np.uint8(GREY))[top:bottom, left:right]
    most = LONGEST * min(part.shape[:2])
    down, along = (max(0, (side - most) // 2) for side in part.shape[:2])
    return np.ascontiguousarray(part[down : down + most, along : along + most])


@dataclass(frozen=True)
class Judge:
    """What judges pictures: the requirements of their prompts, a detector, and a CLIP for colours."""

    file: str
    required: Mapping[str, Required]
    detector: Detector
    colours: Colours | None


def opened(paths: Paths | None, prompts: Sequence[str] | None, clip: Clip | None) -> Judge | None:
    """The judge of pictures of these prompts, of which some have requirements; None without the options.

    Raises:
        OSError, ValueError: one line, if none has, or if what judges is missing, none, or cannot judge all of them.
    """
    if paths is None:
        return None
    required = by_prompt.of_samples(OPTION, paths, prompts, geneval.read)
    if clip is None and (coloured := next((one for one in required.values() if one.has_colours), None)):
        raise ValueError(
            f"{OPTION} needs modality.evaluation.clip too, for the colours of {coloured.prompt!r}"
        )
    detector = _detector(paths)
    known = set(map(geneval.canonical, detector.classes))
    for name in (name for one in required.values() for name in one.classes):
        if geneval.canonical(name) not in known:
            raise ValueError(
                f"{WITH} must be one that knows all classes of {OPTION}, but {detector.name} knows no {name!r}"
            )
    file = at_home(paths.file)
    told = f"{printable(file.name)}, SHA-256 {digest(file)[:32]}"
    return Judge(told, required, detector, Colours(clip) if clip else None)


def _detector(paths: Paths) -> Detector:
    path, kind = os.fspath(paths.model), "Mask2FormerForUniversalSegmentation"
    library_for(DETECTOR)
    what = f"a folder with {kind} in safetensors and preprocessor_config.json, or such a name on the hub"
    return by_prompt.tried(f"{WITH} must be a Mask2Former of transformers, {what}", lambda: Detector(path))


@dataclass(frozen=True)
class _Verdict:
    """Whether a picture is right, and whether it would be for another prompt of its task; None: there is none."""

    required: Required
    own: bool
    other: bool | None


def added(report: Report, judge: Judge | None, generated: Samples, progress: bool = True) -> Report:
    """The report with `geneval` if there is a judge: the mean over tasks of the share of right pictures.

    Values: `geneval/<task>`, too. Row "other prompts": the same pictures, each by the requirements of the next distinct
    prompt of its task. Intervals: prompts are independent, pictures of one are not. Pictures without requirements are
    left out and counted.
    """
    if judge is None:
        return report
    verdicts = _judged(judge, generated, progress)
    values, intervals = _scores(verdicts, lambda one: one.own)
    compared = [one for one in verdicts if one.other is not None]
    rows = {}
    notes = by_prompt.about_alone(NAME, (one.required for one in verdicts if one.other is None))
    if compared:
        others, _ = _scores(compared, lambda one: one.other)
        if len(compared) < len(verdicts):
            del others[NAME]  # the mean over fewer tasks
        rows[OTHERS] = others
    if len(compared) == len(verdicts) and intervals[NAME][0] <= others[NAME]:
        notes.append(
            f"{NAME} is no higher than with {OTHERS}, as far as chance goes: the pictures do not show what theirs say"
        )
    return report.joined(Report(values, _protocol(judge, verdicts, len(generated)), intervals, rows, notes))


def _judged(judge: Judge, samples: Samples, progress: bool) -> list[_Verdict]:
    verdicts = []
    for picture, own, other in by_prompt.pairs(NAME, samples, judge.required, progress):
        objects = judge.detector(picture, own.threshold)
        colour = partial(judge.colours, picture) if judge.colours else lambda *_: ""
        right = None if other is None else geneval.is_right(other, objects, colour)
        verdicts.append(_Verdict(own, geneval.is_right(own, objects, colour), right))
    return verdicts


def _scores(
    verdicts: Sequence[_Verdict], of: Callable[[_Verdict], bool | None]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """`geneval`, and of each task; and their intervals."""
    values, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for tag in dict.fromkeys(one.required.tag for one in verdicts):
        some = [one for one in verdicts if one.required.tag == tag]
        group = by_prompt.groups(one.required for one in some)
        share, num = share_of_groups(np.array([bool(of(one)) for one in some]), group)
        values[f"{NAME}/{tag}"], intervals[f"{NAME}/{tag}"] = share, wilson(share, num)
    middle = of_mean(list(values.values()), list(intervals.values()))
    return {NAME: float(np.mean(list(values.values()))), **values}, {NAME: middle, **intervals}


def _protocol(judge: Judge, verdicts: Sequence[_Verdict], num: int) -> dict[str, str]:
    tasks, prompts = (
        len({of(one.required) for one in verdicts}) for of in (lambda r: r.tag, lambda r: r.prompt)
    )
    left = f", {num - len(verdicts)} pictures without requirements left out" if num > len(verdicts) else ""
    out = {
        NAME: f"mean over {tasks} tasks of the share of right pictures (arXiv 2310.11513), {len(verdicts)} pictures of "
        f"{prompts} prompts{left}",
        "geneval requirements": judge.file,
        "geneval detector": f"{judge.detector.told}; scores above {THRESHOLD}, in counting {OF_COUNTING}, at most "
        f"{MOST} of a class",
        "geneval intervals": by_prompt.INTERVALS,
        "geneval differs": DIFFERS,
    }
    if judge.colours:
        out["geneval colours"] = f"{judge.colours.told}; on crops that are grey outside their masks"
    return out
