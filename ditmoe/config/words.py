"""Options that a modality adds to the command line and to Python, called words: `length=64` for signals."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ditmoe.diffusion import MOST_GUIDANCE
from ditmoe.given import Parts
from ditmoe.modality import GivenParts, Modality
from ditmoe.outside import at_home, check_number, printable
from ditmoe.outside.options import call, check_options


@runtime_checkable
class Owner(Protocol):
    """An object with words of its own, such as a modality with those for the shape of a sample."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def words(self) -> Mapping[str, str]:
        """Word -> short description."""


def split_words(
    words: Mapping[str, Any], *owners: Owner, options: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Distribute words among their owners; the first owner gets a word that several have.

    Args:
        options: options that are handled elsewhere, such as the command's, for suggestions.

    Raises:
        ValueError: one line, for an unknown word, with a suggestion and all known words.
    """
    parts: list[dict[str, Any]] = [{} for _ in owners]
    for word, value in words.items():
        known = [part for part, owner in zip(parts, owners, strict=True) if word in owner.words]
        if not known:
            raise ValueError(_unknown(word, owners, options))
        known[0][word] = value
    return parts


def shape_asked(modality: Modality, words: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a sample by a modality's own words; words that are None are ignored.

    Raises:
        ValueError: if a word has the wrong type, or the shape is impossible.
    """
    given = {word: value for word, value in words.items() if value is not None}
    check_options(modality.name, modality.shape_of, given)
    shape = tuple(call(modality.name, modality.shape_of, **given))
    if not all(type(n) is int and n > 0 for n in shape):
        told = ", ".join(f"{word}={printable(value)}" for word, value in given.items())
        raise ValueError(f"no sample of {modality.name} has the shape {list(shape)}{told and f' of {told}'}")
    return shape


@dataclass(frozen=True)
class GivenWords:
    """The owner of the words for a modality's given parts."""

    modality: Modality

    @property
    def name(self) -> str:
        """Its name in messages."""
        return "given"

    @property
    def words(self) -> Mapping[str, str]:
        """Word -> short description; empty if the modality has no given parts."""
        return self.modality.given_words if isinstance(self.modality, GivenParts) else {}


def parts_asked(
    modality: Modality,
    given: Any,
    shape: Mapping[str, Any],
    words: Mapping[str, Any],
    trained: float,
    strength: float | None = None,
    given_guidance: float = 1.0,
) -> Parts | None:
    """The given parts of a request; None if nothing is given.

    Args:
        shape, words: the modality's own words, for the shape of samples and for given parts; None values are ignored.
        trained: share of the training samples that had given parts.
        strength: noise level, 0 .. 1, to which the given sample is corrupted; None starts from noise, except the parts
            to keep.
        given_guidance: guidance scale of the given parts.

    Raises:
        ValueError: one line, for words without `given`, or parts that do not fit.
    """
    shape, words = ({k: v for k, v in each.items() if v is not None} for each in (shape, words))
    check_number("given_guidance", given_guidance, -MOST_GUIDANCE, MOST_GUIDANCE)
    if given is None:
        words |= {"strength": strength} if strength is not None else {}
        words |= {"given_guidance": given_guidance} if given_guidance != 1 else {}
        if words:
            raise ValueError(f"{next(iter(words))} is said of what is given: it needs given=")
        return None
    if strength is not None:
        check_number("strength", strength, 0, 1)
    giver = GivenParts.of(modality, "sample given=")
    check_options("given", giver.parts, words)
    _check_files({"given": given, **{name: words.get(name) for name in giver.given_files}})
    wanted: Parts = call(
        "given", giver.parts, given=given, shape=shape, told=trained > 0, strength=strength, **words
    )
    if trained:
        return wanted
    told = "this model was not trained with given parts (given=0.7): they are held by replacement"
    if given_guidance != 1:
        told += ", and given_guidance has no effect"
    kept = wanted.given.known is not None

    def more(samples: Tensor) -> Any:
        following = wanted.more(samples)
        return following and (following[0].untold(), following[1])

    return replace(
        wanted, given=wanted.given.untold(), told=[*wanted.told, *([told] if kept else [])], more=more
    )


def _check_files(told: Mapping[str, Any]) -> None:
    """Raise ValueError for words that name a file where there is none, or are a number, as of `given=5`."""
    for name, value in told.items():
        for file in value if isinstance(value, list | tuple) else [value]:
            if isinstance(file, int | float):
                raise ValueError(
                    f"{name} must be a file or a folder, got the number {file}; say {name}=./{file} for one"
                )
            if isinstance(file, str | PathLike) and not at_home(file).exists():
                raise ValueError(f"{name} must be a file or a folder, but {printable(file)} does not exist")


def _unknown(word: str, owners: Collection[Owner], options: Collection[str]) -> str:
    known = [f"{name} ({meaning})" for owner in owners for name, meaning in owner.words.items()]
    near = difflib.get_close_matches(
        word, [*(name for owner in owners for name in owner.words), *options], n=1, cutoff=0.6
    )
    names = " and ".join(owner.name for owner in owners if owner.words or len(owners) == 1) or "this model"
    told = f"words of {names}: {', '.join(known)}" if known else f"{names} has no words of its own"
    return f"{printable(word)} is not an option; {f'did you mean {near[0]}? ' if near else ''}{told}"
