"""What holds for every modality: functions of a subject, run over all that are found by `test_laws.py`.

A subject is every YAML of `configs/modality/`, of the examples, of the packages in `tests/strangers/` and of a folder
that a test names; those of ditmoe are made tiny by the words of `TINY`.
"""

import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ditmoe import DiTMoE, checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.conditioning import ClassLabel, Condition
from ditmoe.config import build
from ditmoe.config.facts import described, facts_of
from ditmoe.config.words import shape_asked, split_words
from ditmoe.diffusion import FlowMatching, denoise, make_scheduler
from ditmoe.diffusion.schedulers import FlowAncestralScheduler
from ditmoe.inference import evaluate_files
from ditmoe.modality import CodecTraining, Encoding, Files, Metric, Modality, NativeSizes, Preparation, Tokens
from ditmoe.model.mup import compare
from ditmoe.nn import Layout
from ditmoe.outside import printable
from ditmoe.prepare import prepare
from ditmoe.reporting.pictures import packed
from ditmoe.reporting.samples import listed
from ditmoe.train_codec import train_codec
from tests import subjects
from tests.training.test_trainer import same

D, CPU = 24, torch.device("cpu")
LAWS: list[Callable[["Subject", Path], None]] = []
TINY = {
    "image": ["modality.size=[16,24]", "modality.codec.channels=3"],
    "pointcloud": ["modality.num_points=90"],
    "video": ["modality.frames=5", "modality.size=[16,16]", "modality.codec.channels=4", "modality.codec.steps=0"],
}  # fmt: skip
VARIANTS = {f"{name}, native": ("modality.native=true", "modality.budget=100") for name in ("image", "video")}


@dataclass(frozen=True)
class Subject:
    """A modality: its section of a configuration, and one of it that has met its data."""

    section: dict[str, Any] = field(repr=False)

    @cached_property
    def modality(self) -> Modality:
        return self.make()

    @cached_property
    def facts(self) -> dict[str, Any]:
        return facts_of(self.modality)

    def make(self, facts: dict[str, Any] | None = None, **options: Any) -> Modality:
        return build.make_modality({"modality": self.section | options}, facts)

    @cached_property
    def tokens(self) -> Tokens:
        torch.manual_seed(0)
        return self.modality.tokens(D)

    def samples(self, num: int = 3) -> tuple[Tensor, Condition]:
        """Of the training data, and what they are."""
        x, asked = self.modality.batch(num, 0, 0)
        return x, ClassLabel(4, len(self.modality.classes)).read(asked)


def find(*folders: Path) -> dict[str, Subject]:
    """The modality of every YAML of these folders, by default of all that there are (`tests/subjects.py`)."""
    found = {}
    for name, folder in subjects.find("modality", *folders).items():
        for own, words in {name: (), f"{name}, native": VARIANTS.get(f"{name}, native")}.items():
            if words is not None:
                words = (f"modality={name}", *TINY.get(name, ()), *words)
                found[own] = Subject(subjects.composed("train", *words, folder=folder)["modality"])
    return found


def law(check: Callable[[Subject, Path], None]) -> Callable[[Subject, Path], None]:
    LAWS.append(check)
    return check


def refuses(work: Callable[[], Any]) -> bool:
    """Whether it ends in a ValueError of one line."""
    try:
        work()
    except ValueError as error:
        line = str(error)
    else:
        return False
    assert line
    assert "\n" not in line
    return True


def model(tokens: Tokens) -> DiTMoE:
    """With weights that are nowhere zero."""
    torch.manual_seed(0)
    net = DiTMoE(tokens, 3, D, 1, 4).eval()
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return net


# --- data


@law
def what_was_understood_is_said_in_a_few_lines(of: Subject, tmp_path: Path) -> None:
    said = of.modality.understood()
    assert isinstance(said, str)
    assert all(line.strip() and line == printable(line) for line in said.splitlines())
    assert len(said.splitlines()) < 30


# --- tokens


@law
@torch.no_grad()
def tokens_fill_their_layout_and_become_samples_again(of: Subject, tmp_path: Path) -> None:
    tokens, (x, _) = of.tokens, of.samples()
    grid, layout = tokens.grid(x), tokens.layout(x)
    assert len(grid) == tokens.axes
    assert np.prod(grid) == layout.lengths[0] or layout.kept is not None
    rows = tokens.patchify(x, layout)
    assert rows.shape[-1] == tokens.in_features
    assert rows.shape[0] * rows.shape[1] == sum(layout.lengths)
    assert tokens.occupied(rows).shape == rows.shape[:2]
    t, c = torch.full((len(x),), 500.0), torch.zeros(len(x), D)
    predicted = torch.randn(*rows.shape[:2], tokens.out_features)
    assert tokens.unpatchify(predicted, layout, x, t, c).shape == x.shape
    if not list(tokens.parameters()):  # else it predicts with a head of its own
        assert torch.equal(tokens.unpatchify(rows, layout, x, t, c), x)


@law
def the_shapes_say_how_each_weight_follows_the_width(of: Subject, tmp_path: Path) -> None:
    """By which muP lets it start and learn, also those of a head of the modality's own."""
    assert of.facts is not None  # learnt of data, that is of values
    with torch.device("meta"):
        large, small = (DiTMoE(of.modality.tokens(width), 3, width, 1, 4) for width in (4 * D, D))
    for name, scaling in compare(large, small).items():
        assert scaling.ratio == (4 if scaling.kind in ("hidden", "output") else 1), name
    assert compare(large, small)["final.linear.weight"].kind == "output"


@law
@torch.no_grad()
def each_token_has_a_position_of_its_own(of: Subject, tmp_path: Path) -> None:
    tokens, (x, _) = of.tokens, of.samples()
    layout = tokens.layout(x)
    positions, coordinates = tokens.positions(layout), tokens.coordinates(layout)
    assert positions.shape == (len(layout.cells), D)
    assert coordinates.shape == (len(layout.cells), tokens.axes)
    for table in (positions.float(), coordinates.float()):
        assert table.isfinite().all()
        assert len(table.unique(dim=0)) == len(layout.cells)


@law
@torch.no_grad()
def packed_is_each_alone(of: Subject, tmp_path: Path) -> None:
    """Rows, positions and what a model makes of them; of several sizes where the modality has them."""
    tokens, modality = of.tokens, of.modality
    packs = isinstance(modality, NativeSizes) and modality.rows
    samples = modality.packed_batch(0, 0)[0][:3] if packs else list(of.samples()[0])
    net, t, y = model(tokens), torch.tensor([100.0, 500.0, 900.0])[: len(samples)], torch.tensor([0, 1, 3])
    rows, layout = tokens.pack(samples)
    whole = net.predict(rows[None], layout, t, y[: len(samples)])[0][0].split(layout.lengths)
    parts = zip(
        *(v.split(layout.lengths) for v in (rows, tokens.positions(layout), tokens.coordinates(layout))),
        strict=True,
    )
    for i, (x, (row, positions, coordinates)) in enumerate(zip(samples, parts, strict=True)):
        alone = tokens.layout(x[None])
        cut = tokens.patchify(x[None], alone)
        assert torch.equal(cut[0], row)
        assert torch.allclose(tokens.positions(alone), positions)
        assert torch.allclose(tokens.coordinates(alone), coordinates)
        expected = net.predict(cut, alone, t[i : i + 1], y[i : i + 1])[0][0]
        assert torch.allclose(whole[i], expected, atol=1e-4)


@law
@torch.no_grad()
def samples_are_noised_as_their_tokens_are_told(of: Subject, tmp_path: Path) -> None:
    tokens, process = of.tokens, FlowMatching()
    x = torch.randn(2, *of.modality.sample_shape)
    grid = tokens.grid(x)
    layout, number = Layout.even(grid, 2, CPU), int(np.prod(grid))
    t, noise = torch.tensor([100.0, 900.0]), torch.randn_like(x)
    expected = process.corrupt(x, noise, t)
    for n in (1, grid[0], number):
        times = tokens.sample_times(t[:, None].expand(-1, n).contiguous(), x)
        assert times.ndim == x.ndim
        assert torch.equal(process.corrupt(x, noise, times), expected)
        assert torch.equal(process.target(x, noise, times), process.target(x, noise, t))
    assert refuses(lambda: tokens.sample_times(torch.zeros(2, number + 1), x))
    frames = 1000 * torch.rand(2, grid[0])
    each = frames.repeat_interleave(number // grid[0], dim=1)
    shaped = tokens.sample_times(frames, x)
    assert torch.equal(shaped, tokens.sample_times(each, x))
    assert torch.allclose(tokens.sample_times(frames[:1], x[:1]), shaped[:1])  # one sample, several frames
    assert process.corrupt(x[:1], noise[:1], shaped[:1]).shape == x[:1].shape
    several, packed = tokens.pack(list(x))
    assert torch.equal(tokens.sample_times(t, several, packed), t.repeat_interleave(number)[:, None])
    assert torch.equal(tokens.sample_times(each.view(1, -1), several, packed), each.view(-1, 1))
    if not list(tokens.parameters()):  # else a token is no cut of the sample
        rows = tokens.patchify(shaped.expand_as(x), layout)
        assert torch.equal(rows, each[..., None].expand_as(rows))


@law
@torch.no_grad()
def times_may_be_given_in_sampling(of: Subject, tmp_path: Path) -> None:
    process = FlowMatching("residual")
    net = model(of.tokens).double()  # floats may choose other experts or cells
    noise = torch.randn(2, *of.modality.sample_shape, generator=torch.Generator().manual_seed(1)).double()
    asked, frames = net.conditioning.ask(2, list("abc")), of.tokens.grid(noise)[0]

    def drawn(times: Any = None) -> Tensor:
        scheduler = make_scheduler(FlowAncestralScheduler, process)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        options = {"steps": 3, "guidance": 1.5, "generators": generators, "times": times}
        return denoise(net, process, scheduler, noise, asked, **options)

    assert torch.allclose(drawn(lambda t: t.expand(2, frames)), drawn(), atol=1e-4)
    told: list[Tensor] = []
    hook = net.register_forward_pre_hook(lambda model, given: told.append(given[1]))
    changed = drawn(lambda t: torch.cat([torch.zeros(2, 1), t.expand(2, frames - 1)], dim=1))
    hook.remove()
    assert changed.isfinite().all()
    assert all(t.shape == (4, frames) for t in told)  # twice, for guidance
    assert not any(t[:, 0].any() for t in told)


# --- data


@law
def a_batch_is_a_function_of_its_address(of: Subject, tmp_path: Path) -> None:
    """Also in a process that begins there; and the ranks' parts make up the whole."""
    modality, again = of.modality, of.make(of.facts)
    whole = again.batch(4, 1, 7)
    assert same(whole, again.batch(4, 1, 7))
    modality.batch(4, 1, 6)
    assert same(whole, modality.batch(4, 1, 7))
    assert whole[0].shape == (4, *modality.sample_shape)
    assert whole[0].dtype == torch.float32
    for other in ((4, 1, 8), (4, 2, 7)):
        assert not same(whole[0], modality.batch(*other)[0])
    parts = [modality.batch(2, 1, 7, rank, 2) for rank in range(2)]
    read = ClassLabel(4, len(modality.classes)).read
    assert same(torch.cat([x for x, _ in parts]), whole[0])
    assert same(Condition.cat([read(y) for _, y in parts]).tensors(), read(whole[1]).tensors())
    if not isinstance(modality, NativeSizes) or not modality.rows:  # whose names are those of rows
        assert len(modality.batch_names(4, 1, 7)) in (0, 4)


@law
def what_is_encoded_is_what_a_model_sees(of: Subject, tmp_path: Path) -> None:
    if not isinstance(of.modality, Encoding):
        return
    data = of.modality.reference("test").data[:2]  # type: ignore[attr-defined]
    x = of.modality.encode(data)
    assert x.shape == (2, *of.modality.sample_shape)
    assert x.dtype == torch.float32
    again = of.modality.decode(x.cpu())
    assert again.shape == data.shape
    assert np.abs(again - data.astype(float)).mean() < 0.3 * np.abs(data - data.mean()).mean()


@law
def what_another_process_reads_is_finished_to_the_same_batch(of: Subject, tmp_path: Path) -> None:
    modality = of.modality
    packs = isinstance(modality, NativeSizes) and modality.rows
    address, made = ((1, 7), modality.packed_batch) if packs else ((4, 1, 7), modality.batch)
    reader = modality.reader()
    sent = pickle.loads(pickle.dumps(reader.read))
    found, whole = reader.finish(pickle.loads(pickle.dumps(sent(*address)))), made(*address)
    assert all(same(a, b) for a, b in zip(found[0], whole[0], strict=True))
    read = ClassLabel(4, len(modality.classes)).read
    assert same(read(found[1]).tensors(), read(whole[1]).tensors())


@law
def a_packed_batch_is_a_function_of_its_address(of: Subject, tmp_path: Path) -> None:
    if not isinstance(of.modality, NativeSizes) or not of.modality.rows:
        return
    again = of.make(of.facts)
    whole = of.modality.packed_batch(1, 3)
    assert same(whole, again.packed_batch(1, 3))
    assert len(whole[0]) == len(whole[1])
    assert not same(whole[0], of.modality.packed_batch(1, 4)[0])


@law
def facts_go_through_json_and_a_checkpoint_and_are_enough_to_decode(of: Subject, tmp_path: Path) -> None:
    x, asked = of.samples()
    expected = of.modality.samples(x, asked)
    plain, _ = json.loads(json.dumps(described(of.facts)))
    checkpoint.save(tmp_path, 1, {"facts": of.facts})
    kept = checkpoint.load(tmp_path)["facts"]
    assert same(kept, manifest.join(plain, manifest.split(of.facts)[1]))
    for section in _without_data(of.section):
        other = Subject(section).make(kept)
        assert same(facts_of(other), of.facts)
        assert list(other.classes) == list(of.modality.classes)
        assert tuple(other.sample_shape) == tuple(of.modality.sample_shape)
        assert same(other.tokens(D).state_dict().keys(), of.tokens.state_dict().keys())
        found = other.samples(x, asked)
        assert np.array_equal(found.data, expected.data)
        assert list(found.names or ()) == list(expected.names or ())


def _without_data(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The section as it is, and with each folder of data moved away."""
    yield section
    for name, value in section.items():
        if name == "root":
            yield section | {name: "nowhere"}
        elif isinstance(value, dict) and "root" in value and name == "data":
            yield section | {name: value | {"root": "nowhere"}}


@law
def words_ask_for_a_shape_or_are_refused_in_one_line(of: Subject, tmp_path: Path) -> None:
    modality = of.modality
    assert shape_asked(modality, {}) == tuple(modality.sample_shape)
    assert set(inspect.signature(modality.shape_of).parameters) - {"words"} == set(modality.words)
    for word in modality.words:
        works = []
        for value in (1, 4, 5, 8, 16, 32, [16, 16], [32, 16]):
            if not refuses(lambda value=value, word=word: shape_asked(modality, {word: value})):
                works.append(shape_asked(modality, {word: value}))
        assert works, word
        assert all(len(shape) == len(modality.sample_shape) for shape in works)
        for wrong in (0, -1, "many", 1.5, [0, 0], [1, 2, 3, 4, 5], {"a": 1}):
            assert refuses(lambda wrong=wrong, word=word: shape_asked(modality, {word: wrong})), (word, wrong)
    assert refuses(lambda: split_words({"no_such_word": 1}, modality))


# --- what it says that it can do


@law
def what_is_written_is_read(of: Subject, tmp_path: Path) -> None:
    if not isinstance(of.modality, Files):
        return
    x, asked = of.samples()
    samples = replace(of.modality.samples(x, asked), names=["a", "b", "c"])
    for folder in (tmp_path / "set", tmp_path / "set.npz"):
        picture, *files = of.modality.write(samples, folder)
        assert min(Image.open(picture).size) > 1
        assert files
        assert all(file.is_file() and tmp_path in file.parents for file in files)
        found = of.modality.read(folder)
        assert folder.is_file() == (folder.suffix == ".npz")  # all in one
        assert len(found) == len(samples)
        assert np.allclose(np.stack(list(found.data)), samples.data, atol=1e-5)
    files = of.modality.write(samples, tmp_path / "set")[1:]
    assert {file.suffix for file in files} & {*of.modality.suffixes}, "view could not open them"
    of.modality.save_picture(samples, tmp_path / "new" / "picture.png")
    assert Image.open(tmp_path / "new" / "picture.png").format == "PNG"


@law
def what_is_written_is_shown_or_listed(of: Subject, tmp_path: Path) -> None:
    """On the page of a run: as a picture, a clip or a cloud, of any endings of a sample's files."""
    if not isinstance(of.modality, Files):
        return
    x, asked = of.samples()
    samples = replace(of.modality.samples(x, asked), names=["a", "b", "c"])
    of.modality.write(samples, tmp_path / "set")
    found, _ = listed(tmp_path / "set")
    assert [one.name for one in found] == ["a", "b", "c"]
    for one in found:
        shown = [type(of.modality).show(files) for files in (one.files, one.files[::-1])]
        assert shown[0] is None or packed(shown[0]) == packed(shown[1])


@law
def a_command_refuses_what_it_cannot_do_in_one_line(of: Subject, tmp_path: Path) -> None:
    """Before it has read or written anything."""
    given = {
        "modality": of.section,
        "source": str(tmp_path),
        "out": str(tmp_path / "out"),
        "check": False,
        "seed": 0,
    }
    commands = {
        "prepare": (Preparation, lambda: prepare(dict(given))),
        "train_codec": (CodecTraining, lambda: train_codec(dict(given))),
        "evaluate": (Metric, lambda: evaluate_files(of.section, str(tmp_path), str(tmp_path))),
        "view": (Files, lambda: Files.check(type(of.modality), "view")),
    }
    for command, (contract, work) in commands.items():
        if not isinstance(of.modality, contract):
            line = rf"^python -m ditmoe.{command} is for modalities that [^\n]*: {of.modality.name} does not [^\n]*$"
            with pytest.raises(ValueError, match=line):
                work()
    assert not list(tmp_path.iterdir())
