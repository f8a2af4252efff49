"""Exact Chamfer and earth mover's distance in compiled code, a hundred times faster than SciPy's assignment.

The C++ files beside this one are compiled when the package is installed (setup.py). Where no compiler was
found there is no library: `available()` says so, the functions give None, and the caller takes SciPy.
ctypes leaves the interpreter's lock during a call, so threads use all cores.
"""

import ctypes
import math
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from jaxtyping import Float

FOLDER = Path(__file__).parent
TOLERANCE = 1e-9
"""Largest relative gap between a matching and its dual that `emd` passes as exact; it is 1e-15 as a rule."""


def available() -> bool:
    """Whether the compiled kernels are used."""
    return library() is not None


def described() -> str:
    """Which implementation is in use, in a few words for people."""
    found = library()
    return "SciPy (the kernels were not compiled)" if found is None else f"compiled kernels ({found._name})"


def ordered(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """The points in k-d order, in which the other functions are fast; as they came where there is no library.

    The order depends on the set of points alone. Worth doing once for a cloud that meets many others.
    """
    found = library()
    if found is None:
        return points
    points = _points(points)
    out = np.empty_like(points)
    _check(found.ditmoe_order(len(points), points.ctypes.data, out.ctypes.data))
    return out


def chamfer(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"]) -> float | None:
    """Mean squared distance to the nearest point, x to y plus y to x; None where there is no library.

    Float64 throughout, from direct differences. Any order of the points will do; `ordered` ones are fast.

    Raises ValueError where a cloud is empty, not (N, 3), or not finite.
    """
    found = library()
    if found is None:
        return None
    x, y = _points(x), _points(y)
    value = ctypes.c_double()
    _check(found.ditmoe_chamfer(len(x), x.ctypes.data, len(y), y.ctypes.data, ctypes.byref(value)))
    return value.value


def emd(
    x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"], squared: bool = False
) -> tuple[float, float] | None:
    """Mean distance (or squared distance) of the best one-to-one matching, and a proof of it.

    Returns (value, gap), or None where there is no library. No matching is better than (1 - gap) * value:
    the gap is that to a feasible dual solution, computed in float64 from all pairs. A gap of more than
    `TOLERANCE` means that the value is not to be trusted. Any order of the points will do; `ordered` ones are
    fast.

    Raises ValueError where the numbers of points differ, or a cloud is empty, not (N, 3), or not finite.
    """
    found = library()
    if found is None:
        return None
    x, y = _points(x), _points(y)
    if len(x) != len(y):
        raise ValueError(f"EMD needs equal numbers of points, got {len(x)} and {len(y)}")
    value, gap = ctypes.c_double(), ctypes.c_double()
    status = found.ditmoe_emd(
        len(x), x.ctypes.data, y.ctypes.data, squared, ctypes.byref(value), ctypes.byref(gap)
    )
    _check(status)
    return value.value, gap.value if math.isfinite(value.value) else math.inf


def library() -> ctypes.CDLL | None:
    """The library for this processor; None where none was compiled."""
    base = loaded("base")
    if base is None:
        return None
    return next((found for name in ("v4", "v3") if (found := loaded(name)) is not None), base)


@cache
def loaded(name: str) -> ctypes.CDLL | None:
    """A library by its name in setup.py; None where it was not compiled, or this processor cannot run it."""
    files = (FOLDER / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    if name != "base":
        base = loaded("base")
        if base is None or base.ditmoe_level() < int(name[1:]):
            return None
    found = ctypes.CDLL(str(file))
    count, points, result = ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double)
    found.ditmoe_order.argtypes = [count, points, points]
    found.ditmoe_chamfer.argtypes = [count, points, count, points, result]
    found.ditmoe_emd.argtypes = [count, points, points, ctypes.c_int, result, result]
    return found


def _points(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise ValueError(f"a cloud must be (N, 3) with at least one point, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("the points of a cloud must be finite, got NaN or infinity")
    return array


def _check(status: int) -> None:
    if status == 2:
        raise MemoryError("the kernels need more memory than there is")
    if status != 0:
        raise ValueError("clouds must have at least one point and finite coordinates")
