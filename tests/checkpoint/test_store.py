"""Checkpoints: never half-written, never executed, never of another shape."""

import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from ditmoe.checkpoint import atomic, manifest, replacing, store
from ditmoe.config.restore import load_weights, restore
from ditmoe.export import export
from ditmoe.inference import evaluate_checkpoint, sample_checkpoint
from ditmoe.pretrained import start, weights
from tests.checkpoint.dropping import drop_what_is_found
from tests.training.test_trainer import trainer


def content(step: int) -> dict:
    torch.manual_seed(step)
    return {
        "ema": {"w": torch.randn(2, 2), "on": torch.tensor([True, False]), "none": torch.zeros(3, 0)},
        "optimizer": {
            "state": {"w": {"mean": torch.randn(3), "step": torch.tensor(4.0), "index": torch.tensor(7)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "maximize": False, "params": ["w"]}],
        },
        "config": {"a": [1, None, "x"]},
        "facts": {"mean": [0.1, 1e-300], "codec": {"basis.weight": torch.randn(4).bfloat16()}, "empty": {}},
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip(tmp_path: Path) -> None:
    folder = store.save(tmp_path / "run", 3, content(3))
    for path in (tmp_path / "run", folder, folder / "manifest.json", folder.parent):
        assert store.find(path).run == tmp_path / "run"
        assert same(store.load(path), {"step": 3, **content(3)})
    (tmp_path / "link").symlink_to("run")  # somebody names it
    assert store.find(tmp_path / "link").run == tmp_path / "link"
    folder.rename(tmp_path / "mine")  # taken elsewhere
    assert store.find(tmp_path / "mine").run == tmp_path / "mine"


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-0000003"])
def test_a_link_in_a_run_opens_no_checkpoint_elsewhere(name: str, tmp_path: Path) -> None:
    """Whoever made the run chose it, not who names the run; `export` would publish it."""
    store.save(tmp_path / "secret", 3, content(3))
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "secret" / name)
    with pytest.raises(
        ValueError, match=r"^[^\n]*step-0000003 leads out of [^\n]*run, refused: it is a link[^\n]*$"
    ):
        store.find(tmp_path / "run")
    assert store.find(link).plain["step"] == 3  # named itself


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    """Also one of bytes that are no text, to which safetensors itself writes nothing."""
    run = tmp_path / os.fsdecode(b"caf\xe9\n")
    handles = len(os.listdir("/proc/self/fd"))
    store.save(run, 3, content(3))
    assert same(store.load(run), {"step": 3, **content(3)})
    assert len(os.listdir("/proc/self/fd")) == handles
    weights.write(tmp_path / os.fsdecode(b"\xff"), {"model": {}}, [("a", torch.ones(3))])
    assert (tmp_path / os.fsdecode(b"\xff") / "weights-00001.safetensors").is_file()


def test_the_newest_whole_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for step in (5, 100, 20):
        store.save(tmp_path, step, content(step))
    (tmp_path / "checkpoints" / "step-0000200").mkdir()  # no manifest
    (tmp_path / "checkpoints" / "best").mkdir()
    assert store.find(tmp_path).plain["step"] == 100
    assert (
        "step-0000200 is no checkpoint of ditmoe: it lacks manifest.json; taking the checkpoint before it"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize("name", ["manifest.json", "ema.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "longer"])
def test_any_damage_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, damage: str) -> None:
    for step in (1, 2):
        store.save(tmp_path, step, content(step))
    file = tmp_path / "checkpoints" / "step-0000002" / name
    data = file.read_bytes()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    new = {"flip": bytes(changed), "cut": data[:-3], "empty": b"", "longer": data + b"x"}
    file.write_bytes(new[damage]) if damage in new else file.unlink()
    assert same(store.load(tmp_path), {"step": 1, **content(1)})
    told = capsys.readouterr().err
    assert "step-0000002" in told
    assert told.count("\n") == 1
    with pytest.raises((ValueError, OSError), match="step-0000002"):  # asked for by name there is none before
        store.load(file.parent)


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A few bytes of an archive may unpack to terabytes of them, which take hours to read."""
    folder = store.save(tmp_path, 1, content(1))
    os.truncate(folder / "ema.safetensors", size := 2**29)
    told = manifest.read(folder)
    told["files"]["ema.safetensors"]["bytes"] = size
    (folder / manifest.NAME).write_bytes(manifest.sealed(told))
    with pytest.raises(ValueError, match=rf"ema\.safetensors must hold .* got {size} bytes of mostly holes$"):
        store.find(tmp_path)


def test_what_is_not_read_is_not_looked_at(tmp_path: Path) -> None:
    folder = store.save(tmp_path, 1, content(1))
    (folder / "optimizer.safetensors").unlink()
    assert same(store.find(tmp_path, parts=("ema",)).part("ema"), content(1)["ema"])
    with pytest.raises(ValueError, match=r"optimizer.safetensors is missing"):
        store.find(tmp_path)
    with pytest.raises(ValueError, match="lacks the part model"):
        store.find(tmp_path, parts=("ema",)).part("model")


def test_the_last_ones_and_every_so_many_are_kept(tmp_path: Path) -> None:
    for step in range(1, 11):
        store.save(tmp_path, step, content(step))
        store.keep(tmp_path, last=2, every=4)
    left = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert left == [f"step-{step:07d}" for step in (4, 8, 9, 10)]


def test_only_what_is_plain_can_be_said_anew(tmp_path: Path) -> None:
    store.save(tmp_path, 1, content(1))
    store.restate(store.find(tmp_path), config={"a": [2]})
    assert same(store.load(tmp_path), {"step": 1, **content(1), "config": {"a": [2]}})


def test_a_failed_write_leaves_the_old_ones_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path, 1, content(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in (
        (store, "save_file"),
        (atomic, "sync"),
        (store, "digest"),
        (atomic, "_take"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space"):
                store.save(tmp_path, 2, content(2))
        assert os.listdir(tmp_path / "checkpoints") == ["step-0000001"]
    file = tmp_path / "notes.json"
    file.write_text("old")

    def replace() -> None:
        with replacing(file) as stream:
            stream.write(b"half")
            full()

    with pytest.raises(OSError, match="No space"):
        replace()
    assert file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "notes.json"]


def test_one_process_at_a_time_and_no_litter_of_killed_ones(tmp_path: Path) -> None:
    litter = tmp_path / "checkpoints" / ".step-0000007.01234567.ditmoe-draft"
    litter.mkdir(parents=True)
    (litter / "ema.safetensors").write_bytes(b"half")
    with store.exclusive_lock(tmp_path):
        assert os.listdir(tmp_path / "checkpoints") == []
        refused = pytest.raises(ValueError, match=r"another process is training .* another name= or out=$")
        with refused, store.exclusive_lock(tmp_path):
            pass
    with store.exclusive_lock(tmp_path):
        pass


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        store.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds none"):
        store.load(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"a\.txt is not one"):
        store.load(tmp_path / "a.txt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    folder = store.save(tmp_path, 1, content(1))
    (folder / "ema.safetensors").write_bytes(pickle.dumps(Payload()))
    (folder / "manifest.json").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="no checkpoint"):
        store.load(folder)
    assert not witness.exists()


def test_the_first_tensor_that_does_not_fit_is_named() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"weight is \(3, 4\) there, \(3, 2\) in the model"):
        load_weights(model, torch.nn.Linear(4, 3).state_dict(), Path("x.pt"))
    with pytest.raises(ValueError, match=r"bias is missing there"):
        load_weights(model, {"weight": torch.zeros(3, 2)}, Path("x.pt"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer(folder, "trainer.steps=1")[0].run()
    return folder


def test_a_step_that_is_dropped_while_it_is_read_is_no_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a run that saves and drops one at once; who names the step gets no other."""
    parts = store.load(run)
    parts.pop("step")
    opened = drop_what_is_found(monkeypatch)
    fitted = parts | {"facts": {"mean": torch.zeros(1)}}
    readers = {
        restore: parts,
        partial(export, out=tmp_path / "out"): parts,
        weights.read: parts,
        start.read_data: fitted,
    }
    for reader, saved in readers.items():
        for step in (1, 2):
            store.save(tmp_path / "run", step, saved)
        reader(tmp_path / "run")
        named = store.save(tmp_path / "run", 2, saved)
        with pytest.raises(FileNotFoundError, match=r"step-0000002 does not exist$"):
            reader(named)
    assert opened == [2, 1, 2] * len(readers)


def test_steps_that_are_dropped_without_end_are_an_error(tmp_path: Path) -> None:
    opened: list[Path] = []

    def work() -> None:
        opened.append(store.save(tmp_path, len(opened) + 1, content(1)))
        shutil.rmtree(opened[-2] if len(opened) > 1 else tmp_path / "checkpoints" / "step-0000000")
        raise ValueError("it is gone")

    store.save(tmp_path, 0, content(0))
    with pytest.raises(ValueError, match="it is gone"):
        checkpoint.unless_dropped(tmp_path, work)
    assert len(opened) == 3


def resealed(run: Path, folder: Path, **sections: dict) -> Path:
    """A copy with other options, sealed as a stranger would."""
    shutil.copytree(run, folder)
    found = store.find(folder)
    config = found.part("config")
    for name, options in sections.items():
        config[name] |= options
    store.restate(found, config=config)
    return folder


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"model": {"_target_": "os.system", "command": "touch witness"}},
            "not trusted, refused: model._target_ = 'os.system'",
        ),
        ({"scheduler": {"_target_": "subprocess.run"}}, "not trusted"),
        ({"process": {"nested": [{"_target_": "builtins.eval"}]}}, "not trusted"),
        ({"model": {"hidden_size": "${oc.env:HOME}"}}, "interpolation"),
        ({"model": {"hidden_size": 48 * 10**6}}, "must lie between"),
        ({"model": {"hidden_size": 480_000}}, "does not fit the model"),
        ({"model": {"depth": 4000}}, "at most the number of tensors"),
        ({"model": {"depth": 10**9}}, "must lie between"),
        ({"modality": {"num_points": 10**8}}, "must lie between"),
        ({"modality": {"num_points": -1}}, "num_points"),
        ({"router": {"num_experts": 10**4}}, "does not fit the model"),
        ({"process": {"prediction": "nonsense"}}, "nonsense"),
        ({"scheduler": {"num_train_timesteps": []}}, "cannot be built|must be"),
        ({"model": {"num_heads": "x"}}, "num_heads of ditmoe.model.DiTMoE must be a whole number"),
    ],
)
def test_every_reader_refuses_a_hostile_configuration(
    run: Path, tmp_path: Path, sections: dict, words: str
) -> None:
    folder = resealed(run, tmp_path / "run", **sections)
    for reader in (restore, sample_checkpoint, evaluate_checkpoint):
        with pytest.raises(ValueError, match=words) as caught:
            reader(folder)
        assert len(str(caught.value).splitlines()) == 1
    if words == "not trusted":
        with pytest.raises(ValueError, match=words):
            export(folder, tmp_path / "out")


def test_names_of_tensors_lead_nowhere(run: Path, tmp_path: Path) -> None:
    """They are keys; no path is ever made of them."""
    folder = store.save(tmp_path, 1, {"ema": {"../../x": torch.zeros(1), "/etc/passwd": torch.zeros(1)}})
    assert sorted(f.name for f in folder.iterdir()) == ["ema.safetensors", "manifest.json"]
    assert store.find(tmp_path).tensors["ema"].keys() == {"..~1..~1x", "~1etc~1passwd"}, "paths of keys"
    assert store.load(tmp_path)["ema"].keys() == {"../../x", "/etc/passwd"}
    assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_filled_with_what_is_not_finite(value: float, tmp_path: Path) -> None:
    store.save(tmp_path, 1, {"optimizer": {"moments": torch.tensor([0.0, value]), "step": torch.tensor(3)}})
    own = {"moments": torch.ones(2), "step": torch.tensor(0)}
    with pytest.raises(
        ValueError, match=r"step-0000001 holds numbers that are not finite: optimizer/moments$"
    ):
        store.fill(store.find(tmp_path), "optimizer", own)
    assert own["moments"].isfinite().all()
