"""Files of samples and their names, the same for the `sample` command and the demo page."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.alone import alone_at, alone_in
from ditmoe.checkpoint.atomic import check_writable
from ditmoe.conditioning import Condition, captions_of
from ditmoe.inference.request import Request
from ditmoe.modality import Files, Modality, Samples, Surfaces, Turntables
from ditmoe.outside import OWN_PICTURE, check_ours, file_name, printable

FURTHER = MESHES, TURNTABLES = "meshes", "turntables"
"""Folder names of further outputs."""
PROMPTS = b'{\n  "prompts": ['
"""The beginning of every list of prompts."""
_SAMPLE = re.compile(r"samples|[^.].*-\d{4,}", re.DOTALL)
"""Names of files of samples, without their suffixes (`Modality.sample_names`)."""


def write_drawn(
    files: Files, samples: Samples, request: Request, place: Path, beside: Path | None, **others: Any
) -> list[Path]:
    """Write samples, their prompts and their given parts; returns the paths of the samples, the overview picture first.

    Args:
        place: a folder, or a .npz file.
        beside: a folder for the given parts; None: they are not written.
        others: values that are stored with the prompts.

    Raises:
        OSError: if a file cannot be written, such as on a full disk; the message says how many samples were written.
    """
    with _counted(samples):
        paths = files.write(samples, place)
    write_prompts(place, request.asked, request.negative, **others)
    parts = request.parts
    if beside is not None and parts is not None and parts.shown is not None:
        files.write(Samples(parts.shown, names=["given"]), beside)
    return paths


@dataclass(frozen=True)
class Further:
    """Further outputs of samples, each in a separate folder; None: not written."""

    surfaces: Surfaces | None
    turntables: Turntables | None

    @classmethod
    def of(cls, modality: Modality, meshes: bool, turntable: bool) -> "Further":
        """The requested outputs.

        Raises:
            ValueError: if the modality does not support them.
        """
        surfaces = Surfaces.of(modality, "sample meshes=true") if meshes else None
        return cls(surfaces, Turntables.of(modality, "sample turntable=true") if turntable else None)

    def folders(self, place: Path) -> list[Path]:
        """The folders of these outputs."""
        made = {MESHES: self.surfaces, TURNTABLES: self.turntables}
        return [further_folder(place, name) for name, by in made.items() if by is not None]

    def check_out(self, place: Path) -> None:
        """Raises ValueError if the folder for surfaces contains other files."""
        if self.surfaces is not None:
            self.surfaces.check_out(further_folder(place, MESHES))

    def write(self, samples: Samples, place: Path) -> None:
        """Write all outputs, after the samples themselves."""
        if self.turntables is not None:
            self.turntables.write_turntables(samples, further_folder(place, TURNTABLES))
        if self.surfaces is not None:
            self.surfaces.mesh(place, further_folder(place, MESHES), self.turntables is not None)


@contextmanager
def _counted(samples: Samples) -> Iterator[None]:
    """Add the number of written samples to an OSError, by the file that it names: they are written in order."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or error.filename is None:
            raise
        names, stem = samples.file_names(), Path(os.fsdecode(error.filename)).stem
        there = names.index(stem) if stem in names else 0
        message = f"{error.strerror}; {there} of {len(samples)} samples are there"
        raise OSError(error.errno, message, error.filename) from error


@contextmanager
def ready_place(place: Path, *further: Path) -> Iterator[None]:
    """Check that samples can be written to a folder or a .npz, and lock it against other processes in this context.

    Args:
        further: folders of further outputs.

    Raises:
        ValueError, OSError: with one line, if it is not writable or is locked.
    """
    is_file, sheet = place.suffix == ".npz", place.with_suffix(".png")
    folders = further if is_file else (place, *further)
    files = [place, sheet] if is_file else []
    for file in (*files, *(folder / "samples.png" for folder in folders)):
        check_writable(file)
    with alone_at(place) if is_file else nullcontext(), ExitStack() as stack:
        for folder in folders:
            stack.enter_context(alone_in(folder))
        yield


def check_others(place: Path, *further: Path) -> None:
    """Raise ValueError if samples in a folder or a .npz, which are not there yet, would replace another's files.

    Args:
        further: folders of further outputs.
    """
    is_file, remedy = place.suffix == ".npz", "choose another out="
    sheet = place.with_suffix(".png") if is_file else place / "samples.png"
    if not is_file:
        check_ours(sheet, "picture", OWN_PICTURE, remedy)
    elif sheet.exists() and not place.exists():  # the sheet is written last
        raise ValueError(f"out must be a .npz with no picture of that name beside it, got {printable(sheet)}")
    check_ours(_prompts_file(place), "list of prompts", PROMPTS, remedy)
    if not (place if is_file else sheet).exists():  # both are written first
        for folder in further if is_file else (place, *further):
            _check_none_named(folder, remedy)


def _check_none_named(folder: Path, remedy: str) -> None:
    """Raise ValueError if a file in a folder has such a name as samples have."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            named = sorted(
                each.path for each in entries if _SAMPLE.fullmatch(Path(each.name).stem) and each.is_file()
            )
        if named:
            raise ValueError(
                f"{printable(named[0])} has the name of a sample, and is none of ditmoe: {remedy}"
            )


def folder_name(request: Request, given: Any, seed: int) -> str:
    """Folder name from the condition, the given files and the seed, so that sets do not mix."""
    told = [short_name(value) for value in request.wanted.values() if value is not None and str(value)]
    told += [] if given is None else ["given", *(Path(str(one)).stem for one in _each(given)[:2])]
    return file_name("-".join(["samples", *told, f"seed{seed}"]))


def further_folder(place: Path, name: str) -> Path:
    """The folder of a further output: in the samples' folder, or beside their .npz."""
    return place / name if place.suffix != ".npz" else place.with_name(f"{place.stem}-{name}")


def short_name(value: Any, longest: int = 60) -> str:
    """The value of an option as part of a folder's name.

    A value that is too long, or has characters that a file name cannot have, is shortened or replaced and gets a hash,
    so that `a/b` and `a_b` differ.
    """
    text = str(value)
    if file_name(text, longest) == text:
        return text
    mark = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{file_name(text, longest)}-{mark}"


def write_prompts(place: Path, asked: Condition, negative: Condition | None, **others: Any) -> None:
    """Write the prompts of samples, if they have any, to prompts.json in their folder, or beside a .npz."""
    if (captions := captions_of(asked)) is None:
        return
    content: dict[str, Any] = {"prompts": captions}
    if negative is not None:
        content["negative"] = captions_of(negative)
    content |= {name: value for name, value in others.items() if value is not None}
    with replacing(_prompts_file(place)) as stream:
        stream.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _prompts_file(place: Path) -> Path:
    return place.with_suffix(".prompts.json") if place.suffix == ".npz" else place / "prompts.json"


def _each(given: Any) -> list[Any]:
    """The names of the given files; "array" for arrays."""
    each = given if isinstance(given, list | tuple) else [given]
    return [one if isinstance(one, str | Path) else "array" for one in each]
