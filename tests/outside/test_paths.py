"""What strangers call their files leads nowhere, hides nothing and holds nobody up."""

import json
import os
import socket
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditmoe.outside import (
    Arrays,
    array_shape,
    at_home,
    decoded,
    file_name,
    files_below,
    is_regular,
    load_array,
    open_regular,
    printable,
    read_beside,
    read_json,
    real_path,
)
from ditmoe.outside.paths import LONGEST


def test_a_name_that_begins_like_a_home_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, path in {"~": tmp_path, "~/a/b": tmp_path / "a/b"}.items():
        assert at_home(text) == at_home(Path(text)) == path
    for text in ("~old", "~root/x", "~nobody at all/x", "a/~/b", "~$a.doc"):
        assert at_home(text) == Path(text)
    assert files_with("expanduser(") == {
        "ditmoe/outside/paths.py",
        "ditmoe/config/overrides.py",
    }  # of `~/` alone


def test_a_circle_of_links_is_a_path(tmp_path: Path) -> None:
    """Where `Path.resolve` raises RuntimeError, which nobody awaits of a path."""
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("there/file")
    assert real_path(tmp_path / "circle" / "x") == tmp_path / "circle" / "x"
    assert real_path(tmp_path / "link") == tmp_path / "there" / "file"
    assert files_with(".resolve()") == set()


def files_with(text: str) -> set[str]:
    """Files of the package in whose code a text stands, but for lines on the file itself."""
    root = Path(__file__).resolve().parents[2]
    files = [file for place in ("ditmoe", "modalities") for file in (root / place).rglob("*.py")]
    lines = ((file, line) for file in files for line in file.read_text().splitlines())
    return {str(file.relative_to(root)) for file, line in lines if text in line and "__file__" not in line}


@given(
    st.text()
    | st.sampled_from(["..", "/etc/x", "../a", "a\nb", "\x1b[31m", ".", "CON", "a\u202eb", "\udcff"])
)
def test_any_name_is_one_harmless_part_of_a_path(name: str) -> None:
    safe = file_name(name)
    assert safe not in ("", ".", "..")
    assert not safe.startswith(".")
    assert Path("o", safe).parts == ("o", safe)
    assert len(safe.encode()) <= LONGEST
    assert not set(safe) & set('/\\\n\x1b\0:*?"<>|')
    assert file_name(safe) == safe


@given(st.text())
def test_what_is_printed_is_one_line_and_says_all(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not set("\x1b\u202e") & set(shown)
    shown.encode()
    assert printable("chair Стул 椅子 é-1") == "chair Стул 椅子 é-1"


def test_bytes_that_are_no_letters_are_shown() -> None:
    assert printable(os.fsdecode(b"caf\xe9\n")) == r"caf\xe9\x0a"


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.mkfifo(tmp_path / "b")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "c"))
    (tmp_path / "d").symlink_to("a")
    (tmp_path / "e").symlink_to("e")
    assert [is_regular(tmp_path / name) for name in "abcde"] == [True, False, False, True, False]
    with open_regular(tmp_path / "d") as stream:
        assert stream.read() == b"1"
    for name in "bc":
        with pytest.raises((ValueError, OSError)):
            open_regular(tmp_path / name)
    with pytest.raises(ValueError, match="plain file"):
        open_regular(tmp_path)
    assert [p.name for p in files_below(tmp_path)] == ["a", "d"]


def test_text_beside_data_is_not_a_link_elsewhere(tmp_path: Path) -> None:
    """But in caches of the hub, which are farms of links."""
    data, private = tmp_path / "data", tmp_path / "private.txt"
    data.mkdir()
    private.write_text("a secret")
    (data / "own.txt").write_text("a cat")
    (data / "near.txt").symlink_to("own.txt")
    (data / "far.txt").symlink_to(private)
    (data / "over.txt").symlink_to("far.txt")
    (tmp_path / "named").symlink_to("data")
    assert read_beside(data / "near.txt", 9) == read_beside(tmp_path / "named" / "own.txt", 9) == b"a cat"
    for name in ("far.txt", "over.txt"):
        with pytest.raises(
            ValueError, match=rf"{name} must be a file, got a link out of its folder, to .*private"
        ):
            read_beside(data / name, 9)
    store = tmp_path / "datasets--a--b"
    (store / "blobs").mkdir(parents=True)
    (store / "snapshots" / "1f" / "cats").mkdir(parents=True)
    (store / "blobs" / "77").write_text("a dog")
    (store / "snapshots" / "1f" / "cats" / "0.txt").symlink_to("../../../blobs/77")
    (store / "snapshots" / "1f" / "1.txt").symlink_to("../../../private.txt")
    assert read_beside(store / "snapshots" / "1f" / "cats" / "0.txt", 9) == b"a dog"
    with pytest.raises(ValueError, match="link out of its folder"):
        read_beside(store / "snapshots" / "1f" / "1.txt", 9)


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x").touch()
    (tmp_path / "one" / "up").symlink_to("..")
    (tmp_path / "one" / "self").symlink_to(".")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / ".hidden").touch()
    assert [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path)] == ["one/x"]
    assert {p.name for p in files_below(tmp_path, hidden=True)} == {"x", ".hidden"}


def test_folders_of_any_depth_are_walked(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("x").touch()
        Path("up").symlink_to("..")
        found = [p.name for p in files_below(tmp_path)]
    finally:
        for name in ("x", "up"):
            Path(name).unlink(missing_ok=True)
        while not os.path.samefile(".", tmp_path):  # what removes a test's folders ends at a thousand
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)
    assert found == ["x"]


@pytest.mark.parametrize(
    "shape", ["(" + "(" * 60 + "1,", "(" + "1," * 20_000 + ")", "\n\t1", "(1,)\n  x\n y"]
)
def test_a_header_of_an_array_that_is_no_python_is_refused_in_one_line(shape: str, tmp_path: Path) -> None:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
    for read in (load_array, array_shape):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(True, 3)", "(-5, 3)", f"({4000 * '9'}, {4000 * '9'})"])
def test_sizes_of_an_array_are_whole_numbers(shape: str, tmp_path: Path) -> None:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "a.npy")
    told = (
        r"^(the array a is damaged: )?each size in its header must be a whole number from 0 to 2\*\*63 - 1$"
    )
    for read in (load_array, array_shape):
        with pytest.raises(ValueError, match=told):
            read(tmp_path / "a.npy")
    with Arrays(tmp_path / "a.npz") as arrays, pytest.raises(ValueError, match=told):
        arrays.about("a")


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_that_never_ends_is_refused_before_it_is_read(version: int, tmp_path: Path) -> None:
    """NumPy reads all of it first: a gigabyte of spaces is a megabyte of an archive."""
    length = 2**16 - 1 if version == 1 else 64 * 2**20
    begin = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(2 * version, "little")
    (tmp_path / "a.npy").write_bytes(begin + b" " * length)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.npy", "a.npy")
    tracemalloc.start()
    try:
        for read in (load_array, array_shape):
            with pytest.raises(
                ValueError, match=rf"^its header must have at most 10000 bytes, got {length}$"
            ):
                read(tmp_path / "a.npy")
        with Arrays(tmp_path / "a.npz") as arrays:
            for read in (arrays.about, arrays.__getitem__):
                with pytest.raises(
                    ValueError, match=rf"^the array a is damaged: .* 10000 bytes, got {length}$"
                ):
                    read("a")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_json_of_many_levels_is_one_line(tmp_path: Path) -> None:
    """`json` reads it, and whoever copies or prints it afterwards would end in a trace."""
    deep, flat = tmp_path / "deep.json", tmp_path / "flat.json"
    deep.write_text('{"a":' * 900 + "1" + "}" * 900)
    with pytest.raises(ValueError, match=r"^[^\n]*deep\.json is no JSON[^\n]*100 levels deep$"):
        read_json(deep)
    for text in ("1", "[]", '{"a": [{"b": null}]}'):
        flat.write_text(text)
        assert read_json(flat) == json.loads(text)


def test_json_of_a_number_of_thousands_of_digits_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(
        ValueError, match=r"^[^\n]*a\.json is no JSON, or is damaged: it holds a number of 5000 digits$"
    ):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_is_read_in_the_encodings_of_windows(encoding: str) -> None:
    assert decoded("cat\nÜnü".encode(encoding)) == "cat\nÜnü"
    assert decoded(b"") == ""


def test_bytes_that_are_no_text_are_those_of_a_file_name() -> None:
    assert decoded(b"a\0b") == "a\0b", "not UTF-16, whose bytes are even in number"
    assert decoded(b"caf\xe9") == os.fsdecode(b"caf\xe9")
    assert decoded(b"caf\xe9", "replace") == "caf\ufffd"
    assert "\ufffd" in decoded(b"\xff\xfea")  # half a letter


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": 1, "a": 1}}]'])
def test_what_is_said_twice_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="is no JSON, or is damaged: it has the name a twice"):
        read_json(tmp_path / "a.json")
