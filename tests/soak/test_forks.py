"""Forks of a process that is streaming, with threads and locks in any state."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_streams import Slot
from tests.servers import ServerProcess
from tests.soak.harness import Report, compare, processes, streams_at

pytestmark = pytest.mark.soak

CHUNKS = 50
BUSY = Slot.run("parent")


def test_children_of_a_streaming_process_write_and_lose_nothing(
    server: ServerProcess, times: Callable[[int, int], int]
) -> None:
    """A child neither deadlocks on its parent's locks nor writes on its connections."""
    report = Report("fork of a process that is streaming in 4 threads")
    forks = times(10, 300)
    context = processes()
    results = context.Queue()
    parent = context.Process(target=_fork_again_and_again, args=(server.url, forks, results))
    parent.start()
    written = results.get(timeout=100)
    parent.join(30)
    assert isinstance(written, dict), written
    compare(server.url, BUSY, written, report)
    for number in range(forks):
        compare(server.url, Slot.run(f"child-{number}"), {number: CHUNKS}, report)
    report.injected = forks
    report.assert_clean()


def _fork_again_and_again(url: str, forks: int, results: Any) -> None:
    streams = streams_at(url)
    stop = threading.Event()
    counts: dict[int, int] = {}

    def write(number: int) -> None:
        with streams.open_writer(BUSY) as writer:
            while not stop.is_set():
                writer.write({"writer": number, "number": counts.get(number, 0)})
                counts[number] = counts.get(number, 0) + 1
                time.sleep(0.0001)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(forks):
            child = os.fork()
            if child == 0:
                _write_and_exit(streams, number)
            if not _ended_well(child):
                results.put(f"child {number} did not end well")
                return
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    results.put(counts)


def _write_and_exit(streams: Any, number: int) -> None:
    try:
        with streams.open_writer(Slot.run(f"child-{number}")) as writer:
            for place in range(CHUNKS):
                writer.write({"writer": number, "number": place})
    except BaseException:
        os._exit(1)
    os._exit(0)


def _ended_well(child: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
