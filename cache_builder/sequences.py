"""The examples' ids by row, read when asked for; where from is a subclass's to say."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload


class SampleIds(Sequence[str]):
    """A sequence of ids that holds none of them."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the id of a row, 0 ≤ row < n, as UTF-8."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return self.read(range(len(self))[index]).decode()
