"""A process that streams may fork at any moment: locks, threads and sockets stay the parent's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from celery_streams import Slot, StreamError, Streams
from tests.lifecycle.client import SECRET, Client, chunks_of
from tests.servers import ValkeyProcess


def test_a_task_may_fork_while_its_threads_write(
    prefork: Client, times: Callable[[int, int], int]
) -> None:
    """os.fork and multiprocessing, the flusher busy: children write, the parent goes on."""
    children = times(10, 50)
    run_id, statuses = prefork.run("forking", children)
    assert statuses == [0] * children
    assert prefork.end(run_id) == "SUCCESS"
    assert prefork.chunks(run_id) == [["parent", number] for number in range(children)]
    for number in range(children):
        expected = [[number, count] for count in range(20)]
        assert prefork.chunks(run_id, f"child-{number}") == expected
        assert prefork.closed(run_id, f"child-{number}") == "SUCCESS"


def test_a_forked_child_writes_whatever_its_parent_was_doing(
    valkey: ValkeyProcess, times: Callable[[int, int], int]
) -> None:
    """Forked 50 times while four threads write: each child's stream is whole, nothing mixes."""
    streams = Streams(url=valkey.url, secret=SECRET)
    stop = threading.Event()

    def busy(number: int) -> None:
        with streams.write_to(f"parent-{os.getpid()}", f"{number}", create=True) as writer:
            while not stop.is_set():
                writer.write(number)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    mine = streams.write_to(f"parent-{os.getpid()}", create=True)
    mine.append("before")
    forks = times(50, 200)
    for number in range(forks):
        pid = os.fork()
        if not pid:
            _child(streams, number)
        assert os.waitpid(pid, 0)[1] == 0
        mine.write(number)
    stop.set()
    for thread in threads:
        thread.join()
    assert mine.wait().count == forks + 1
    for number in range(forks):
        assert chunks_of(streams, Slot.run(f"fork-{os.getpid()}-{number}")) == list(range(10))
    for number in range(4):
        slot = Slot.run(f"parent-{os.getpid()}", f"{number}")
        assert set(chunks_of(streams, slot)) == {number}
    streams.close()


def _child(streams: Streams, number: int) -> None:
    status = 1
    with suppress(BaseException):
        with streams.write_to(f"fork-{os.getppid()}-{number}", create=True) as writer:
            for count in range(10):
                writer.write(count)
        status = 0
    os._exit(status)


def test_a_writer_opened_before_a_fork_is_refused_in_the_child(valkey: ValkeyProcess) -> None:
    """It is the parent's: the child is told so instead of waiting for a thread it does not have."""
    streams = Streams(url=valkey.url, secret=SECRET)
    writer = streams.write_to(f"before-{os.getpid()}", create=True)
    writer.append("parent")
    pid = os.fork()
    if not pid:
        status = 1
        with suppress(BaseException):
            try:
                writer.write("child")
            except StreamError as error:
                status = 0 if "open a new one in the child" in str(error) else 2
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert writer.append("parent again") == 1
    streams.close()
