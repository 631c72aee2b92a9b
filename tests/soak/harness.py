"""Writers in processes of their own, what they wrote, and what of it arrived."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from typing import Any

from celery_streams import Slot, Streams
from celery_streams.chunks import decode, unframe
from tests.servers.children import eventually

#: Seconds between two chunks of one writer: a rate, so that faults hit a stream in motion.
PACE = 0.0005
SECRET = "test secret"


@dataclass(slots=True)
class Report:
    """One fault's line: how often it was injected, and what it did to the chunks."""

    fault: str
    injected: int = 0
    written: int = 0
    lost: int = 0
    duplicated: int = 0
    disordered: int = 0
    initializes: int = 0
    notes: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        chunks = (
            f", {self.written:>8} chunks, {self.lost} lost, {self.duplicated} duplicated, "
            f"{self.disordered} out of order"
        )
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        # A fault that hits no writer says nothing of chunks.
        return f"{self.fault:<50} {self.injected:>5} times{chunks if self.written else ''}{notes}"

    def add(self, other: Report) -> None:
        """Count another part of the same fault in."""
        for name in ("injected", "written", "lost", "duplicated", "disordered", "initializes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def assert_clean(self) -> None:
        """Print the line, then fail if a chunk was lost, duplicated or out of order."""
        print(f"\n{self}")
        assert (self.lost, self.duplicated, self.disordered) == (0, 0, 0), str(self)
        assert self.written > 0


def processes() -> ForkServerContext:
    """Processes that share nothing with pytest's, yet start in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def streams_at(url: str, **settings: Any) -> Streams:
    """Streams without a Celery app."""
    return Streams(url=url, secret=SECRET, **settings)


@contextmanager
def writing(
    url: str, slot: Slot, *, writers: int = 8, pace: float = PACE, **settings: Any
) -> Iterator[Fleet]:
    """``writers`` processes that write to ``slot`` until :meth:`Fleet.finish`."""
    context = processes()
    stop, started, results = context.Event(), context.Barrier(writers + 1), context.Queue()
    fleet = Fleet(
        slot,
        stop,
        results,
        [
            context.Process(
                target=_write_until,
                args=(url, slot, number, pace, settings, started, stop, results),
                daemon=True,
            )
            for number in range(writers)
        ],
    )
    for process in fleet.members:
        process.start()
    try:
        started.wait(60)
        yield fleet
    finally:
        for process in fleet.members:
            if process.is_alive():
                process.kill()
            process.join(10)


@dataclass(slots=True)
class Fleet:
    """Writer processes at work."""

    slot: Slot
    stop: Any
    results: Any
    members: list[Any]

    def finish(self, direct_url: str, report: Report) -> Report:
        """Let every writer write its last chunk and wait for it; compare with the stream."""
        self.stop.set()
        counts: dict[int, int] = {}
        for _ in self.members:
            number, count, initializes, error = self.results.get(timeout=90)
            assert error is None, f"writer {number}: {error}"
            counts[number] = count
            report.initializes += initializes
        compare(direct_url, self.slot, counts, report)
        return report


def compare(url: str, slot: Slot, counts: dict[int, int], report: Report) -> None:
    """Fill in what of ``counts`` (writer: number of chunks) the stream holds, and how."""
    found: dict[int, list[int]] = defaultdict(list)
    for chunk in stored(url, slot):
        found[chunk["writer"]].append(chunk["number"])
    for writer, count in counts.items():
        numbers = found[writer]
        report.written += count
        report.lost += len(set(range(count)) - set(numbers))
        report.duplicated += len(numbers) - len(set(numbers))
        report.disordered += sum(a > b for a, b in pairwise(numbers))


def stored(url: str, slot: Slot, **settings: Any) -> list[Any]:
    """Every chunk the store holds, from the first."""
    streams = streams_at(url, **settings)
    chunks: list[Any] = []
    try:
        while (page := streams.runtime.store.read(slot, len(chunks), limit=500)).entries:
            for entry in page.entries:
                assert entry.start == len(chunks), "offsets are dense"
                chunks += [
                    decode(data, "application/json")
                    for data in unframe(entry.payload, "application/json")
                ]
    finally:
        streams.close()
    return chunks


def wait_for_progress(streams: Streams, slot: Slot, chunks: int = 20) -> None:
    """Wait until the stream has grown: the last fault is overcome, the next may come."""
    start = streams.runtime.store.head(slot).end
    eventually(
        lambda: streams.runtime.store.head(slot).end >= start + chunks,
        f"{chunks} more chunks in {slot}",
        timeout=60,
    )


def _write_until(
    url: str,
    slot: Slot,
    number: int,
    pace: float,
    settings: dict[str, Any],
    started: Any,
    stop: Any,
    results: Any,
) -> None:
    streams = streams_at(url, **settings)
    count, error = 0, None
    try:
        with streams.open_writer(slot) as writer:
            writer.append({"writer": number, "number": 0})
            count = 1
            started.wait(60)
            while not stop.is_set():
                writer.write({"writer": number, "number": count})
                count += 1
                time.sleep(pace)
    except Exception as failure:
        error = repr(failure)
        started.abort()
    results.put((number, count, streams.stats().initializes, error))
