"""What a modality remembers of its data: any tensors and plain values, nested, the same when they are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.config import restore
from ditmoe.config.facts import DTYPES, blank, described, facts_of
from tests.strangers.bare import Bare


class Knows(Bare):
    """A modality with these facts."""

    def __init__(self, data_facts: Any) -> None:
        self.known = data_facts

    def data_facts(self) -> Any:
        return self.known


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any type and shape, some of them views."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    kind = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    x = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(len(shape))).to(kind)
    return x.mT if x.ndim > 1 and draw(st.booleans()) else x


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy:
    names = st.text(max_size=4) | st.sampled_from(["codec", "a/b", "~1", "~", "0", "", "."])
    inner = st.recursive(
        leaves,
        lambda each: st.lists(each, max_size=3) | st.tuples(each, each) | st.dictionaries(names, each, max_size=3),
        max_leaves=8,
    )  # fmt: skip
    return st.dictionaries(names, inner, max_size=4)


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


def equal(a: Any, b: Any) -> bool:
    """Of one type and value; lists are what tuples become."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return type(b) is list and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=60)
@given(nested(PLAIN | tensors()))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, known: dict[str, Any]) -> None:
    run = tmp_path_factory.mktemp("run")
    kept = facts_of(Knows(known))
    assert equal(known, kept)
    checkpoint.save(run, 1, {"facts": kept})
    assert equal(kept, checkpoint.load(run)["facts"])
    plain, kinds = json.loads(json.dumps(described(kept)))
    values, zeros = manifest.split(kept)[1], blank(kinds)
    assert equal(kept, manifest.join(plain, values))
    assert {k: (v.shape, v.dtype) for k, v in zeros.items()} == {
        k: (v.shape, v.dtype) for k, v in values.items()
    }


def test_facts_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    kept = facts_of(Knows({"all": x, "again": x, "part": x[2:4]}))
    checkpoint.save(tmp_path, 1, {"facts": kept})
    assert checkpoint.load(tmp_path)["facts"]["part"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([], "must be a dict, got list"),
        ({"a": {1: 2}}, "must have names as keys, got 1"),
        ({"a": [{"b": np.float64(1)}]}, "must hold plain values, got float64 as a.0.b"),
        ({"a": np.zeros(2)}, "must hold plain values, got ndarray as a"),
        ({"a": {1, 2}}, "must hold plain values, got set as a"),
        ({"a": Path("x")}, "must hold plain values, got PosixPath as a"),
        ({"a": float("nan")}, "must hold finite numbers, got nan as a"),
        ({"a": [torch.zeros(1, dtype=torch.complex64)]}, "got torch.complex64 as a.0"),
        ({"a": torch.eye(2).to_sparse()}, "must hold dense tensors of"),
        (
            {"classes": ["cat", "1" * 1001]},
            "must have class names of at most 1000 characters, got 1001 as classes.1: 1{40}[.]{3}$",
        ),
        ({"__metadata__": torch.zeros(1)}, "must have names as keys, got '__metadata__'"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused(known: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^data_facts\(\) of bare [^\n]*{words}"):
        facts_of(Knows(known))


@pytest.mark.parametrize(
    "kinds", [{"a": [2]}, {"a": [[2], "float8"]}, {"a": [[2], ["x"]]}, {"a": 3}, {"a": [2, "float32"]}]
)
def test_tensors_without_shape_or_type_are_refused(kinds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the tensor a of the facts must have a shape and a type"):
        blank(kinds)


def test_endless_names_of_classes_are_refused_where_a_checkpoint_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any command shows a name, or compares it with others."""
    monkeypatch.setattr(restore.trust, "admit", lambda config, *_: config)
    monkeypatch.setattr(restore, "renamed", lambda config, _: dict(config))
    monkeypatch.setattr(restore, "adapters", lambda _: [None])
    for letters in (1000, 1001):
        known = {"classes": ["cat", "a" * letters]}
        checkpoint.save(tmp_path / str(letters), 1, {"config": {}, "facts": known})
    found = [checkpoint.find(tmp_path / letters, parts=("facts",)) for letters in ("1000", "1001")]
    assert restore.admitted(found[0])[1]["classes"][1] == "a" * 1000
    with pytest.raises(
        ValueError, match=r"^the facts of [^\n]* at most 1000 characters, got 1001 as classes"
    ):
        restore.admitted(found[1])
