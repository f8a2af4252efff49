"""Where results go is known to take them before the work is done, and is told on one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ditmoe import convert, sample
from ditmoe.analysis import analyze_checkpoint
from ditmoe.analysis import command as analysis
from ditmoe.checkpoint.alone import alone_in
from ditmoe.checkpoint.atomic import check_writable
from ditmoe.export import export
from ditmoe.finishing import check_places
from ditmoe.inference import drawing, evaluate_checkpoint, measuring, sample_checkpoint
from ditmoe.outside import in_python
from ditmoe.pipelines import export as exporting
from ditmoe.reporting import page, write_report
from tests import fuzz_seeds
from tests.training.test_trainer import trainer

LONG = "n" * 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cloud"
    trainer(folder, "trainer.steps=1")[0].run()
    return folder


COMMANDS: dict[str, tuple[Any, str, Callable[[Path, Path], Any]]] = {
    "sample": (drawing, "draw_from", lambda run, out: sample_checkpoint(run, 1, out=out)),
    "sample meshes": (drawing, "draw_from", lambda run, out: sample_checkpoint(run, 1, out=out, meshes=True)),
    "sample npz": (drawing, "draw_from", lambda run, out: sample_checkpoint(run, 1, out=out / "a.npz")),
    "evaluate": (measuring, "draw_from", lambda run, out: evaluate_checkpoint(run, num=2, out=out)),
    "analyze": (analysis, "make_probe", lambda run, out: analyze_checkpoint(run, out=out)),
    "export": (exporting, "of_run", lambda run, out: export(run, out)),
    "report": (page, "describe_run", lambda run, out: write_report([run], out / "page.html")),
}
"""Of each what does the work, and a call."""


def at_a_file(place: Path) -> Path:
    (place / "file").write_text("a letter")
    return place / "file"


def below_a_file(place: Path) -> Path:
    return at_a_file(place) / "new" / "out"


def too_long(place: Path) -> Path:
    return place / "new" / LONG


def of_the_kernel(place: Path) -> Path:
    return Path("/proc/out")


@pytest.mark.parametrize("where", [at_a_file, below_a_file, too_long, of_the_kernel])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_impossible_place_is_known_before_the_work(
    command: str, where: Callable[[Path], Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, call = COMMANDS[command]
    monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("the work was done"))
    out = where(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises((ValueError, OSError)) as told:
        call(run, out)
    assert len(str(told.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_numbers_of_another_program_are_not_replaced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "draw_from", lambda *_, **__: pytest.fail("the work was done"))
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.9}')
    with pytest.raises(ValueError, match=r"metrics\.json must be what evaluate wrote, or not exist"):
        evaluate_checkpoint(run, num=2, out=tmp_path)
    assert (tmp_path / "metrics.json").read_text() == '{"accuracy": 0.9}'


def test_a_picture_beside_a_new_npz_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"a \.npz with no picture of that name beside it, got .*a\.png$"):
        sample_checkpoint(run, 1, steps=1, out=tmp_path / "a.npz")
    assert (tmp_path / "a.png").read_bytes() == b"a photo"
    for _ in range(2):
        sample_checkpoint(run, 1, steps=1, out=tmp_path / "b.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.npz", "b.png"]


@pytest.mark.parametrize(("name", "kind"), [("samples.png", "picture"), ("prompts.json", "list of prompts")])
def test_samples_replace_no_file_of_somebody_else(
    name: str, kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        sample_checkpoint(run, 1, steps=1, out=tmp_path / "ours")
    monkeypatch.setattr(drawing, "draw_from", lambda *_, **__: pytest.fail("the work was done"))
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"^[^\n]*{name} is no {kind} of ditmoe: choose another out=$"):
        sample_checkpoint(run, 1, steps=1, out=tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["any-0000.npy", "chair-0012.png", "samples.gif", "turntables/any-0000.mp4"])
def test_samples_replace_no_file_with_the_name_of_one(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no samples are yet; that other files are there is no reason to refuse a folder."""
    (tmp_path / "notes.txt").write_text("mine")
    sample_checkpoint(run, 1, steps=1, out=tmp_path)
    for file in tmp_path.glob("*.[np]*"):
        file.unlink()
    monkeypatch.setattr(drawing, "draw_from", lambda *_, **__: pytest.fail("the work was done"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError, match=rf"^[^\n]*{name} has the name of a sample, and is none of ditmoe: choose"
    ):
        sample_checkpoint(run, 1, steps=1, out=tmp_path, turntable=True)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["samples/samples.png", "samples/prompts.json", "metrics.json", "report.html"]
)
def test_a_new_run_replaces_no_file_of_somebody_else(name: str, run: Path, tmp_path: Path) -> None:
    options = {"num": 1, "evaluate": True}
    check_places(options, tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(
        ValueError, match=rf"^[^\n]*{Path(name).name} (is no|must be what evaluate wrote)[^\n]*$"
    ):
        check_places(options, tmp_path)
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    check_places(options, tmp_path)


def test_what_is_found_out_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.png")
    check_writable(tmp_path / "a" / "b" / "c", folder=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    check_writable(tmp_path / "there", folder=True)
    check_writable(tmp_path / "there" / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "old"]
    assert (tmp_path / "there" / "old").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True])
def test_a_name_is_told_as_it_was_said(folder: bool, tmp_path: Path) -> None:
    """Not that of the draft beside it, which is longer than it is."""
    name = 250 * "n"
    with pytest.raises(OSError, match="too long") as told:
        check_writable(tmp_path / name, folder)
    assert told.value.filename == str(tmp_path / name)


def test_a_link_to_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later")
    check_writable(tmp_path / "link", folder=True)
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_the_name_of_something_else(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="must be a plain file"):
        check_writable(tmp_path / name)
    with pytest.raises(ValueError, match="pipe must be a folder or not exist, got something else"):
        check_writable(tmp_path / "pipe" / "new", folder=True)


@pytest.mark.parametrize("words", [{}, {"meshes": True}, {"turntable": True}])
@pytest.mark.parametrize("name", ["out", "out/meshes", "out/turntables"])
def test_two_do_not_draw_into_one_folder(
    words: dict[str, Any], name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(drawing, "draw_from", lambda *_, **__: None)
    ours = name == "out" or name.removeprefix("out/") in (
        [("meshes", "turntables")[word == "turntable"] for word in words]
    )
    with alone_in(tmp_path / name):
        if not ours:
            assert sample_checkpoint(run, 1, out=tmp_path / "out", **words) == []
        else:
            with pytest.raises(ValueError, match="another process is writing"):
                sample_checkpoint(run, 1, out=tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


NAMES = ["a\nerror: forged", "a\x1b[31mb", "a\tb"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_places_are_told_on_one_line(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample.sample({"checkpoint": str(run), "num": 1, "steps": 1, "out": name})
    source = fuzz_seeds.dit(tmp_path)[0]
    convert.convert({"source": str(source), "out": f"w{name}", "size": 4, "num_heads": 2})
    told = analyze_checkpoint(run, out=f"a{name}", samples=2, bins=1, permutations=20, drop=False, dial=[])
    print(told)
    shown = capsys.readouterr().out
    assert (tmp_path / name / "samples.png").is_file()
    assert (tmp_path / f"w{name}").is_dir()
    assert name not in shown
    assert "\nerror:" not in shown
    assert "\x1b" not in shown
    assert f"model = ditmoe.load({in_python(f'w{name}')})" in shown


@pytest.mark.parametrize("text", ["a", "ä b", 'a"b', "a\\b", "a\nb", "\u202e", "\udce9", "😀\n", "it's"])
def test_a_text_is_typed_in_python(text: str) -> None:
    typed = in_python(text)
    assert eval(typed) == text
    assert typed.isprintable()
