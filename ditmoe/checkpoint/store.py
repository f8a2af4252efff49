"""Checkpoints that are written atomically, verified by digests and never execute code.

A run's folder holds `checkpoints/step-0000500/`: a manifest, and one safetensors file per part that has tensors.

    manifest.json           format, step, plain values of all parts, size and SHA-256 of each file, and its own digest
    ema.safetensors         averaged weights, the only tensors that sampling needs
    model.safetensors optimizer.safetensors facts.safetensors ...

A part that is sharded over processes is a folder of files, to which each process wrote its shards
(`ditmoe.checkpoint.sharded`). A checkpoint folder gets its name when all of it is on disk; drafts have other names.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ditmoe.checkpoint import manifest, sharded
from ditmoe.checkpoint.atomic import clear, digest, remove, replacing, replacing_folder, writing
from ditmoe.checkpoint.fit import check_shapes
from ditmoe.checkpoint.lazy_tensors import LazyTensor, in_memory, open_file
from ditmoe.checkpoint.places import FOLDER, candidates, check_within, listed, place, starter_of, step_of
from ditmoe.checkpoint.sharded import Pieces
from ditmoe.distributed import ALONE, Ranks, is_spread
from ditmoe.distributed.ranks import put
from ditmoe.outside import in_utf8, is_regular, printable, tell

WRITTEN = (FOLDER, "log.jsonl", "progress", "samples")
"""What training writes into a run's folder under fixed names. A prepared folder could hold links of these names."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a verified manifest. Tensors stay on disk until they are read.

    Attributes:
        path: its folder.
        plain: plain values by part: "step", "config", "facts", ...
        tensors: by part and by name, which is a path if the part is nested.
    """

    path: Path
    plain: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, LazyTensor | Pieces | Tensor]]

    @property
    def run(self) -> Path:
        """The run's folder; the checkpoint's own folder if it is not in one; `runs/starter/<name>` for a starter."""
        if name := starter_of(self.path):
            return Path("runs", "starter", name)
        return self.path.parent.parent if self.path.parent.name == FOLDER else self.path

    def part(self, name: str) -> Any:
        """A part with its tensors in memory.

        Raises:
            ValueError: if there is no such part, or it is damaged.
        """
        if name not in self.plain:
            raise ValueError(f"{self.path} lacks the part {name}")
        tensors = {k: in_memory(v, f"{self.path}: {name}/{k}") for k, v in self.tensors.get(name, {}).items()}
        try:
            return manifest.join(self.plain[name], tensors)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} is damaged: the names of tensors in its part {name} do not fit its values"
            ) from error


def save(run: Path, step: int, parts: Mapping[str, Any], ranks: Ranks = ALONE) -> Path:
    """Write a checkpoint atomically, and return its folder.

    Args:
        run: the run's folder.
        parts: tensors and plain values, nested in dicts and lists.
        ranks: all of them call this, each with its own shards.

    Raises:
        OSError: if it cannot be written; existing files stay unchanged.
    """
    folder = place(run, step)
    first = ranks.rank == 0
    divided = {name: manifest.split(part) for name, part in parts.items()}
    spread = [name for name, (_, tensors) in divided.items() if any(map(is_spread, tensors.values()))]
    files: dict[str, Any] = {}
    drafts: list[Path] = []

    def begin() -> None:
        if first:
            check_own([folder])  # the target of a link would be replaced
            # The folder exists only if it was damaged: a run that resumes from an intact one does not write it again.
            drafts.append(stack.enter_context(replacing_folder(folder)))

    def write_whole() -> None:
        for name, (_, tensors) in divided.items():
            if tensors and name not in spread and first:
                written.append(_written(tensors, draft / f"{name}.safetensors"))
        files.update(
            {str(f.relative_to(draft)): {"bytes": f.stat().st_size, "sha256": digest(f)} for f in written}
        )

    def finish() -> None:
        plain = {name: plain for name, (plain, _) in divided.items()}
        if first:
            (draft / manifest.NAME).write_bytes(
                manifest.sealed({"format": manifest.FORMAT, "step": step, "parts": plain, "files": files})
            )
            stack.close()

    with ExitStack() as stack:
        ranks.all_or_raise(begin)
        draft = ranks.broadcast(drafts[0] if first else None)
        written = [f for name in spread for f in sharded.write(divided[name][1], draft / name, ranks)]
        ranks.all_or_raise(write_whole)
        for stated in ranks.collect(files) or []:
            files |= stated
        ranks.all_or_raise(finish)
    return folder


def _written(tensors: dict[str, Tensor], file: Path) -> Path:
    with writing(file), in_utf8(file) as spelled:
        save_file(tensors, spelled)
    return file


def fill(found: Checkpoint, name: str, part: Any) -> None:
    """Fill the tensors of a part, sharded or replicated, with their values in a checkpoint.

    From a sharded checkpoint, each rank reads only what it needs. A checkpoint of one process is read completely by
    every rank, one tensor at a time.

    Raises:
        ValueError: naming the first tensor that does not fit, or, unless sharded, that holds numbers that are not
            finite.
    """
    own, stored = manifest.split(part)[1], found.tensors.get(name, {})
    check_shapes(own, stored, found.path)
    if (found.path / name).is_dir() and any(map(is_spread, own.values())):
        return sharded.read_into(own, found.path / name)
    for key, value in own.items():
        read = in_memory(stored[key], f"{found.path}: {name}/{key}")
        if read.is_floating_point() and not read.isfinite().all():
            raise ValueError(f"{found.path} holds numbers that are not finite: {name}/{key}")
        put(value, read)


def restate(found: Checkpoint, **parts: Any) -> None:
    """Replace plain parts of a checkpoint, such as the configuration of a run that resumes with other options."""
    plain = {name: manifest.split(part)[0] for name, part in parts.items()}
    if found.path.is_dir() and plain != {name: found.plain.get(name) for name in parts}:
        content = manifest.read(found.path)
        content["parts"] |= plain
        with replacing(found.path / manifest.NAME) as stream:
            stream.write(manifest.sealed(content))


def keep(run: Path, last: int, every: int = 0, until: int | None = None) -> None:
    """Remove all checkpoints of a run except the `last` ones and those at multiples of `every` steps (0: none).

    Args:
        until: the run's last step. Later checkpoints, from which it did not resume, are neither counted nor removed.
            None counts all.
    """
    own = [(step, folder) for step, folder in listed(run) if until is None or step <= until]
    for step, folder in own[last:]:
        if not (every and step % every == 0):
            remove(folder)


def check_own(places: Iterable[Path]) -> None:
    """Raises ValueError if one of the paths that a run writes to is a link, which may lead out of its folder."""
    for each in places:
        if each.is_symlink():
            raise ValueError(
                f"{printable(each)} is a link, but a run writes only into its own folder: remove the link"
            )


def check_holds_no_link(folder: Path) -> None:
    """Raises ValueError if a run's folder, which a command searches for files to use, holds a link."""
    for parent, folders, files in os.walk(folder):
        check_own(Path(parent, name) for name in sorted([*folders, *files]))


def find(path: str | Path, parts: Sequence[str] | None = None, ranks: Ranks = ALONE) -> Checkpoint:
    """The newest intact checkpoint of a run's folder, or the checkpoint that `path` itself is.

    If the newest one is damaged, or a link to one elsewhere, takes the one before and says so in one line on stderr.

    Args:
        parts: those that will be read; the tensors of other parts are not verified. None means all.
        ranks: all of them call this, and each verifies a share of the files.

    Raises:
        FileNotFoundError, ValueError: if there is none, or none that is intact; one line.
    """
    for candidate in (every := candidates(Path(path))):
        found, failure = None, None
        try:
            check_within(candidate, Path(path))
            found = _opened(candidate, parts, ranks)
        except (ValueError, OSError) as error:
            failure = error
        told = ranks.first_error(failure)
        if found and told is None:
            return found
        if candidate == every[-1]:
            raise failure or ValueError(told)
        if ranks.rank == 0:
            tell(f"{told}; taking the checkpoint before it")
    raise AssertionError


def load(path: str | Path) -> dict[str, Any]:
    """All parts of a checkpoint, in memory; see `find`."""
    found = find(path)
    return {name: found.part(name) for name in found.plain}


@contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """Lock a run's folder for writing, and remove drafts that killed processes left there.

    Raises:
        ValueError: if another process is training in it, or a path that training writes to is a link.
    """
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is training in {run}: wait for it, or choose another name= or out="
            ) from error
        except OSError:  # a file system without locks
            pass
        check_own([*(run / name for name in WRITTEN), *(folder for _, folder in listed(run))])
        for folder in (run, run / FOLDER, *(folder for _, folder in listed(run))):
            clear(folder)
        yield
    finally:
        os.close(handle)


def _opened(path: Path, parts: Sequence[str] | None, ranks: Ranks = ALONE) -> Checkpoint:
    content = manifest.read(path)
    plain, files = content["parts"], content["files"]
    if path.parent.name == FOLDER and step_of(path) not in (None, content["step"]):
        raise ValueError(f"{path} is damaged: its manifest is of step {content['step']}")
    of_part: dict[str, list[str]] = {name: [] for name in (plain if parts is None else parts)}
    for file in files:
        if (name := _part_of(file)) in of_part:
            of_part[name].append(file)
    for number, file in enumerate(f for names in of_part.values() for f in names):
        if not is_regular(path / file):
            raise ValueError(f"{path} is damaged: {file} is missing")
        if number % ranks.size != ranks.rank:
            continue
        if (path / file).stat().st_size != files[file]["bytes"] or digest(path / file) != files[file][
            "sha256"
        ]:
            raise ValueError(f"{path} is damaged: {file} does not match its size or digest in the manifest")
    tensors: dict[str, Any] = {}
    for name, names in of_part.items():
        if names:
            whole = names == [f"{name}.safetensors"]
            tensors[name] = open_file(path / names[0]) if whole else sharded.open_folder(path, names)
    return Checkpoint(path, plain | {"step": content["step"]}, tensors)


def _part_of(file: str) -> str | None:
    """The part that a file belongs to, by its path relative to the checkpoint; None if its name is not valid."""
    name, _, inner = file.partition("/")
    if not inner:
        return name.removesuffix(".safetensors") if name.endswith(".safetensors") else None
    return name if re.fullmatch(r"[\w-]+\.safetensors", inner) else None
