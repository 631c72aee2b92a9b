"""More producers on one S2 stream than are remembered: none is doubled, or told of a loss."""

from __future__ import annotations

from typing import Any

import pytest

from celery_streams.contracts import Append, Appended
from celery_streams.errors import ChunksLost, StoreUnavailable, StreamError
from celery_streams.slots import Slot
from celery_streams.stores.s2.state import MOST_IN_MEMORY
from tests.s2.conftest import Connect, S2Backend
from tests.s2.tokens import TokenServer
from tests.servers.children import eventually
from tests.stores.contract.backend import SLOT, Hand


def _crowd(backend: S2Backend, slot: Slot, count: int) -> None:
    """Let that many producers append a chunk each."""
    credentials = backend.open(slot)
    hands = [Hand(backend.store, credentials) for _ in range(count)]
    appends = [Append(slot, hand.batch("crowd"), hand.producer, hand.credentials) for hand in hands]
    assert all(isinstance(each, Appended) for each in backend.store.append_many(appends))


@pytest.mark.parametrize("crowds", [1, 2])
def test_a_producer_forgotten_for_those_that_wrote_later_is_found_in_the_log(
    connect: Connect, crowds: int
) -> None:
    """By a process that was told of it once; each batch once, in order, and none is reported
    as lost."""
    backend, elsewhere = connect(), connect()
    crowd = 2 * MOST_IN_MEMORY
    first, writer = backend.writer(), backend.writer()
    first.append("first")
    writer.append("a")
    elsewhere.writer().append("theirs")
    first.append("second")  # overtaken: it looks, and is told of both
    for number in range(crowds):
        _crowd(backend, SLOT, crowd)
        assert writer.append(number).offset == 4 + number + (number + 1) * crowd
    found = [chunk for chunk in backend.chunks() if chunk != "crowd"]
    assert found == ["first", "a", "theirs", "second", *range(crowds)]


def test_a_forgotten_producers_lost_acknowledgement_is_found_in_the_log(
    connect: Connect, tokens: TokenServer
) -> None:
    """Nothing is doubled."""
    backend = connect()
    writer = backend.writer()
    writer.append("a")
    tokens.lose_answers("append")
    with pytest.raises(StoreUnavailable):
        writer.append("b")
    _crowd(backend, SLOT, 2 * MOST_IN_MEMORY)
    assert writer.resend() == Appended(1, 2, 1, duplicate=True)
    writer.seq += 1
    assert writer.append("c").offset == 2 + 2 * MOST_IN_MEMORY


async def _oldest_record(backend: S2Backend) -> Any:
    from s2_sdk import ReadLimit, SeqNum

    stream = backend.store._here().stream(SLOT)
    batch = await stream.read(start=SeqNum(0), limit=ReadLimit(count=1))
    return batch.records[0].seq_num


def test_a_forgotten_producer_whose_batches_were_trimmed_is_told_so(
    connect: Connect, kind: str
) -> None:
    """Not that the store has lost anything; nothing of it is applied."""
    if kind == "asyncio":
        pytest.skip("what is decided does not depend on the shell")
    backend = connect(max_chunks=5)
    writer = backend.writer()
    writer.append("a")
    _crowd(backend, SLOT, 2 * MOST_IN_MEMORY)
    eventually(
        lambda: backend.store._thread.run(_oldest_record(backend)) > 2, "the server has trimmed"
    )
    with pytest.raises(StreamError, match="more writers since") as told:
        writer.append("b")
    assert not isinstance(told.value, ChunksLost)
    assert "b" not in backend.chunks(offset=backend.store.head(SLOT).first)
