"""YAML of a folder that a command names: read, or refused in one line, whatever is in it."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditmoe import plan
from ditmoe.config import build, yaml_files
from ditmoe.config.told_folders import check_folder, check_told

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def _doubled(text: str) -> str:
    """A YAML each of whose values names the one before, I, twice."""
    return "x0: 1\n" + "".join(f"x{i}: {text.replace('I', str(i - 1))}\n" for i in range(1, 40))


BAD = {
    "laughs": LAUGHS,
    "of itself": "a: &a [*a]",
    "deep": "a: " + "[" * 5000,
    "tab": "a:\n\tb: 1",
    "code": "a: !!python/object/apply:os.system ['touch PWNED']",
    "interpolations": _doubled("'${modality.xI}${modality.xI}'"),
    "lists of them": _doubled("['${..xI}', '${modality.xI}']"),
    "selected in quotes": _doubled('\'${oc.select:"modality.xI"}${oc.select:"modality.xI"}\''),
    "selected": _doubled("'${oc.select:modality.xI}${oc.select:modality.xI}'"),
    "whole sections": _doubled("{a: '${modality.xI}', b: '${..xI}'}"),
    "moved": "defaults:\n  - other@zz: x\n" + _doubled("'${zz.xI}${zz.xI}'"),
    "named by another": "k: x\nx: 1\ny: ${${k}}",
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
        (tmp_path / "modality").mkdir(exist_ok=True)
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
    assert re.search(r"mine\.yaml|the YAML of .* is not read: .*interpolation", refused(BAD[name]))
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


@pytest.mark.parametrize(
    "content",
    [
        "# @package _global_\nhydra:\n  run:\n    dir: elsewhere",
        "# @package hydra\nrun:\n  dir: elsewhere",
        "# @package _global_.hydra.run\ndir: elsewhere",
        "# @package _global_\ndefaults:\n  - override /hydra/output: mine",
        "# @package _global_\nhydra.run.dir: elsewhere",
        "# a remark\n# @package hydra.run\ndir: elsewhere",
        "# @foo bar\r# @package hydra\nrun:\n  dir: elsewhere",
        "# @foo bar\u2028# @package hydra\nrun:\n  dir: elsewhere",
        "defaults:\n  - other@_global_.hydra.run\n  - _self_",
        "defaults:\n  - /model@hydra.run: nano",
    ],
)
def test_only_the_command_line_says_where_a_run_is(content: str, refused: Refused, tmp_path: Path) -> None:
    assert "mine.yaml is no YAML that is read: it must not set hydra: say hydra.run.dir=" in refused(content)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "target",
    ["subprocess.Popen", "shutil.copyfile", "builtins.eval", "numpy.memmap", "numpy.save", "torch.load",
     "modalities.shared.isolation.subprocess.Popen", "ditmoe.outside.paths.io.FileIO", "ditmoe.export.export",
     "torch.utils.collect_env.run", "torch.utils.tensorboard.SummaryWriter", "logging.FileHandler"],
)  # fmt: skip
def test_only_classes_of_models_are_made_of_other_packages(target: str, refused: Refused) -> None:
    for content in (f"_target_: {target}", f"tokens: {{_target_: {target}, _partial_: true}}"):
        assert (
            "_target_ must be a class of yours or of ditmoe, or of another package an optimiser"
            in refused(content)
        )


@pytest.mark.parametrize(
    "target",
    ["ditmoe.moe.TokenChoice", "torch.optim.SGD", "diffusers.DDIMScheduler", "torch.nn.Linear", "tests.audit.Own"],
)  # fmt: skip
def test_parts_of_models_and_own_classes_may_be_named(target: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"_target_: {target}")
    check_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "_target_: ${.env.x}\nenv: {x: subprocess.Popen}",
        "x: ${oc.create:{_target_:subprocess.Popen,args:[a]}}",
        "x: '${oc.decode:\"{_target_: subprocess.Popen}\"}'",
    ],
)
def test_a_class_is_written_out(content: str, refused: Refused) -> None:
    assert re.search("_target_ must be written out|it must say its values itself", refused(content))


def test_a_function_is_never_called(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ditmoe.export.export is no class, but a function"):
        build.make({"_target_": "ditmoe.export.export", "checkpoint": "a", "out": str(tmp_path / "x")})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("defaults: [null]", "its defaults must be names of files, got None"),
        ("name: '${a:'", "it has an interpolation that is not whole"),
        (f"a: {5000 * '9'}", "Exceeds the limit"),
    ],
)
def test_what_hydra_would_tell_in_words_of_its_own(content: str, told: str, refused: Refused) -> None:
    said = refused(content)
    assert told in said
    assert "sys." not in said


def test_what_cannot_be_understood_is_said(refused: Refused) -> None:
    told = refused("name: " + "${" * 5000)
    assert "it has an interpolation that is not whole" in told
    assert len(told) < 5000


def test_a_file_that_names_itself_is_one_line(refused: Refused) -> None:
    assert "refers to itself" in refused("defaults: [mine]")


@pytest.mark.parametrize("header", ["# @package zz\n", ""])
def test_files_that_another_one_moves_are_counted_where_it_puts_them(header: str, tmp_path: Path) -> None:
    (tmp_path / "modality/sub").mkdir(parents=True)
    (tmp_path / "modality/mine.yaml").write_text(f"{header}defaults:\n  - sub: x\n")
    place = "zz" if header else "modality"
    (tmp_path / "modality/sub/x.yaml").write_text(_doubled(f"['${{{place}.sub.xI}}', '${{{place}.sub.xI}}']"))
    with pytest.raises(ValueError, match="interpolation must stand for at most"):
        check_folder(tmp_path)


def test_names_that_end_alike_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for file, content in {
        "experiment/e.yaml": "# @package _global_\nname: ${model.name}-${router.name}",
        "model/x.yaml": "name: d${.depth}\ndepth: 3",
        "router/r.yaml": "name: ${model.name}-${model.name}",
    }.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(content)
    check_folder(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/bad.yaml").write_text(LAUGHS)
    (tmp_path / "told").mkdir()
    (tmp_path / "told/experiment").symlink_to(tmp_path / "other")
    (tmp_path / "other/again").symlink_to(tmp_path / "told")
    with pytest.raises(ValueError, match=r"experiment/bad.yaml is no YAML that is read"):
        check_folder(tmp_path / "told")


@pytest.mark.parametrize("option", ["--config-dir", "-cd", "--config-path", "--config-d"])
def test_pipes_are_not_waited_for(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    for words in ([option, str(tmp_path)], [f"{option}={tmp_path}"]):
        with pytest.raises(ValueError, match="must be a plain file"):
            check_told(words)


def test_text_without_interpolations_is_any(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 'it''s [x: {y, \\'\nb: ${.a}\n")
    check_folder(tmp_path)


def test_honest_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\n")
    assert yaml_files.read(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": [{"x": 1}] * 2}
