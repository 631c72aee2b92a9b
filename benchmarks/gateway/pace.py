"""When the appends are due: evenly spread over time and streams, for whoever writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """``rate`` appends a second to each of ``streams`` streams, for ``seconds``."""

    streams: int
    rate: float
    seconds: float

    @property
    def appends(self) -> int:
        """How many each stream gets."""
        return round(self.rate * self.seconds)

    def schedule(self) -> Iterator[tuple[int, int]]:
        """Nanoseconds from the start, and which stream."""
        step = 1e9 / (self.rate * self.streams)
        for place in range(self.appends * self.streams):
            yield int(place * step), place % self.streams


def chunk(number: int, nanoseconds: int) -> dict[str, object]:
    """What is appended: which it is in its stream, and when (``CLOCK_MONOTONIC``)."""
    return {"type": "text", "n": number, "t": nanoseconds}
