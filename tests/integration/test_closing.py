"""``streams.close()`` leaves nothing behind, and nothing unusable."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from celery_streams import Slot, Streams
from celery_streams.contracts import Attempt
from tests.servers import ValkeyProcess
from tests.servers.children import eventually


@pytest.fixture
def left() -> Callable[[], list[str]]:
    """The names of the threads that were not there before."""
    before = set(threading.enumerate())
    return lambda: [each.name for each in threading.enumerate() if each not in before]


def _connections(server: ValkeyProcess) -> int:
    return sum(each["name"] == "celery-streams" for each in server.client().client_list())


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A server of the test's own, so that it can count the connections."""
    with ValkeyProcess() as running:
        yield running


def test_close_leaves_no_thread_and_no_connection(
    server: ValkeyProcess, left: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the writers, of the readers, and of who listens for messages to turns."""
    for _ in range(3):
        streams = Streams(url=server.url, secret="x")
        run_id = uuid.uuid4().hex
        with streams.write_to(run_id, create=True) as writer:
            writer.write(1)
        with streams.read(run_id, timeout=5) as reader:
            assert next(reader) == 1
        ready = threading.Event()
        streams.runtime.listener.watch("a channel", lambda _: None, ready.set)
        assert ready.wait(5)
        streams.close()
    eventually(lambda: not left(), f"the end of {left()}", timeout=5)
    eventually(lambda: not _connections(server), "the end of the connections", timeout=5)
    assert not caplog.records


def test_what_is_held_beyond_close_still_works(
    server: ValkeyProcess, left: Callable[[], list[str]]
) -> None:
    """The object connects anew; a writer from before sends, and leaves no thread either."""
    streams = Streams(url=server.url, secret="x")
    run_id = uuid.uuid4().hex
    writer = streams.write_to(run_id, create=True)
    assert writer.append(0) == 0
    streams.close()
    assert [writer.append(number) for number in (1, 2)] == [1, 2]
    with closing(streams):
        assert streams.write_to(run_id).append(3) == 3
        assert streams.head(run_id).end == 4
    eventually(lambda: not left(), f"the end of {left()}", timeout=5)
    eventually(lambda: not _connections(server), "the end of the connections", timeout=5)


def test_a_lease_is_renewed_beyond_close_until_its_attempt_ends(
    server: ValkeyProcess, left: Callable[[], list[str]]
) -> None:
    """A running task's stream does not end as LOST because somebody has closed the app's streams;
    when the task ends, so does the thread.
    """
    streams = Streams(url=server.url, secret="x", orphan_timeout=0.6)
    runtime = streams.runtime
    attempt = Attempt(uuid.uuid4().hex, "a", redelivered=True)
    runtime.registry.begin(attempt)
    runtime.enter(attempt)
    streams.close()
    lease = runtime.layout.owner(Slot.run(attempt.run_id))
    client = server.client()
    renewed = [client.hget(lease, "lease")]
    for _ in range(4):
        eventually(lambda: client.hget(lease, "lease") != renewed[-1], "a renewal", timeout=5)
        renewed.append(client.hget(lease, "lease"))
    runtime.leave(attempt)
    eventually(lambda: not left(), f"the end of {left()}", timeout=5)
    eventually(lambda: not _connections(server), "the end of the connections", timeout=5)
