"""A person's words reach a command to the letter, whatever the grammar underneath makes of such letters."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ditmoe import train
from ditmoe.config import cli, command_line
from ditmoe.config.overrides import split

NASTY = [
    "Мебель", "my shapes (v2)", "a,b", "[a,b]", "a, b [c", "it's", 'the "best"', "'a' b", "x=y", "a&b;c",
    "$HOME/#1 100%",
    "${oc.env:HOME}/x", "C:\\new\\x", "\\\\server\\share\\", "C:\\${x}\\", "2024", "1e3", "true", "007", "{a:1}",
    " x ", "a: b", "range(1,3)", "glob(*)", "日本 😀", "café", "\udce9", "a\tb", "a\nb", "~x", "x@y", "<a|b>",
    "int(3)", "None",
]  # fmt: skip
# Those of every command, as its YAML has them; the values of the others are there for it to start.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "train": (["init", "modality.data.root", "modality.evaluation.cache"], []),
    "train_codec": (["out", "modality.data.root", "modality.codec.path", "modality.pictures.root"], []),
    "prepare": (["source", "out", "modality.data.root"], []),
    "sample": (["checkpoint", "out", "label"], []),
    "evaluate": (["checkpoint", "reference", "out", "label"], []),
    "analyze": (["checkpoint", "out"], []),
    "export": (["checkpoint", "out", "autoencoder", "licence"], []),
    "convert": (["source", "out", "entry"], []),
    "plan": (["modality.data.root", "modality.codec.path"], ["modality=video"]),
}
LISTED = {"label"}


def started(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that a command is called with, once for each of its runs; nothing else happens or need be there."""
    calls: list[Any] = []
    monkeypatch.setattr(command_line, "check_there", lambda name, value: None)
    monkeypatch.setattr(sys, "argv", [command, *words])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    cli.run(calls.append, command, words=command in ("sample", "evaluate"))
    return calls


def at(options: Any, name: str) -> Any:
    if name == "label":
        return options["words"]["label"]
    for part in name.split("."):
        options = options[part]
    return options


@pytest.mark.parametrize("command", COMMANDS)
def test_text_arrives_unchanged(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names, words = COMMANDS[command]
    for first in range(0, len(NASTY), 12):
        texts = {name: NASTY[(first + 4 * i) % len(NASTY)] for i, name in enumerate(names)}
        said = [*words, *(f"{name}={text}" for name, text in texts.items())]
        if command == "train":
            said.append(f"hydra.run.dir={tmp_path}/$ ({first})")
        (options,) = started(command, said, monkeypatch)
        for name, text in texts.items():
            expected = ["a", "b"] if name in LISTED and text == "[a,b]" else text
            assert at(options, name) == expected, name


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("out='x y'", "x y"),  # as people learnt it
        ('out="a, b"', "a, b"),
        ("out=null", None),
        ("out=~/x", str(Path("~/x").expanduser())),
        ("seed=7", 7),
        ("check=true", True),
        ("modality.up=z", "z"),
        ("modality.data.classes=[Стул, it's,'a, b',2]", ["Стул", "it's", "a, b", 2]),
        ("modality.data.classes=[${oc.env:HOME},'${x}',b]", ["${oc.env:HOME}", "${x}", "b"]),
        ("modality.data.root=null", None),
        ("modality.preparation.split=[0.5,0.25,0.25]", [0.5, 0.25, 0.25]),
        ("modality.num_points=${modality.evaluation.points}", 2048),
    ],
)
def test_what_is_no_text_stays_what_it_is(word: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = word.partition("=")[0].replace("seed", "modality.preparation.seed")
    word = f"{name}={word.partition('=')[2]}"
    needed = [other for other in ("source=a", "out=b") if not word.startswith(other[:4])]
    (options,) = started("prepare", [*needed, word], monkeypatch)
    assert at(options, name) == expected


@pytest.mark.parametrize("many", [False, True])
def test_a_word_that_takes_minutes_to_read_is_refused(
    many: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Hydra's grammar took two minutes for 30,000 numbers."""
    word = f"label=[{','.join(map(str, range(30_000)))}]"
    started_at = time.monotonic()
    with pytest.raises(SystemExit, match="2"):
        started("sample", ["checkpoint=a", "out=b", word, *["--multirun"] * many], monkeypatch)
    assert capsys.readouterr().err == f"error: label must have at most 10000 characters, got {len(word)}\n"
    assert time.monotonic() - started_at < 5


def test_brackets_in_brackets_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = 500 * "f(" + 500 * ")"
    (options,) = started("prepare", ["source=a", "out=b", f"modality.data.root={nested}"], monkeypatch)
    assert at(options, "modality.data.root") == nested


def test_commas_separate_runs_where_runs_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "source=Стул,'a, b'", "out=x", "modality.preparation.seed=1,2", "hydra.sweep.dir=."]
    calls = started("prepare", words, monkeypatch)
    told = [(options["source"], options["modality"]["preparation"]["seed"]) for options in calls]
    assert told == [("Стул", 1), ("Стул", 2), ("a, b", 1), ("a, b", 2)]
    with pytest.raises(SystemExit):
        started("prepare", ["source=a", "out=b", "modality.num_points=1,2"], monkeypatch)


@pytest.mark.parametrize("text", [*NASTY, "'x y'", '"${x}"', "'it\\'s'", "null"])
def test_a_word_is_said_again_as_it_is_read(text: str) -> None:
    overrides = command_line.overrides()
    for name in ("out", "modality.data.root", "label", "seed", "trainer.steps"):
        override = overrides.override(f"{name}={text}")
        assert overrides.override(overrides.said(override)) == override


def test_next_is_what_a_shell_reads_as_the_same_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in a folder with spaces, whose words hold letters of the shell, of the grammar and of neither."""
    monkeypatch.chdir(tmp_path)
    Path("mine (v2)").mkdir()
    words = ["init=Стул, $HOME (v2)", "modality.data.root=it's ${x}", "+modality.data.classes=[Стул,a b]"]
    words += ["trainer.clip=2.0", "name='x y'"]

    def command(options: dict[str, Any]) -> None:
        longer = f"train {train.own_words('pointcloud')} name=longer trainer.steps=20"
        train.finish({"num": 0, "evaluate": False}, Path("-my run's"), longer, 5)

    with monkeypatch.context() as patch:
        patch.setattr(command_line, "check_there", lambda name, value: None)
        patch.setattr(sys, "argv", ["train", "--config-dir", "mine (v2)", *words])
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, getattr(sys, name))
        cli.run(command, "train")
    lines = capsys.readouterr().out.split("Next:")[1].strip().splitlines()
    found = [shlex.split(line) for line in lines]
    assert Path(found[0][3].removeprefix("checkpoint=")) == Path("-my run's")
    again = found[1][found[1].index("--config-dir") :]
    assert again[:2] == ["--config-dir", "mine (v2)"]
    assert set(words[:2]) <= set(again)  # as they were typed
    read = command_line.overrides().override
    assert set(map(read, words[:-1])) <= set(map(read, again))


def test_pieces_are_what_is_between_commas_that_are_in_no_quotes_and_no_brackets() -> None:
    assert list(split("a,b")) == ["a", "b"]
    assert list(split("a (1,2),[3,4],'5,6'")) == ["a (1,2)", "[3,4]", "'5,6'"]
    assert list(split("it's,a],b")) == ["it's", "a]", "b"]
    for text in NASTY:
        assert ",".join(split(text)) == text
