"""``session().inbox.append()`` from outside a task, many times: one writing attempt a process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from celery_streams import Slot, StreamClosed, Streams
from tests.lifecycle.client import chunks_of
from tests.servers import ValkeyProcess


@pytest.fixture
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    made = Streams(url=valkey.url, secret="test secret")
    yield made
    made.close()


def test_single_appends_from_outside_leave_no_key_each(
    valkey: ValkeyProcess, streams: Streams
) -> None:
    """By several threads: one fence, one producer, and every chunk where its offset says."""
    session = uuid.uuid4().hex
    offsets: dict[int, int] = {}

    def append(first: int) -> None:
        for number in range(first, first + 10):
            offsets[number] = streams.session(session).inbox.append(number)

    threads = [threading.Thread(target=append, args=(10 * each,)) for each in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chunks = chunks_of(streams, Slot.session(session, "in"))
    assert len(chunks) == 50
    assert all(chunks[offset] == number for number, offset in offsets.items())
    client: Any = valkey.client()
    (fence,) = client.scan_iter(f"*{session}*/fence/*")
    producers = [name for name in client.hkeys(fence) if name.startswith(b"p/")]
    assert len(producers) == 1


def test_an_append_does_not_suffer_from_what_the_store_has_forgotten(
    valkey: ValkeyProcess, streams: Streams
) -> None:
    """Nothing is left of the appends before: the next one begins anew, rather than be told of
    chunks that others had lost.
    """
    inbox = streams.session(uuid.uuid4().hex).inbox
    assert [inbox.append(number) for number in range(3)] == [0, 1, 2]
    valkey.client().flushall()
    assert [inbox.append(number) for number in range(2)] == [0, 1]


def test_a_failed_append_does_not_fail_the_next(streams: Streams) -> None:
    """Nor those to other sessions."""
    session, other = (streams.session(uuid.uuid4().hex) for _ in range(2))
    assert [session.inbox.append("a"), other.inbox.append("a")] == [0, 0]
    session.inbox.close()
    with pytest.raises(StreamClosed):
        session.inbox.append("b")
    assert other.inbox.append("b") == 1
    streams.runtime.store.delete(session.inbox.slot)
    assert session.inbox.append("c") == 0
