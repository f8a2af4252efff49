"""README, docs and the heads of `configs/`: every command and every Python block there is run, at tiny size.

A command runs in a folder of its own. What it needs of other commands (a run, latents, an exported folder) is made by
the command in the documentation that makes it, so a page that leaves out a step fails. What cannot run here is in
`NOT_RUN` with the reason, and is still composed or parsed: its options exist.
"""

import argparse
import importlib
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ditmoe.config import cli, command_line, folders
from tests.belongings import write_all
from tests.pages import (
    BLOCKS,
    COMMANDS,
    PAGES,
    ROOT,
    SAID,
    Command,
    files_of,
    maker_of,
    modality_of,
    ours,
    path_of,
    product_of,
)
from tests.strangers import install, source

NOT_RUN = {  # a word that a command holds: why it is only composed
    "torchrun": "eight or more processes",
    "conditioning=text": "weights of a text encoder",
    "checkpoint=runs/video/text": "a run with such",
    "checkpoint=runs/image/text": "a run with such",
    "init=s/": "published weights, of that size",
    "init=xl/": "published weights, of that size",
    "init=dit/": "published weights, of that size",
    "modality.evaluation.features=inception": "published weights of Inception",
    "modality.evaluation.features=i3d": "published weights of I3D",
    "modality.evaluation.clip=clip-vit-base-patch32/": "weights of a CLIP",
    "modality.evaluation.detector=mask2former-swin-small-coco-instance/": "weights of a Mask2Former",
    "modality.evaluation.vqa=blip-vqa-base/": "weights of a BLIP",
}
OTHERS = {  # programs that are not ours: why they are not run
    "pip": "installs", "pytest": "is what runs this", "python3": "makes an environment",
    "python": "of that environment", "sh": "is for a GPU, `tests/test_gpu_page.py`",
    "ruff": "`./run lint`", "mypy": "`./run lint`", "tensorboard": "serves for ever",
    "sed": "is tested beside what reads its file, `test_geneval_score`, `test_compbench`",
    "cp": "`Runner` has the examples at home", "export": "`run` has the folders in sys.path",
}  # fmt: skip

# Words that make a command small; they stand behind its own.
MODEL = (
    "model.hidden_size=24 model.depth=2 model.num_heads=2 model.moe_layers=[1] sampling.steps=2 finish.num=2"
)
LOOP = "trainer.steps=1 trainer.batch_size=2 trainer.accumulate=1 finish.evaluate=false"
LIMITS = {
    "train": f"{MODEL} {LOOP}",
    "sample": "num=2 steps=2",
    "evaluate": "num=4 steps=2",
    "distill": "trainer.steps=1 trainer.batch_size=2 finish.num=2 finish.evaluate=false",
    "analyze": "samples=2 bins=2 permutations=20 dial=[1] drop=false steps=2",
    "mesh": "modality.surface.resolution=16",
    "convert": "size=32 num_heads=2",
    "plan": "model.depth=2 model.moe_layers=null",
}
SIZES = {
    "pointcloud": "modality.num_points=64 modality.tokens.resolution=16 modality.evaluation.points=64",
    "image": "modality.size=[16,16]",
    "video": "modality.size=[16,16] modality.frames=5 modality.data.workers=0",
    "signals": "",
}
CODEC = {"video": "modality.codec.width=8 modality.codec.steps=2"}
PREPARE = "modality.preparation.num_points=100 modality.preparation.workers=1"


def test_nothing_is_overlooked() -> None:
    for words in SAID:
        if ours(list(words)) is None:
            program = words[0].rpartition("/")[2]
            assert program in OTHERS or words[0] == "./run", f"no rule for {shlex.join(words)}"
        if words[0] == "./run":
            assert re.search(
                rf"^    [a-z_| ]*\b{words[1]}\b[a-z_| ]*\)", (ROOT / "run").read_text(), re.MULTILINE
            )
    said = {word for command in COMMANDS for word in command}
    assert not set(NOT_RUN) - said, "rules for commands that nobody names"
    assert len(COMMANDS) > 80
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads], anchor


def sized(command: Command) -> list[str]:
    """The words of a command, and those that make it small."""
    name, words, modality = command[0].removeprefix("ditmoe."), list(command[1:]), modality_of(command)
    if name == "evaluate" and not any(word.startswith("checkpoint=") for word in words):
        return words
    limits = LIMITS.get(name, "").split()
    if name in ("train", "prepare", "train_codec"):
        limits += SIZES[modality].split()
        if "experiment=goes_on" in words:
            limits.append("modality.frames=13")  # of which later turns see some
        if modality in CODEC and not any(word.startswith("codec@") for word in words):
            limits += CODEC[modality].split()
        if name == "prepare" and modality == "pointcloud":
            limits += PREPARE.split()
    return [*words, *limits]


def run(module: str, words: list[str], folder: Path) -> None:
    """Call a module's main in a folder, as the command line would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder / "router")  # of docs/extending.md
        patch.syspath_prepend(folder)
        for own in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            patch.delitem(sys.modules, own)  # imported in another folder, where less of it may have been
        patch.setattr(sys, "argv", [module, *words])
        patch.delenv("DISPLAY", raising=False)
        code = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            code = end.code
    assert not code, f"{module} {shlex.join(words)}"


class Runner:
    """Runs each command once, in a folder of its own, after those that make what it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.ran: dict[Command, Path] = {}
        self.home.mkdir()
        write_all(self.home)
        shutil.copytree(source("signals"), self.home / "signals" / "signals")
        shutil.copytree(source("router"), self.home / "router")
        for name, text in {name: text for page in PAGES for name, text in files_of(page).items()}.items():
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_text(text)

    def __call__(self, command: Command) -> Path:
        """The folder that the command ran in."""
        if command not in self.ran:
            folder = Path(mkdtemp(dir=self.folder))
            product = product_of(command)
            self.furnish(folder, modality_of(command), [w for w in command[1:] if product != path_of(w)])
            run(command[0], sized(command), folder)
            assert product is None or any((folder / product).iterdir())
            self.ran[command] = folder
        return self.ran[command]

    def furnish(self, folder: Path, modality: str, words: list[str]) -> None:
        """Put there what words name: a person's own files, and what other commands make."""
        of_all = [thing for thing in self.home.iterdir() if thing.name not in SIZES]
        for thing in [*of_all, *(self.home / modality).glob("*")]:
            (folder / thing.name).symlink_to(thing)
        for path in map(path_of, words):
            if maker := maker_of(path, modality):
                product = product_of(maker) or ""
                shutil.copytree(self(maker) / product, folder / product, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Beside an example that is installed, as docs/extending.md says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path_factory.mktemp("site"), "signals"))
        folders.installed.cache_clear()
        yield Runner(tmp_path_factory.mktemp("docs"))
    folders.installed.cache_clear()


class Parsed(Exception):  # noqa: N818  (not an error)
    pass


def only_parse(module: str, words: list[str]) -> None:
    """Options of a study exist; it runs for minutes."""
    loaded = importlib.import_module(module)
    parse = argparse.ArgumentParser.parse_args
    if not re.search("options_of|ArgumentParser", Path(str(inspect.getsourcefile(loaded.main))).read_text()):
        assert callable(loaded.main)
        assert not words
        return

    def stop(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        parse(parser, words)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            loaded.main()


def only_compose(module: str, words: list[str]) -> None:
    command = module.removeprefix("ditmoe.")
    if command in ("sample", "evaluate"):
        words = command_line.sectioned(command_line.read_words(words), command)
    with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        composed = compose(command, overrides=words)
    OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)


def is_again(command: Command) -> bool:
    """Whether another command is the same run for another number of steps."""
    without = tuple(word for word in command if not word.startswith(("name=", "trainer.steps=")))
    return any(word.startswith("trainer.steps=") for word in command) and without in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_commands(command: Command, runner: Runner) -> None:
    module, *words = command
    if module == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif module.startswith(("benchmarks.", "tests.")):
        only_parse(module, words)
    elif module == "torchrun":
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(words)
        only_compose(launch.training_script, launch.training_script_args)
    elif not words:
        assert callable(importlib.import_module(module).main)
    elif module == "ditmoe.demo":  # serves until it is stopped: `tests/serving` draws
        only_compose(module, words)
    elif reason := next((NOT_RUN[word] for word in words if word in NOT_RUN), None):
        if reason == "no such YAML yet":
            pytest.skip(reason)
        only_compose(module, words)
    elif is_again(command):
        only_compose(module, words)
    else:
        runner(command)


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_blocks(
    name: str, block: str, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = re.findall(r"out=\"([^\"]+)\"|export\([^,]*, \"([^\"]+)\"", block)
    written = {path.rstrip("/") for pair in own for path in pair}
    texts = [text for text in re.findall(r"\"([^\"]+)\"", block) if text.rstrip("/") not in written]
    runner.furnish(tmp_path, modality_of(("", *texts)), texts)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=(6, 32, 3)).astype(np.float32) for name in ("generated", "reference", "train")
    }
    exec(compile(block, name, "exec"), values)
    if "clouds" in values:  # README says that both ways draw the same
        files = sorted((tmp_path / "chairs").glob("*.npy"))
        assert np.array_equal(np.stack([np.load(file) for file in files]), values["clouds"])
