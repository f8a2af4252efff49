"""The checker of annotations: an int may stand where a float is asked for."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_inner: dict[Any, Callable] = {}


def check(function: Callable) -> Callable:
    """A function that looks at its arguments; what jaxtyping passes here has a signature, and no body of its own.

    A function within a function is made anew by each call of the outer one, and compiling its checks takes a
    millisecond: those of one signature are compiled once.
    """
    if "<locals>" not in function.__qualname__:
        return _check(function)
    code, hints = function.__code__, function.__annotations__
    names = code.co_varnames, code.co_posonlyargcount, code.co_argcount, code.co_flags
    key = (function.__module__, function.__qualname__, names, tuple(hints.items()))
    try:
        return _inner.get(key) or _inner.setdefault(key, _check(function))
    except TypeError:  # a hint that has no hash
        return _check(function)
