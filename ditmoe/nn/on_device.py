"""Copies of the host's numbers on a device, made without waiting for it, and properties that keep them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    from functools import cached_property
else:

    class cached_property:  # noqa: N801
        """As functools', without its lock, which torch.compile cannot trace; compiled code keeps no value."""

        def __init__(self, function: Any) -> None:
            self.function, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            if torch.compiler.is_compiling():
                return self.function(instance)
            value = instance.__dict__[self.name] = self.function(instance)
            return value


def from_host(numbers: Shaped[np.ndarray, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """A copy of the host's numbers on a device, which is not waited for."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
