"""Lazy sequences: each item is made on access."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import SupportsIndex, TypeVar, overload

T = TypeVar("T", covariant=True)


class OnDemand(Sequence[T]):
    """A sequence of items that `make` makes; a slice is a list of them."""

    @abstractmethod
    def make(self, number: int) -> T:
        """Make an item by its index, which is within the length."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> T | list[T]:
        numbers = range(len(self))[at]
        return [self.make(number) for number in numbers] if isinstance(numbers, range) else self.make(numbers)
