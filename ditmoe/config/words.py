"""Words that a modality brings to the command line and to Python: `length=64` of one with signals."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ditmoe.diffusion import MOST_GUIDANCE
from ditmoe.given import Parts
from ditmoe.modality import GivenParts, Modality
from ditmoe.outside import check_number, printable
from ditmoe.outside.options import call, check_options


@runtime_checkable
class Owner(Protocol):
    """Whoever knows words of its own, as a modality those for the shape of a sample."""

    @property
    def name(self) -> str:
        """By which messages speak of it."""

    @property
    def words(self) -> Mapping[str, str]:
        """Word -> what it means, in a few words."""


def split_words(
    words: Mapping[str, Any], *owners: Owner, options: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The words of each owner; one that several know is the first one's.

    Args:
        options: words that are taken elsewhere, as those of the command: one of them may have been meant.

    Raises:
        ValueError: one line, for words that nobody knows: what was probably meant, and all that the owners know.
    """
    parts: list[dict[str, Any]] = [{} for _ in owners]
    for word, value in words.items():
        known = [part for part, owner in zip(parts, owners, strict=True) if word in owner.words]
        if not known:
            raise ValueError(_unknown(word, owners, options))
        known[0][word] = value
    return parts


def shape_asked(modality: Modality, words: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a sample by a modality's own words, those that are None left out.

    Raises:
        ValueError: if they are of the wrong type, or no sample has such a shape.
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
    """What a modality's given parts may be told, as one of the owners of words."""

    modality: Modality

    @property
    def name(self) -> str:
        """By which messages speak of it."""
        return "given"

    @property
    def words(self) -> Mapping[str, str]:
        """Word -> what it means; none of a modality that takes no given parts."""
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
    """What a person gave, None for nothing.

    Args:
        shape, words: the modality's own, for the shape of samples and of what is given; those that are None left out.
        trained: share of the training samples that had parts given.
        strength: how far what is given is forgotten, None wholly but for what is kept.

    Raises:
        ValueError: one line, for words without `given`, or what does not fit.
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
        told += ", and given_guidance does nothing"
    kept = wanted.given.known is not None

    def more(samples: Tensor) -> Any:
        following = wanted.more(samples)
        return following and (following[0].untold(), following[1])

    return replace(
        wanted, given=wanted.given.untold(), told=[*wanted.told, *([told] if kept else [])], more=more
    )


def _check_files(told: Mapping[str, Any]) -> None:
    """Raise ValueError for words that name a file where there is none."""
    for name, value in told.items():
        for file in value if isinstance(value, list | tuple) else [value]:
            if isinstance(file, str | PathLike) and not Path(file).expanduser().exists():
                raise ValueError(f"{name} must be a file or a folder, but {printable(file)} does not exist")


def _unknown(word: str, owners: Collection[Owner], options: Collection[str]) -> str:
    known = [f"{name} ({meaning})" for owner in owners for name, meaning in owner.words.items()]
    near = difflib.get_close_matches(
        word, [*(name for owner in owners for name in owner.words), *options], n=1, cutoff=0.6
    )
    names = " and ".join(owner.name for owner in owners if owner.words or len(owners) == 1) or "this model"
    told = f"words of {names}: {', '.join(known)}" if known else f"{names} has no words of its own"
    return f"{printable(word)} is not an option; {f'did you mean {near[0]}? ' if near else ''}{told}"
