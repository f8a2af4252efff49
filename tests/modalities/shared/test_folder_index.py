"""An index of folders gives what a fresh look gives, whatever happened to the folders or to the index meanwhile."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ditmoe.outside import Parts, files_below, folders_below
from modalities.shared import folder_index
from modalities.shared.file_table import FileTable
from modalities.shared.folder_index import FolderIndex

Listed = list[tuple[Parts, list[str]]]


def listed(cache: Path | None, root: Path) -> tuple[Listed, int]:
    """What lies below a folder, and how many folders were read for it."""
    index = FolderIndex(cache, root)
    found = list(folders_below(root, special=True, read=index.read))
    index.save()
    return found, index._num_read


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of this second, and few files, are indexed, too."""
    monkeypatch.setattr(folder_index, "LEAST", 1)
    monkeypatch.setattr(folder_index, "SETTLED", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "data"
    for folder in ("a", "b/c", "b/d"):
        (top / folder).mkdir(parents=True)
        for i in range(3):
            (top / folder / f"{i}\udcff.png").touch()
    (top / "b" / "cc.png").touch()  # behind the files of b/c, before those of b/d
    time.sleep(0.02)
    return top


def test_after_any_change_an_index_gives_what_a_fresh_look_gives(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "cache"

    def check(read: int | None = None) -> None:
        found, num = listed(cache, root)
        assert found == list(folders_below(root, special=True))
        assert read is None or num == read
        time.sleep(0.02)  # finer than that, times of files do not tell

    def swap() -> None:
        (root / "a").rename(tmp_path / "x")
        (root / "b" / "c").rename(root / "a")
        (tmp_path / "x").rename(root / "b" / "c")

    def behind_its_back() -> None:
        """A folder whose time of change is set back."""
        about = (root / "a").stat()
        (root / "a" / "more.png").touch()
        os.utime(root / "a", ns=(about.st_atime_ns, about.st_mtime_ns))

    check(5)
    check(0)
    changes = (
        ((root / "a" / "new.png").touch, 1),
        ((root / "a" / "new.png").unlink, 1),
        (lambda: (root / "a" / f"0{chr(0xDCFF)}.png").rename(root / "b" / "d" / "moved.png"), 2),
        (behind_its_back, 1),
        (swap, None),
        (lambda: (root / "b" / "e" / "f").mkdir(parents=True), 3),
        ((root / "b" / "e" / "f" / "g.png").touch, 1),
        (lambda: (root / "b").rename(root / "z"), None),
        (lambda: shutil.rmtree(root / "z" / "e"), 1),
        (lambda: (root / "link").symlink_to(tmp_path / "cache"), None),
        (lambda: (root / "dead.png").symlink_to("nowhere"), None),
        (lambda: os.mkfifo(root / "a" / "pipe"), None),
    )
    for change, read in changes:
        change()
        check(read)


def test_what_is_no_index_is_ignored(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, fresh = tmp_path / "cache", list(folders_below(root))
    assert listed(cache, root)[0] == fresh
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    good = dict(np.load(file))
    for changed in (
        whole[: len(whole) // 2],
        b"",
        {**good, "ends": good["ends"][::-1].copy()},
        {**good, "ends": good["ends"] + 1},
        {**good, "stamps": good["stamps"].astype(np.float64)},
    ):
        if isinstance(changed, bytes):
            file.write_bytes(changed)
        else:
            np.savez(file, **changed)
        assert listed(cache, root)[0] == fresh
        assert listed(cache, root) == (fresh, 0)  # written anew


def test_names_of_a_strangers_index_stay_in_their_folders(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "cache"
    listed(cache, root)
    (file,) = cache.iterdir()
    good = dict(np.load(file))
    for old, new in ((b"/b", b"/."), (b"a/b", b"../"), (b"a/b", b"a\0b")):
        text = np.frombuffer(good["text"].tobytes().replace(old, new), np.uint8)
        np.savez(file, **{**good, "text": text})
        assert listed(cache, root)[0] == list(folders_below(root))


def test_folders_that_have_just_changed_are_read_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "SETTLED", 10**12)
    assert listed(tmp_path / "cache", root)[1] == listed(tmp_path / "cache", root)[1] == 5


def test_a_table_gives_the_paths_that_it_was_made_of(root: Path) -> None:
    runs = list(folders_below(root))
    table = FileTable(runs)
    paths = [path.relative_to(root).parts for path in files_below(root)]
    assert [*table] == table[:] == paths == sorted(paths)
    assert table[-1] == paths[-1]
    assert not len(FileTable([]))
