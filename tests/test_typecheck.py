"""Annotations are checked while tests run, also those of functions within functions."""

import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor, zeros

from tests.typecheck import check


def halves(size: int):
    @jaxtyped(typechecker=check)
    def half(x: Float[Tensor, "n"], by: int = size) -> Float[Tensor, "n"]:
        return x[: len(x) // by]

    return half


def test_every_copy_of_an_inner_function_is_checked_and_has_its_own_defaults() -> None:
    for size in (1, 2, 1):
        half = halves(size)
        for wrong in ("text", zeros(2, 2)):
            with pytest.raises(TypeCheckError, match="parameters"):
                half(wrong)
        if size == 1:
            assert half(zeros(4)).shape == (4,)
        else:
            with pytest.raises(TypeCheckError, match="return value"):
                half(zeros(4))
