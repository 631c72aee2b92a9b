"""Counters of one process, as ``streams.stats()`` returns them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class Counts:
    """What this process did since it started (or since its fork).

    ``cache_hits_l1`` were answered by the process's own memory, ``cache_hits_l2`` by Redis.
    """

    initializes: int = 0
    cache_hits_l1: int = 0
    cache_hits_l2: int = 0
    lock_waits: int = 0
    evictions: int = 0
    refreshes: int = 0
    appends: int = 0
    chunks: int = 0
    bytes: int = 0
    retries: int = 0
    fenced: int = 0


class Stats:
    """Thread-safe counters. ``add`` is called per batch or per event, never per chunk."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._lock = threading.Lock()
        self._included: list[tuple[str, Callable[[], int]]] = []

    def include(self, name: str, count: Callable[[], int]) -> None:
        """Add what ``count`` returns to the counter ``name`` of every snapshot.

        For what happens too often to be added one by one.
        """
        with self._lock:
            self._included.append((name, count))

    def add(self, **amounts: int) -> None:
        """Add to the named counters."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._counts, name, getattr(self._counts, name) + amount)

    def snapshot(self) -> Counts:
        """A copy that does not change any more."""
        with self._lock:
            counts = Counts(**asdict(self._counts))
            for name, count in self._included:
                setattr(counts, name, getattr(counts, name) + count())
            return counts


COUNTER_NAMES = tuple(field.name for field in fields(Counts))
