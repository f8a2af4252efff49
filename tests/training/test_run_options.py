"""The options of a run: as many as the command line has words, each in one group, each refused by its name."""

from dataclasses import FrozenInstanceError, fields

import pytest

from ditmoe.training import Options
from tests.training.test_trainer import config

NAMES = [field.name for field in fields(Options)]
TEXT = (str, str | None)
WRONG = {
    field.name: "-1" if field.type in TEXT else -1 for field in fields(Options) if field.type is not bool
}


def test_the_words_of_the_command_line_are_the_options() -> None:
    assert {*config()["trainer"]} - {"_target_"} == {*NAMES}


def test_each_option_is_of_one_group() -> None:
    own = [name for group in Options.__bases__ for name in group.__annotations__]
    assert sorted(own) == sorted(NAMES)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_value_that_does_not_fit_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.{name} must be .*got '?-1'?$"):
        Options(**{"steps": 1, "batch_size": 1, name: WRONG[name]})


def test_options_stay_as_they_were_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        Options(steps=1, batch_size=1).steps = 0  # type: ignore[misc]
