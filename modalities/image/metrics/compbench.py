"""Attribute binding of T2I-CompBench (arXiv 2307.06350): does each thing have the colour, shape or texture said of it?

A BLIP is asked about each noun phrase of a prompt ("a red book?"); the score of a picture is the product of its
probabilities of yes against no, that of a category (the tag) the mean over pictures.

The benchmark's other categories are not here: spatial relations and numbers need UniDet, which transformers lacks, and
which knows classes that a Mask2Former of COCO does not; "non-spatial" is a CLIP score; "complex" averages these.
"""

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditmoe.checkpoint.atomic import digest
from ditmoe.checkpoint.transformers_folder import library_for
from ditmoe.modality import Report, Samples
from ditmoe.outside import at_home, printable, shown
from modalities.image.metrics import by_prompt
from modalities.image.metrics.blip import BLIP, Blip, question
from modalities.image.metrics.by_prompt import Paths
from modalities.shared.clip_score import OTHERS
from modalities.shared.confidence import Estimate, mean_of_groups

NAME, OPTION, WITH = "compbench", "modality.evaluation.compbench", "modality.evaluation.vqa"
TAGS = ("color", "shape", "texture")
UNASKED = ("top", "the side", "the left", "the right")
"""Phrases that are left out: places."""
ASKED, MOST_PHRASES = 8, 64
"""Phrases of a prompt that are asked about, the first ones; and those of a line in a file."""
SPACY = "en_core_web_sm"
DIFFERS = (
    "compare numbers of one BLIP and one way to phrases only: published ones are by BLIP's own code at 480 x 480, with "
    "spaCy's phrases, and answers rounded to four digits"
)


@dataclass(frozen=True)
class Required(by_prompt.Line):
    """What pictures of a prompt must show: its noun phrases; None where they are to be found. `tag` is the category."""

    phrases: tuple[str, ...] | None

    @property
    def questions(self) -> list[str]:
        return [question(phrase) for phrase in self.phrases or ()]


def read(file: Path) -> dict[str, Required]:
    """Prompt -> requirements, of a file with a JSON object a line: tag, prompt and, if known, phrases.

    Raises:
        OSError, ValueError: one line, with the number of the line that is wrong.
    """
    return by_prompt.read(file, _required)


def _required(node: Any) -> Required:
    fields = by_prompt.fields(node, "it", ("tag", "prompt"), ("phrases",))
    if (tag := fields["tag"]) not in TAGS:
        raise ValueError(f"tag must be one of {', '.join(TAGS)}, got {shown(tag)}")
    prompt, phrases = by_prompt.squeezed(by_prompt.text(fields["prompt"], "prompt")), None
    if "phrases" in fields:
        phrases = fields["phrases"]
        if not isinstance(phrases, list) or not 0 < len(phrases) <= MOST_PHRASES:
            raise ValueError(f"phrases must be a list of 1 to {MOST_PHRASES} texts, got {shown(phrases)}")
        phrases = kept(by_prompt.text(each, f"phrases[{i}]") for i, each in enumerate(phrases))
        if not phrases:
            raise ValueError(f"phrases must name more than places, which are left out: {', '.join(UNASKED)}")
    return Required(prompt, tag, phrases)


def kept(phrases: Iterable[str]) -> tuple[str, ...]:
    """Those of a prompt that are asked about."""
    return tuple(each for each in phrases if each not in UNASKED)[:ASKED]


def noun_phrases(prompts: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of each prompt that are asked about, as spaCy finds them.

    Raises:
        ValueError: one line, if it is not installed.
    """
    try:
        for package in ("spacy", SPACY):
            importlib.metadata.version(package)
        import spacy

        split = spacy.load(SPACY)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f'{OPTION} must have the noun phrases of {prompts[0]!r} in its line, as "phrases": ["a red book"], or '
            f"spaCy and its {SPACY} must be installed, which find them: {printable(reason)}"
        ) from error
    return [kept(chunk.text for chunk in split(prompt).noun_chunks) for prompt in prompts]


def option(evaluation: dict[str, Any]) -> Paths | None:
    """Take the options out of those of an evaluation.

    Raises:
        ValueError: if they are neither text nor null, or one of them lacks the other.
    """
    return by_prompt.option(
        evaluation, NAME, "vqa", "a file of prompts, and what answers questions about pictures"
    )


@dataclass(frozen=True)
class Judge:
    """What judges pictures: the phrases of their prompts, and a BLIP."""

    file: str
    required: Mapping[str, Required]
    blip: Blip


def opened(paths: Paths | None, prompts: Sequence[str] | None) -> Judge | None:
    """The judge of pictures of these prompts, of which some have requirements; None without the options.

    Prompts in which no noun phrase is found are left out.

    Raises:
        OSError, ValueError: one line, if none has, or if what judges is missing or none.
    """
    if paths is None:
        return None
    required = by_prompt.of_samples(OPTION, paths, prompts, read)
    found, how = [one for one in required.values() if one.phrases is None], ""
    if found:
        phrases = noun_phrases([one.prompt for one in found])
        required |= {one.prompt: replace(one, phrases=each) for one, each in zip(found, phrases, strict=True)}
        how = f"; phrases of {len(found)} prompts by {SPACY} {importlib.metadata.version(SPACY)}"
    asked = {prompt: one for prompt, one in required.items() if one.phrases}
    if not asked:
        raise ValueError(
            f"{OPTION} asks about noun phrases, and the samples' prompts have none, as {next(iter(required))!r}"
        )
    file = at_home(paths.file)
    return Judge(f"{printable(file.name)}, SHA-256 {digest(file)[:32]}{how}", asked, _blip(paths))


def _blip(paths: Paths) -> Blip:
    path, kind = os.fspath(paths.model), "BlipForQuestionAnswering"
    library_for(BLIP)
    what = f"a folder with {kind} in safetensors, its tokenizer and preprocessor_config.json, or such a name on the hub"
    return by_prompt.tried(f"{WITH} must be a BLIP of transformers, {what}", lambda: Blip(path))


@dataclass(frozen=True)
class _Score:
    """Of a picture, and by the phrases of another prompt of its category; None: there is none."""

    required: Required
    own: float
    other: float | None


def added(report: Report, judge: Judge | None, generated: Samples, progress: bool = True) -> Report:
    """The report with `compbench/<category>` if there is a judge: the mean score of its pictures.

    Row "other prompts": the same pictures, each by the phrases of the next distinct prompt of its category. Intervals:
    prompts are independent, pictures of one are not. Pictures without requirements or noun phrases are left out and
    counted.
    """
    if judge is None:
        return report
    scores = _judged(judge, generated, progress)
    values, intervals, others = dict[str, float](), dict[str, tuple[float, float]](), dict[str, float]()
    notes = by_prompt.about_alone(NAME, (one.required for one in scores if one.other is None))
    for tag in dict.fromkeys(one.required.tag for one in scores):
        name, some = f"{NAME}/{tag}", [one for one in scores if one.required.tag == tag]
        own = _mean(some, lambda one: one.own)
        values[name] = own.value
        if own.df:
            low, high = own.interval(0.0)
            intervals[name] = low, min(1.0, high)
        compared = [one for one in some if one.other is not None]
        if compared:
            others[name] = _mean(compared, lambda one: one.other or 0.0).value
            if not _mean(compared, lambda one: one.own - (one.other or 0.0)).interval()[0] > 0:
                notes.append(
                    f"{name} is no higher than with {OTHERS}, as far as chance goes: to this BLIP the pictures do not "
                    "show what theirs say"
                )
    rows = {OTHERS: others} if others else {}
    return report.joined(Report(values, _protocol(judge, scores, len(generated)), intervals, rows, notes))


def _judged(judge: Judge, samples: Samples, progress: bool) -> list[_Score]:
    scores = []
    for picture, own, other in by_prompt.pairs(NAME, samples, judge.required, progress):
        mine = own.questions
        yes = judge.blip(picture, mine + (other.questions if other else []))
        rest = None if other is None else float(yes[len(mine) :].prod())
        scores.append(_Score(own, float(yes[: len(mine)].prod()), rest))
    return scores


def _mean(scores: Sequence[_Score], of: Callable[[_Score], float]) -> Estimate:
    x = np.array([of(one) for one in scores], np.float64)
    return mean_of_groups(x, by_prompt.groups(one.required for one in scores))


def _protocol(judge: Judge, scores: Sequence[_Score], num: int) -> dict[str, str]:
    prompts = len({one.required.prompt for one in scores})
    left = (
        f", {num - len(scores)} pictures without requirements or noun phrases left out"
        if num > len(scores)
        else ""
    )
    return {
        NAME: "attribute binding: mean over pictures of the product over noun phrases of P(yes) against no (arXiv "
        f"2307.06350), {len(scores)} pictures of {prompts} prompts{left}",
        "compbench requirements": judge.file,
        "compbench blip": judge.blip.told,
        "compbench intervals": by_prompt.INTERVALS,
        "compbench differs": DIFFERS,
    }
