"""The input fields of the demo page, and the conversion of their values to options of `sample`."""

import html
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmoe.conditioning import label_of
from ditmoe.config.restore import Restored, by_top_k
from ditmoe.diffusion import Sampling
from ditmoe.modality import GivenParts
from ditmoe.outside import check_numbers, is_regular, printable, real_path

MOST_GIVEN = 8
"""Most given files at once."""
LARGEST_SEED = 2**53 - 1
"""The largest integer that a browser represents exactly."""
LONGEST = 2000
"""Most characters in a field."""
_WORD = re.compile(r"[A-Za-z_]{1,40}")


@dataclass(frozen=True)
class Field:
    """An input field.

    Attributes:
        name: the option of `sample`.
        kind: "choice", "text", "count", "number", "value" (a number, a list of numbers, or a single word) or "files".
        about: a short description.
        default: its initial value; a field at its default sets no option, except `num` and `seed`.
        choices: pairs of displayed text and value.
        most: the largest count, or most files.
        empty: what an empty field means, shown in it.
    """

    name: str
    kind: str
    about: str = ""
    default: Any = None
    choices: Sequence[tuple[str, str]] = ()
    most: int | None = None
    empty: str = ""


def fields_of(restored: Restored, most: int) -> list[Field]:
    """The fields for a checkpoint, in order of importance.

    Args:
        most: most samples per request.
    """
    modality, conditioning = restored.modality, restored.model.conditioning
    sampling = Sampling.of(restored.config)
    found = []
    for word in ("prompt", "label", "negative"):
        if word in conditioning.words and word == "label":
            found.append(Field(word, "choice", "the class", "", _labels(restored)))
        elif word in conditioning.words:
            found.append(Field(word, "text", conditioning.words[word], ""))
    found += [
        Field("num", "count", "how many samples", min(4, most), most=most),
        Field("seed", "count", "the same seed gives the same samples", 0, most=LARGEST_SEED),
        Field("steps", "count", "denoising steps: the time grows with them", sampling.steps, most=1000),
        Field(
            "guidance", "number", "how strictly samples follow what is asked for; 1: none", sampling.guidance
        ),
    ]
    if router := by_top_k(restored.config):
        told = "experts per token; {} in training"
        found.append(
            Field("top_k", "count", told.format(router["top_k"]), router["top_k"], most=router["num_experts"])
        )
    found += [Field(word, "value", about, empty="as in training") for word, about in modality.words.items()]
    return found + _of_given(modality, restored.config["given"])


def _of_given(modality: Any, trained: float) -> list[Field]:
    """The fields for given parts; guidance by them needs a model that was trained with them."""
    if not isinstance(modality, GivenParts):
        return []
    about = "the known part of each sample" + ("" if trained else "; this model was not trained with one")
    changes = "0 to 1: change the given samples by so much, in place of filling in"
    found = [
        Field("given", "files", about, most=MOST_GIVEN),
        Field("strength", "value", changes, empty="not changed"),
    ]
    if trained:
        found.append(
            Field("given_guidance", "number", "how strictly samples follow the known part; 1: none", 1.0)
        )
    for word, about in modality.given_words.items():
        file = word in modality.given_files
        found.append(Field(word, "files" if file else "value", about, most=1 if file else None))
    return found


def _labels(restored: Restored) -> list[tuple[str, str]]:
    first = [("each class in turn", ""), ("no class", "none"), ("at random", "random")]
    if "prompt" in restored.model.conditioning.words:
        first[0] = ("by the prompt", "")
    classes = restored.modality.classes
    return first + [(printable(name), label_of(classes, index)) for index, name in enumerate(classes)]


def read(fields: Sequence[Field], values: Mapping[str, Any], uploads: Path) -> dict[str, Any]:
    """Options of `sample` for the values of the fields, without those at their defaults.

    Args:
        uploads: the folder of uploads; paths outside it are refused, whatever a browser sends.

    Raises:
        ValueError: with one line, for an invalid value.
    """
    words: dict[str, Any] = {}
    for field in fields:
        value = _READ[field.kind](field, values.get(field.name), uploads)
        if value is not None and (field.name in ("num", "seed") or value != field.default):
            words[field.name] = value
    check_numbers(words)
    return words


def _choice(field: Field, value: Any, _: Path) -> str | None:
    if not value:
        return None
    if value not in [meant for _, meant in field.choices]:
        raise ValueError(f"{field.name} must be one of its choices, got {printable(str(value)[:80])}")
    return str(value)


def _text(field: Field, value: Any, _: Path) -> str | None:
    text = str(value or "").strip()
    if len(text) > LONGEST:
        raise ValueError(f"{field.name} must have at most {LONGEST} letters, got {len(text)}")
    return text or None


def _count(field: Field, value: Any, _: Path) -> int:
    if value is None or value == "":
        raise ValueError(f"{field.name} must be a whole number, got none")
    least = 0 if field.name == "seed" else 1
    if not _is_number(value) or value != int(value) or not least <= value <= (field.most or math.inf):
        raise ValueError(
            f"{field.name} must be a whole number from {least} to {field.most}, got {_short(value)}"
        )
    return int(value)


def _number(field: Field, value: Any, _: Path) -> float | None:
    if value is None or value == "":
        return None
    if not _is_number(value):
        raise ValueError(f"{field.name} must be a number, got {_short(value)}")
    return float(value)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold; JSON has whole numbers beyond them."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _value(field: Field, value: Any, _: Path) -> Any:
    """A value as on the command line, except text that could be a path."""
    text = _text(field, value, _)
    if text is None or _WORD.fullmatch(text):
        return {"true": True, "false": False, "null": None}.get(text or "null", text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    numbers = found if isinstance(found, list) else [found]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise ValueError(
            f"{field.name} must be a number, a list [a,b] of numbers or one word, got {_short(text)}"
        )
    return found


def _files(field: Field, value: Any, uploads: Path) -> Any:
    paths = [Path(str(each)) for each in (value if isinstance(value, list) else [value]) if each]
    if field.most is not None and len(paths) > field.most:
        raise ValueError(f"{field.name} must be at most {field.most} files, got {len(paths)}")
    for path in paths:
        if not is_uploaded(path, uploads):
            raise ValueError(f"{field.name} must be a file that was uploaded, got {_short(path.name)}")
    return None if not paths else str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]


def is_uploaded(path: Path, uploads: Path) -> bool:
    """Whether a path is that of a regular file in the folder of uploads, links followed."""
    return real_path(path).is_relative_to(real_path(uploads)) and is_regular(path)


def take_uploads_alone(part: Any, uploads: Path) -> None:
    """Make a Gradio component refuse paths and URLs outside the uploads, before it copies or fetches them.

    A Gradio page that is mounted, not launched, trusts any path in a request: it copied /etc/passwd to the uploads, and
    /dev/zero without end.
    """
    for name in ("move_resource_to_block_cache", "async_move_resource_to_block_cache"):
        setattr(part, name, _refusing(getattr(part, name), uploads))


def _refusing(move: Callable[[Any], Any], uploads: Path) -> Callable[[Any], Any]:
    def moved(path: Any) -> Any:
        if path is not None and not is_uploaded(Path(path), uploads):
            raise ValueError(f"a file must be one that was uploaded, got {_short(Path(path).name)}")
        return move(path)

    return moved


def refuse_in_a_line(page: Any, refusal: Callable[[str], Exception]) -> None:
    """Replace tracebacks of Gradio's own input checks by errors of one line.

    Args:
        page: the page, whose components process values before `read` does.
        refusal: makes the error from its message.
    """
    take = page.preprocess_data

    async def taken(*values: Any, **options: Any) -> Any:
        try:
            return await take(*values, **options)
        except Exception as error:  # values of any type can raise errors of any type
            told = str(getattr(error, "message", error))  # str() of Gradio's own error adds quotes
            raise refusal(html.escape(_short(" ".join(told.split())))) from None

    page.preprocess_data = taken


def _short(value: Any) -> str:
    text = printable(str(value)[:81])
    return text if len(text) <= 80 else f"{text[:80]}…"


_READ = {
    "choice": _choice,
    "text": _text,
    "count": _count,
    "number": _number,
    "value": _value,
    "files": _files,
}
