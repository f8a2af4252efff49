"""What a modality of one's own needs: the contract, a folder and a YAML, in a package that depends on ditmoe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.strangers import ROOT, install, run, source

TINY = ("model=debug", "trainer.steps=2", "trainer.batch_size=2", "sampling.steps=2")
OPEN = """
import ditmoe
pipe = ditmoe.Pipeline.from_pretrained("folder")
pipe.set_progress_bar_config(disable=True)
print(pipe(label="square", num_samples=2, num_inference_steps=2).samples.shape)
print(pipe(num_samples=1, num_inference_steps=2, length=96).samples.shape)
print({k: str(v) for k, v in pipe.modality.data_facts().items()})
for words in ({"lenght": 64}, {"length": "long"}, {"length": 0}):
    try:
        pipe(num_samples=1, **words)
    except ValueError as error:
        print(error)
"""


def test_a_package_that_depends_on_ditmoe(tmp_path: Path) -> None:
    """Trained, drawn from, measured, exported, opened and looked at, outside the checkout."""
    site, home = install(tmp_path / "site", "signals"), tmp_path / "home"
    done = run(
        home,
        ("train", "modality=signals", *TINY, "trainer.preview_every=1"),
        ("sample", "checkpoint=runs/signals/default", "num=4", "length=96", "label=square", "out=long"),
        ("sample", "checkpoint=runs/signals/default", "num=2", "lenght=64"),
        ("sample", "checkpoint=runs/signals/default", "num=2", "stepz=64"),
        ("sample", "checkpoint=runs/signals/default", "num=2", "length=abc"),
        ("sample", "checkpoint=runs/signals/default", "num=2", "length=0"),
        ("sample", "checkpoint=runs/signals/default", "num=2", "length=63"),
        ("evaluate", "checkpoint=runs/signals/default", "num=4", "out=again"),
        ("evaluate", "checkpoint=runs/signals/default", "num=4", "length=96", "out=long-against-short"),
        ("evaluate", "checkpoint=runs/signals/default", "reference=long", "length=96", "out=both-long"),
        ("evaluate", "modality=signals", "generated=long", "reference=long", "out=same"),
        ("evaluate", "modality=signals", "generated=long", "reference=long", "length=8"),
        ("export", "checkpoint=runs/signals/default", "out=folder"),
        ("python", OPEN),
        ("view", "runs/signals/default"),
        ("view", "long"),
        ("train_codec", "modality=signals", "out=x"),
        ("plan", "modality=signals", "model=debug"),
        path=(site,),
    )
    codes, outs, errors = zip(*done, strict=True)
    assert codes == (0, 0, 2, 2, 2, 2, 2, 0, 2, 0, 0, 2, 0, 0, 0, 0, 2, 0), errors
    folder = home / "runs/signals/default"
    assert (folder / "progress/step-0000001.png").is_file()
    assert len(list((folder / "samples").glob("*.signal"))) == 32, "what its recipe says"
    assert "fd/spectra" in json.loads((folder / "metrics.json").read_text())
    assert np.loadtxt(next((home / "long").glob("square-*.signal"))).shape == (96,)
    known = "length (numbers of a signal)\n"
    assert errors[2].startswith("error: lenght is not an option; did you mean length? words of ")
    assert errors[2].endswith(known)
    assert errors[3].startswith("error: stepz is not an option; did you mean steps? words of ")
    assert errors[3].endswith(known)
    assert errors[4] == "error: length of signals must be a whole number or null, got 'abc'\n"
    assert errors[5] == "error: no sample of signals has the shape [1, 0] of length=0\n"
    assert "error: the grid must be a multiple of the patch, got (63,) and (4,)\n" in errors[6]
    assert "error: both sets must be as long, got 48 and 32 amplitudes\n" in errors[8]
    assert "length must be left out" in errors[11]
    said = outs[13].splitlines()
    assert said[:2] == ["(2, 1, 64)", "(1, 1, 96)"]
    assert "dtype=torch.float64" in said[2], "in its own type"
    assert said[3].startswith("lenght is not an option; did you mean length? words of ")
    assert outs[14] == "32 signals on runs/signals/default/samples/view.png\n"
    assert outs[15] == "4 signals on long/view.png\n"
    assert errors[16] == (
        "error: python -m ditmoe.train_codec is for modalities that train an autoencoder: "
        "signals does not (`CodecTraining`)\n"
    )
    for code, _, error in run(
        tmp_path, ("sample", "checkpoint=home/runs/signals/default"), ("view", "home/runs/signals/default")
    ):
        assert code == 2
        assert "names a class that is not trusted, refused: modality._target_ = 'signals.Signals'" in error


def test_the_core_of_the_contract_is_enough(tmp_path: Path) -> None:
    """Trained and drawn from in Python; what it lacks is said once, and refused by the command that needs it."""
    site = install(tmp_path / "site", "bare")
    done = run(
        tmp_path / "home",
        ("train", "modality=bare", *TINY),
        ("export", "checkpoint=runs/bare/default", "out=folder"),
        ("python", "import ditmoe; print(ditmoe.Pipeline.from_pretrained('folder')(label='high').samples.shape)"),
        ("sample", "checkpoint=runs/bare/default"),
        ("sample", "checkpoint=runs/bare/default", "length=3"),
        ("evaluate", "checkpoint=runs/bare/default"),
        ("evaluate", "modality=bare", "generated=.", "reference=."),
        ("view", "runs/bare/default"),
        ("prepare", "modality=bare", "source=.", "out=y"),
        path=(site,),
    )  # fmt: skip
    codes, outs, errors = zip(*done, strict=True)
    assert codes == (0, 0, 0, 2, 2, 2, 2, 2, 2), errors
    assert [line for line in outs[0].splitlines() if "does not" in line] == [
        "bare does not write files (`Files`): no pictures on the way and no samples after it",
        "bare does not have a metric (`Metric`): no evaluation after it",
    ]
    assert "sample" not in outs[0].split("Next:")[1]
    assert outs[2] == "(1, 4)\n"
    lines = {3: "write files", 5: "have a metric", 6: "have a metric", 7: "write files", 8: "prepare data"}
    contracts = {"write files": "Files", "have a metric": "Metric", "prepare data": "Preparation"}
    for index, does in lines.items():
        (line,) = errors[index].splitlines()
        assert line.endswith(f"is for modalities that {does}: bare does not (`{contracts[does]}`)")


def test_only_what_is_chosen_is_imported(tmp_path: Path) -> None:
    """A package beside it costs a run nothing, even if it is broken."""
    site = install(tmp_path / "site", "signals", "bare")
    (site / "bare" / "__init__.py").write_text("raise RuntimeError('imported')")
    done = run(
        tmp_path / "home",
        ("train", "modality=signals", "--cfg", "job"),
        ("train", "modality=signal"),
        ("view", str(ROOT / "docs"), "--out", "docs.png"),
        path=(site,),
    )
    assert done[0][0] == 0, done[0]
    assert "modality=signal does not exist; did you mean signals?" in done[1][2]
    assert done[2][0] == 0, done[2]


def test_an_entry_point_must_name_a_folder(tmp_path: Path) -> None:
    site = install(tmp_path / "site", "bare")
    shutil.rmtree(site / "bare" / "configs")
    ((code, _, error),) = run(tmp_path / "home", ("plan",), path=(site,))
    assert code == 2
    assert error == (
        "error: the entry point bare of bare in ditmoe.configs must name a package folder of YAML files, "
        "got 'bare.configs'\n"
    )


def test_a_folder_of_yaml_is_enough(tmp_path: Path) -> None:
    """What --config-dir names on the person's own command line is trusted, too."""
    site = tmp_path / "site"
    shutil.copytree(source("signals"), site / "signals")
    where = ("--config-dir", str(site / "signals/configs"))
    done = run(
        tmp_path / "home",
        ("train", *where, "modality=signals", *TINY, "finish.num=0", "finish.evaluate=false"),
        ("sample", *where, "checkpoint=runs/signals/default", "num=1", "length=8"),
        path=(site,),
    )
    assert [code for code, *_ in done] == [0, 0], done


@pytest.mark.parametrize("name", ["signals"])
def test_a_folder_and_a_yaml_in_the_checkout_and_its_wheel(name: str, tmp_path: Path) -> None:
    """No other file changes; the wheel that is built there holds both."""
    tree, stranger = tmp_path / "tree", source(name)
    tree.mkdir()
    kept = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp")
    for part in ("ditmoe", "modalities", "configs"):
        shutil.copytree(ROOT / part, tree / part, ignore=kept)
    for file in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy2(ROOT / file, tree)
    # without the compiled kernels, which would take minutes
    setup = (ROOT / "setup.py").read_text().replace("ext_modules=", "ext_modules=[] and ")
    (tree / "setup.py").write_text(setup)
    folder = tree / "modalities" / name
    shutil.copytree(stranger, folder, ignore=shutil.ignore_patterns("configs", "__pycache__"))
    text = (stranger / "configs/modality" / f"{name}.yaml").read_text()
    (tree / "configs/modality" / f"{name}.yaml").write_text(text.replace(f"{name}.", f"modalities.{name}."))
    build = (
        "python",
        "from setuptools.build_meta import build_wheel; build_wheel('out')",
    )
    assert run(tree, build)[0][0] == 0
    shutil.unpack_archive(next((tree / "out").glob("*.whl")), tmp_path / "site", "zip")
    done = run(
        tmp_path / "home",
        ("train", f"modality={name}", *TINY, "finish.num=0", "finish.evaluate=false"),
        ("sample", f"checkpoint=runs/{name}/default", "num=1", "length=8"),
        ("python", "import ditmoe; print(ditmoe.__file__)"),
        path=(tmp_path / "site",),
    )
    assert [code for code, *_ in done] == [0, 0, 0], done
    assert done[2][1].startswith(str(tmp_path / "site"))
