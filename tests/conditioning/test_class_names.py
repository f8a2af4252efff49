"""Classes called as people call folders: `none`, `random`, `null`, numbers. Each can be asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditmoe.conditioning import label_index, label_of, make_labels

NAMES = ["none", "random", "null", "all", "0", "1", "3", "#0", "#1", "chair"]


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_every_class_can_be_asked_for_whatever_it_is_called(classes: list[str]) -> None:
    for index in range(len(classes)):
        assert label_index(classes, f"#{index}") == index
        assert make_labels(classes, 2, f"#{index}").tolist() == [index] * 2
        assert make_labels(classes, 1, label_of(classes, index)).tolist() == [index]


def test_a_word_that_is_a_class_too_says_how_to_ask_for_it(capsys: pytest.CaptureFixture) -> None:
    classes = ["cat", "none", "random"]
    assert make_labels(classes, 1, "none").tolist() == [3]
    assert "takes no class; the class called none is label='#1'" in capsys.readouterr().err
    make_labels(classes, 1, "random")
    assert "the class called random is label='#2'" in capsys.readouterr().err
    make_labels(classes, 1, "cat")
    make_labels(["cat"], 1, "none")
    assert not capsys.readouterr().err


def test_a_digit_that_is_no_number_is_no_class() -> None:
    with pytest.raises(ValueError, match="is not a class of this model"):
        label_index(["a", "b", "c"], "\u00b2")
