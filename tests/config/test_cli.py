"""A user's mistake: one clear line on stderr, exit code 2, nothing lost."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import CompletedProcess

import hydra
import pytest

from ditmoe.config import cli, resolvers
from ditmoe.config.known_options import known_options, unknown_option
from ditmoe.distributed import launch
from tests import warm
from tests.subjects import ROOT


def call(command: str, *words: str, cwd: Path) -> CompletedProcess:
    return warm.command(f"ditmoe.{command}", *words, cwd=cwd)


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("train", ["trainer.stepz=5"], "trainer.stepz is not an option; did you mean trainer.steps?"),
        ("train", ["steps=5"], "steps is not an option; did you mean trainer.steps?"),
        ("train", ["modality"], "an argument must be option=value, without dashes and blanks, got modality"),
        ("sample", [""], "an argument must be option=value, without dashes and blanks, got an empty one"),
        (
            "export",
            ["checkpoint =x"],
            "an argument must be option=value, without dashes and blanks, got check",
        ),
        (
            "train",
            ["--modality=image"],
            "an argument must be option=value, without dashes and blanks, got --m",
        ),
        ("plan", ["-model=s"], "an argument must be option=value, without dashes and blanks, got -model=s"),
        ("plan", ["\udcff=1"], "an argument must be option=value, without dashes and blanks, got \\xff=1"),
        (
            "sample",
            ["--experimental-rerun=config.pickle"],
            "an argument must be option=value, without dashes",
        ),
        ("train", ["model=s", "--config-dir"], "--config-dir must be followed by its value"),
        ("train", ["modality="], "modality= does not exist; choose from image, pointcloud, video"),
        ("demo", ["checkpoint=x", "meshes=true"], "meshes is not an option of this command, but of sample"),
        ("plan", ["lora.rank=4"], "lora.rank is not an option of this command, but of train"),
        ("train", ["trainer.steps=many"], "trainer.steps must be a whole number, got 'many'"),
        ("train", ["trainer.compile=maybe"], "trainer.compile must be true or false, got 'maybe'"),
        ("train", ["modality=pontcloud"], "modality=pontcloud does not exist; did you mean pointcloud?"),
        ("train", ["model=-1"], "model=-1 does not exist; choose from"),
        ("train", ["router=null"], "router=null does not exist; choose from"),
        ("train", ["router=[]"], "router must name one of its choices, got []"),
        ("train", ["router=[1,[2]]"], "router must name one of its choices, got [1,[2]]"),
        (
            "train",
            ["router=${oc.decode:'[1]'}"],
            "router must name one of its choices, got ${oc.decode:'[1]'}",
        ),
        ("train", ["model.hidden_size=null"], "hidden_size must be a whole number, at least 1, got None"),
        ("train", ["model.depth=null"], "depth must be a whole number, at least 1, got None"),
        (
            "train",
            ["optimizer._partial_=null"],
            "_partial_ of torch.optim.AdamW must be true or false, got None",
        ),
        ("train", ["optimizer._target_=x"], "_target_: x cannot be found"),
        ("train", ["modality.data.root=-1"], "-1 (data.root) must be a folder laid out as"),
        ("train", ["model=huge"], "model=huge does not exist; choose from"),
        ("train", ["modality.data.root=nowhere"], "nowhere"),
        ("train", ["scheduler=ddim"], "cannot follow process flow_matching"),
        ("train", ["router.top_k=9"], "top_k must lie between 1 and num_experts = 8, got 9"),
        ("train", ["seed=null"], "seed must be a number, got null"),
        ("train", ["finish=null"], "finish must be a section: give finish.<option>=..., got null"),
        ("train", ["modality.data=null"], "modality.data must be a section"),
        ("train", ["trainer=5"], "trainer must be a section: give trainer.<option>=..., got 5"),
        ("train", ["init=-1"], "init must be a run's folder or a checkpoint in it, but -1 does not exist"),
        ("train", ["optimizer.weight_decay=-1"], "AdamW, which raises: Invalid weight_decay value: -1"),
        (
            "distill",
            ["checkpoint=starter/image", "out=o", "flow_map=null", "steps=x"],
            "steps must be a whole",
        ),
        ("mesh", ["source=null", "out=o"], "source must be given: source=..."),
        ("convert", ["source=[]", "out=o"], "source must be a file or a folder, but [] does not exist"),
        (
            "evaluate",
            ["generated=1e30", "reference=x"],
            "generated must be a file or a folder, but 1e30 does",
        ),
        ("sample", ["checkpoint=starter/image", "trust=null"], "trust must be true or false, got null"),
        ("sample", ["checkpoint=starter/image", "weights=[]"], "weights must be a single value, got []"),
        (
            "prepare",
            ["source=.", "out=o", "modality.preparation.workers=-1"],
            "workers must be at least 0, got -1",
        ),
        ("sample", [], "checkpoint must be given"),
        ("sample", ["checkpoint=nowhere", "trust=[a/b, 'c d']"], "nowhere does not exist"),
        ("sample", ["checkpoint=nowhere", "trust=5"], "trust must be true, false, or a list [a,b] of paths"),
        (
            "train",
            ["modality=image", "codec@modality.codec=autoencoder"],
            "error: modality.codec.path must be given",
        ),
        ("sample", ["checkpoint=nowhere"], "nowhere does not exist"),
        ("evaluate", [], "give checkpoint=<run>, or"),
        ("evaluate", ["modality=pointcloud", "generated=a.npz", "reference=b.npz"], "a.npz"),
        ("prepare", ["source=nowhere", "out=data"], "nowhere"),
        ("view", ["nowhere"], "nowhere does not exist"),
    ],
)
def test_one_line_and_exit_code_2(tmp_path: Path, command: str, words: list[str], expected: str) -> None:
    done = call(command, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize("words", [["trainer.steps=-1"], ["model.depth=0"], ["init=nowhere", "name=a/b"]])
def test_a_training_that_is_refused_leaves_no_folder(tmp_path: Path, words: list[str]) -> None:
    """Nor takes one away that was there."""
    assert call("train", *words, cwd=tmp_path).returncode == 2
    assert not [*tmp_path.iterdir()]
    (mine := tmp_path / "runs" / "pointcloud").mkdir(parents=True)
    assert call("train", *words, cwd=tmp_path).returncode == 2
    assert [*tmp_path.rglob("*")] == [mine.parent, mine]


@pytest.mark.parametrize("command", sorted(file.stem for file in cli.config_folder().glob("*.yaml")))
def test_what_a_command_is_said_to_have_it_has(command: str) -> None:
    """Hydra has each section and group that a message may name, and a message may name all that Hydra has."""
    with hydra.initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        composed = hydra.compose(command, return_hydra_config=True)
    known = known_options(command)
    groups = {str(choice).partition("@")[0] for choice in composed.hydra.runtime.choices}
    sections = {str(name) for name in composed} - {"hydra"}
    assert sections <= known.keys()
    assert {name.partition(".")[0] for name in known} <= sections | groups
    assert {name for name in known if (cli.config_folder() / name).is_dir()} <= groups | sections
    for word in ("weightsx", "meshes", "memory.weights"):
        said = unknown_option(word, command)
        if others := re.fullmatch(r"\S+ is not an option of this command, but of (.*)", said):
            assert command not in others[1].split(", ")
        else:
            told = re.fullmatch(r"\S+ is not an option; (?:did you mean (\S+)\?|choose from (.*))", said)
            assert told
            assert {*(told[1] or told[2]).split(", ")} <= known.keys()


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "/", "../../x", "a/../../x", "/x", "a//b", "a\nb", "\x1b[31m", "\udce9", None, ["a"]],
)
def test_a_name_of_a_run_leads_nowhere_else(name: object) -> None:
    with pytest.raises(ValueError, match=r"^name must be [^\n\x1b]*$"):
        resolvers.run_name(name)


@pytest.mark.parametrize("name", ["mine", "a/b", "a/", "Стул 1", 5, True, "..x"])
def test_a_name_of_a_run_stays_as_it_is(name: object) -> None:
    assert resolvers.run_name(name) == str(name)


def test_a_run_that_is_refused_for_its_name_makes_no_folder(tmp_path: Path) -> None:
    done = call("train", "name=../../x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: name must be a folder below runs/<modality>, got '../../x'; set hydra.run"
    )
    assert not list(tmp_path.iterdir())


def test_the_whole_way_in_a_tiny_run(tmp_path: Path) -> None:
    """Train, then resume to more steps, sample, evaluate two files, view: as the README tells it."""
    tiny = [
        "modality=pointcloud",
        "model=debug",
        "modality.num_points=64",
        "trainer.steps=2",
        "trainer.preview_every=2",
        "modality.evaluation.emd_points=32",
        "sampling.steps=2",
        "finish.num=3",
        "hydra.run.dir=runs/x",
    ]
    done = call("train", *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1-nna/emd" in done.stdout
    assert "Next:" in done.stdout
    run = tmp_path / "runs" / "x"
    for name in (
        "checkpoints/step-0000002/ema.safetensors",
        "metrics.json",
        "log.jsonl",
        "progress/step-0000002.png",
        "samples/samples.png",
    ):
        assert (run / name).is_file(), name
    again = call("train", *[w for w in tiny if "steps=2" not in w], "trainer.steps=3", "sampling.steps=2",
                 "finish.evaluate=false", cwd=tmp_path)  # fmt: skip
    assert "going on from step 2" in again.stdout, again.stderr

    sampled = call(
        "sample", "checkpoint=runs/x", "num=2", "label=chair", "steps=2", "out=chairs", cwd=tmp_path
    )
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((tmp_path / "chairs").glob("chair-*.ply"))) == 2
    wrong = call("sample", "checkpoint=runs/x", "label=chiar", cwd=tmp_path)
    assert "did you mean chair?" in wrong.stderr
    measured = call(
        "evaluate",
        "modality=pointcloud",
        "generated=chairs",
        "reference=runs/x/samples",
        "out=m",
        cwd=tmp_path,
    )
    assert measured.returncode == 0, measured.stderr
    assert (tmp_path / "m" / "metrics.json").is_file()


@pytest.mark.parametrize("capacity", ["1.5", "[1.5]", "[1,2]"])
def test_a_capacity_is_one_number_or_one_for_each_layer(tmp_path: Path, capacity: str) -> None:
    tiny = ["model=debug", "modality.num_points=64", "modality.tokens.resolution=8", "trainer.batch_size=2"]
    more = ["trainer.steps=1", "finish.num=0", "finish.evaluate=false", "router=expert_choice"]
    done = call("train", *tiny, *more, f"router.capacity={capacity}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_of_a_sweep_lies_in_one_folder_of_its_own() -> None:
    assert resolvers.sweep_name("seed=1,trainer.steps=5") == "seed=1,trainer.steps=5"
    words = ["init=../../a", "init=.././a", "../x", "..", "/etc", "x=" + "9" * 500, "x=" + "9" * 501, "a\nb"]
    names = [resolvers.sweep_name(each) for each in words]
    assert len(set(names)) == len(names)
    for name in names:
        assert name not in (".", "..")
        assert "/" not in name
        assert name.isprintable()
        assert len(name.encode()) < 255
    text = (cli.config_folder() / "train.yaml").read_text()
    assert "subdir: ${sweep_name:${hydra:job.override_dirname}}" in text


def test_a_limit_of_threads_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a container with few processes, or of `ulimit -u`, which root has none of."""

    def work() -> None:
        threading.stack_size(2**46)  # no machine has room for
        try:
            threading.Thread(target=print).start()
        finally:
            threading.stack_size(0)

    with pytest.raises(SystemExit) as end:
        cli.guard(work)
    lines = capsys.readouterr().err.splitlines()
    assert (end.value.code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: no more threads can be started: raise the limit")


def test_no_memory_for_the_code_of_onednn_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As under `ulimit -v`, where a convolution or a matrix product raises this."""

    def work() -> None:
        raise RuntimeError("could not create a primitive")

    with pytest.raises(SystemExit) as end:
        cli.guard(work)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: not enough memory: could not create a primitive\n"


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_long_errors_are_told_without_their_middle(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise kind(f"model_index.json: {'x' * 100_000}: names code of others")

    with pytest.raises(SystemExit):
        cli.guard(work)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 2100
    told = re.fullmatch(
        r"error: .*: (x+) \.\.\. \((\d+) letters left out\) \.\.\. (x+): names code of others", line
    )
    assert len(told[1]) + int(told[2]) + len(told[3]) == 100_000


ENDLESS = """
import signal, tempfile, time
from ditmoe.config import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background of a shell

def work():
    with tempfile.TemporaryDirectory(dir=".") as folder:
        print(folder, flush=True)
        time.sleep(60)

cli.guard(work)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_is_ended_takes_its_temporary_folders_along(number: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=tmp_path, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        assert Path(tmp_path, process.stdout.readline().decode().strip()).is_dir()
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (AttributeError("'NoneType' object has no attribute 'x'"), (130, "")),  # as of OmegaConf, half made
        (OSError(28, "No space left on device", "x"), (2, "error: x: No space left on device\n")),
    ],
)
def test_an_error_while_an_interrupt_passes_is_told_only_if_of_the_disk(
    error: Exception, ended: tuple[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def library() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    def work() -> None:
        try:
            library()
        except AttributeError as inner:  # as Hydra and OmegaConf explain errors
            raise ValueError(str(inner)) from None

    with pytest.raises(SystemExit) as end:
        cli.guard(work)
    assert (end.value.code, capsys.readouterr().err) == ended


@pytest.mark.parametrize("command", ["plan", "view", "report"])
def test_a_current_folder_that_was_removed(command: str, tmp_path: Path) -> None:
    """As that of another terminal; an interpreter of its own, since importing failed."""
    (tmp_path / "here").mkdir()
    words = [sys.executable, "-m", f"ditmoe.{command}", str(tmp_path)]
    script = 'cd here && rmdir ../here && exec "$@"'
    done = subprocess.run(["sh", "-c", script, "sh", *words], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the current folder must exist, but it was removed: change to another folder\n"
    )


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "WORLD_SIZE",
            "",
            "WORLD_SIZE must be a whole number of at least 1, as torchrun sets it",
        ),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be a whole number of at least 1"),
        ("RANK", "first", "RANK must be a whole number of at least 0, as torchrun sets it"),
    ],
)
def test_what_torchrun_does_not_set(
    name: str, text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, text)
    done = call("train", "modality=image", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the environment variable {line}")
    assert done.stderr.count("\n") == 1


def test_the_only_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a scheduler's own RANK says: else previews and messages would be left to another."""
    monkeypatch.setenv("RANK", "5")
    assert launch.rank() == 0


def test_hydra_s_plugins_are_those_that_are_installed(tmp_path: Path) -> None:
    """A stranger's data set may hold a folder of that name, in which a person stands."""
    for name, files in {"data": ("__init__.py", "a.py"), "installed": ("b.py",)}.items():
        (tmp_path / name / "hydra_plugins").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "hydra_plugins" / file).write_text(f"print('{name} runs')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "installed")])}
    line = [sys.executable, "-m", "ditmoe.plan"]
    done = subprocess.run(line, cwd=tmp_path / "data", env=environment, capture_output=True, text=True)
    assert "data runs" not in done.stdout
    assert done.stdout.startswith("installed runs")
