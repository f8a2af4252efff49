"""One place decides where tensors are computed."""

from pathlib import Path

import pytest
import torch

from ditmoe.outside import device, has_cuda, using_device

ROOT = Path(__file__).resolve().parents[2]


def machine(patch: pytest.MonkeyPatch, cuda: int = 0, mps: bool = False, xpu: int = 0) -> None:
    """A machine with so many accelerators."""
    patch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    patch.setattr(torch.cuda, "device_count", lambda: cuda)
    patch.setattr(torch.cuda, "set_device", lambda number: None)
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)
    patch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
    patch.setattr(torch.xpu, "device_count", lambda: xpu)
    kind = "cuda" if cuda else "xpu" if xpu else "mps" if mps else None
    patch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    patch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({}, "cpu"),
        ({"cuda": 1}, "cuda"),
        ({"xpu": 1}, "xpu"),
        ({"mps": True}, "cpu"),
        ({"cuda": 2, "xpu": 1}, "cuda"),
    ],
)
def test_auto_takes_what_torch_finds(there: dict, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, **there)
    with using_device("auto"):
        assert device() == torch.device(taken)
        assert has_cuda() == (taken == "cuda")
    assert device() == torch.device(taken)


@pytest.mark.parametrize("word", ["cpu", "cuda", "cuda:1", "mps", "xpu"])
def test_what_is_asked_for_counts_until_its_end(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, cuda=2, mps=True, xpu=1)
    with using_device(word):
        assert device() == torch.device(word)
    assert device() == torch.device("cuda")
    told = capsys.readouterr()
    assert (told.out + told.err).count("\n") == (word in ("mps", "xpu"))


@pytest.mark.parametrize("word", ["cuda", "cuda:0", "cuda:2", "mps", "mps:1", "xpu"])
def test_what_is_not_there_is_refused_in_one_line(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=2 if word == "cuda:2" else 0)
    line = rf"^device must be one that torch sees, got {word}: [^\n]*$"
    with pytest.raises(ValueError, match=line), using_device(word):
        pass


@pytest.mark.parametrize(
    "word",
    [
        "card",
        "CUDA",
        "cuda:",
        "cuda:-1",
        "cpu:0",
        "meta",
        0,
        None,
        "",
        "cuda:1\n",
        "cuda:9999",
        "cuda:200",
        "cuda:01",
        "cuda:٣",
    ],
)
def test_another_word_is_refused(word: object) -> None:
    with pytest.raises(ValueError, match=r"^device must be one of [^\n]*$"), using_device(word):
        pass


def test_nobody_else_asks_for_a_gpu() -> None:
    """What only CUDA has may be asked of it; which device to take, nowhere else."""
    files = [*ROOT.glob("ditmoe/**/*.py"), *ROOT.glob("modalities/**/*.py")]
    asking = {f.name for f in files if "cuda.is_available()" in f.read_text()}
    assert asking == {"device.py"}


@pytest.mark.parametrize(
    "command", ["train", "distill", "sample", "evaluate", "prepare", "train_codec", "analyze"]
)
def test_each_command_that_computes_takes_the_word(command: str) -> None:
    assert "\ndevice: auto " in (ROOT / f"configs/{command}.yaml").read_text()
