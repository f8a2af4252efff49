"""YAML of a folder that a command names: read, or refused in one line, whatever is in it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditmoe import plan
from ditmoe.config import yaml_files

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
BAD = {
    "laughs": LAUGHS,
    "of itself": "a: &a [*a]",
    "deep": "a: " + "[" * 5000,
    "tab": "a:\n\tb: 1",
    "code": "a: !!python/object/apply:os.system ['touch PWNED']",
    "no such alias": "<<: *x",
    "large": "a: 1\n" * 30_000,
    "set": "a: !!set {b, c}",
    "bytes": "a: !!binary aGVsbG8=",
    "date": "a: !!timestamp 2020-01-01",
    "no name": "null: 2",
    "list for a name": "? [a]\n: 1",
}


Refused = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Refused:
    """The one line that a command says of a modality's YAML with some content."""

    def told(content: str) -> str:
        (tmp_path / "modality").mkdir()
        (tmp_path / "modality" / "mine.yaml").write_text(content)
        monkeypatch.setattr(sys, "argv", ["plan", f"--config-dir={tmp_path}", "modality=mine"])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            plan.main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        return said

    return told


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line(name: str, refused: Refused, tmp_path: Path) -> None:
    assert "mine.yaml" in refused(BAD[name])
    assert not (tmp_path / "PWNED").exists()


def test_text_that_is_not_utf_8_names_its_file(tmp_path: Path) -> None:
    for content in ("a: 1".encode("utf-16"), b"a: caf\xe9"):
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"a\.yaml is no YAML that is read: it must be UTF-8, got the byte 0x"
        ):
            yaml_files.read(tmp_path / "a.yaml")


def test_what_a_checkpoint_could_not_be_read_with_is_not_trained(refused: Refused) -> None:
    """A line of a few letters nests what it likes, of which a manifest would be damaged as soon as it is written."""
    told = refused(f"# @package mine{'.a' * 200}\nb: 1")
    assert "mine must be nested at most 31 levels deep, got more" in told


def test_what_cannot_be_understood_is_said(refused: Refused) -> None:
    told = refused("name: " + "${" * 5000)
    assert "no viable alternative" in told
    assert len(told) < 5000


def test_a_file_that_names_itself_is_one_line(refused: Refused) -> None:
    assert "refers to itself" in refused("defaults: [mine]")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="must be a plain file"):
        yaml_files.check_told(["--config-dir", str(tmp_path)])


def test_honest_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\n")
    assert yaml_files.read(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": [{"x": 1}] * 2}
