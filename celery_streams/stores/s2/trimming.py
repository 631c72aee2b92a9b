"""Where the batches of a stream begin, for trimming it: :class:`Marks`."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: Batches of which is remembered where they are.
_MOST = 16_384


class Mark(NamedTuple):
    """A batch: its record, and its chunks ``start`` to ``end - 1``."""

    seq: int
    start: int
    end: int


class Marks:
    """The latest batches of a stream, one after the other without a gap.

    ``trimmed`` is the first record that the server was told to keep.
    """

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque(maxlen=_MOST)
        self.trimmed = 0

    def add(self, marks: list[Mark]) -> None:
        """Batches that have just been appended."""
        self._marks.extend(marks)

    def interrupt(self) -> None:
        """Others have appended batches that are not known."""
        self._marks.clear()

    def forget(self) -> None:
        """It is another stream."""
        self._marks.clear()
        self.trimmed = 0

    def holding(self, offset: int) -> Mark | None:
        """The batch with the chunk ``offset``; those before it are forgotten."""
        while self._marks and self._marks[0].end <= offset:
            self._marks.popleft()
        if self._marks and self._marks[0].start <= offset:
            return self._marks[0]
        return None
