"""Names, links, pipes and holes made to do harm."""

import io
import os
from pathlib import Path

import numpy as np

from tests.hostile.archives import tarred
from tests.hostile.pictures import Maker, png

NAMES = (b"caf\xe9", b"a\nb", b"\x1b[31mred", "\u202egnp".encode(), b"'; rm -rf ~")


def pipe(name: str, alone: bool = False, tar: bool = False) -> Maker:
    """A FIFO; with something readable beside it, unless it is read itself."""

    def make(place: Path) -> Path:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(file)
        if tar:
            with tarred(place):
                pass
        elif file.suffix == ".png":
            (place / "a.png").write_bytes(png())
        elif file.suffix == ".npy":
            np.save(file.with_name("a.npy"), np.random.default_rng(0).random((9, 3), np.float32))
        return file if alone else place

    return make


def endless(name: str) -> Maker:
    """A link to a plain file of the system that says it is empty, and whose reader waits for what comes."""

    def make(place: Path) -> Path:
        path = place / name
        path.symlink_to("/proc/kmsg")
        return path

    return make


def hollow(name: str) -> Maker:
    """A terabyte of holes behind a few bytes, which an archive holds in less than a kilobyte."""

    def make(place: Path) -> Path:
        path = place / name
        with open(path, "wb") as stream:
            if name.endswith("npy"):
                header = {"descr": "|u1", "fortran_order": False, "shape": (2**40 // 3, 3)}
                np.lib.format.write_array_header_2_0(stream, header)
            stream.truncate(2**40 + 128)
        return path

    return make


def loop(place: Path) -> Path:
    """Class folders with a link to the folder above, to themselves and to each other."""
    root = place / "root"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            (root / name / f"{i}.png").write_bytes(png())
            np.save(root / name / f"{i}.npy", np.eye(3, dtype=np.float32))
        for number, target in enumerate((root, root / name, root / "b", place)):
            (root / name / f"link{number}").symlink_to(target)
        (root / name / "nowhere.png").symlink_to(root / name / "nowhere.png")
    return root


def named(place: Path) -> Path:
    """Files and folders with names of bytes that are no letters, and that a terminal obeys."""
    top = os.fsencode(place) + b"/root/"
    for number, name in enumerate(NAMES):
        os.makedirs(top + name)
        for i in range(9):
            stem = top + name + b"/" + name + str(i).encode()
            for ending, content in ((b".png", png()), (b".npy", npy(9 * number + i))):
                with open(stem + ending, "wb") as stream:
                    stream.write(content)
    return place / "root"


def npy(number: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.eye(3, dtype=np.float32) * (1 + number))
    return stream.getvalue()
