"""Folders of autoencoders: read as diffusers reads them, and nothing in them is made up, endless or no number."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditmoe.checkpoint.fit import CONFIG, RENAMED, WEIGHTS
from modalities.image import Autoencoder
from modalities.latent import Codec, Identity, PatchPCA
from modalities.video import CausalPatches
from tests.modalities.image.test_adapter import AUTOENCODERS, autoencoder

FILE = f"{WEIGHTS}.safetensors"
KIND = next(kind for kind, (cls, _) in AUTOENCODERS.items() if cls.__name__ == "AutoencoderKL")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    autoencoder(KIND).save_pretrained(tmp_path)
    return tmp_path


def options(**values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(
        json.dumps(json.loads((folder / CONFIG).read_text()) | values)
    )


def tensors(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    return lambda folder: save_file(change(load_file(folder / FILE)), folder / FILE, {"format": "pt"})


def pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (tensors(lambda t: dict(list(t.items())[::2])), "is missing there"),
        (tensors(lambda t: {name: value / 0 for name, value in t.items()}), "weights must be finite"),
        (pipe(CONFIG), "must be a plain file"),
        (pipe(FILE), "does not exist as a plain file"),
        (options(block_out_channels=[2**15] * 2), "does not fit the model"),
        (options(layers_per_block=10**5), "more parts than its"),
        (options(norm_num_groups=0), "cannot be built: ZeroDivisionError"),
        (options(quantization_config={"quant_method": "torchao"}), "quantised"),
        (options(scaling_factor=float("nan")), "must be finite"),
        (options(scaling_factor=0), "scale not 0"),
        (options(scaling_factor="x"), "must be numbers, got x"),
        (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "no JSON"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "must hold a JSON object, got list"),
    ],
)
def test_what_a_stranger_spoilt_is_one_line(folder: Path, spoil: Callable, words: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
        Autoencoder(folder)


def test_weights_of_another_precision_and_of_old_names_are_those_of_diffusers(folder: Path) -> None:
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = Autoencoder(folder).decode(z)
    # As folders of the hub have them.
    save_file({"x": torch.zeros(1)}, folder / f"{WEIGHTS}.fp16.safetensors")
    assert torch.equal(Autoencoder(folder).decode(z), expected)
    old = {new: name for name, new in RENAMED.items()}

    def renamed(name: str) -> str:
        return next(
            (name.replace(f".{new}.", f".{o}.") for new, o in old.items() if f".{new}." in name), name
        )

    tensors(lambda t: {renamed(name): value for name, value in t.items()})(folder)
    assert any(".query." in name for name in load_file(folder / FILE))
    assert torch.equal(Autoencoder(folder).decode(z), expected)


def test_a_codec_takes_back_numbers_alone() -> None:
    codec = PatchPCA([2, 2], 3)
    for spoilt in (torch.full((3,), torch.nan), 3):
        with pytest.raises(ValueError, match="codec must"):
            codec.restore(codec.fitted_state() | {"scale": spoilt})


@pytest.mark.parametrize(
    ("codec", "name", "value"),
    [
        (Identity(3), "scale", 0.0),
        (Identity(), "mean", -1e38),
        (PatchPCA([2, 2], 3), "scale", 0.0),
        (PatchPCA([2, 2], 3), "scale", 1e38),
        (CausalPatches(width=4, depth=1), "deviation", 0.0),
        (CausalPatches(width=4, depth=1), "deviation", 1e38),
        (CausalPatches(width=4, depth=1), "encoder.2.bias", 1e30),
    ],
)
def test_a_codec_whose_numbers_overflow_is_refused(codec: Codec, name: str, value: float) -> None:
    """Finite ones whose latents or pixels are not: a run would skip its steps, or draw one colour, without a reason."""
    state = {key: of.clone() for key, of in codec.fitted_state().items()}
    codec.restore(state)
    codec.check_range()
    state[name].fill_(value)
    codec.restore(state)
    with pytest.raises(
        ValueError, match=r"^the codec must make (latents|pixels) within 1e\+09 of 0, got [^\n]*$"
    ):
        codec.check_range()
