"""The buffer between a task's threads and the flusher: no server, no flusher thread."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import Slot, StoreUnavailable, StreamFenced, WriteTimeout
from celery_streams.chunks import encode_json, unframe
from celery_streams.contracts import JSON, Appended, Attempt, Batch, Producer
from celery_streams.settings import StreamsSettings
from celery_streams.writing.channel import Channel

SLOT = Slot.run("run")


def _channel(depth: int = 1, **settings: Any) -> tuple[Channel, list[Channel]]:
    scheduled: list[Channel] = []
    return (
        Channel(
            SLOT,
            Producer("p", Attempt("run", "a")),
            JSON,
            StreamsSettings(**settings),
            scheduled.append,
            depth,
        ),
        scheduled,
    )


def _take(channel: Channel) -> Batch:
    batch = channel.take()
    assert isinstance(batch, Batch)
    return batch


def _acknowledge(channel: Channel, at: int) -> int:
    batch = _take(channel)
    channel.acknowledged(Appended(at, at + batch.count, 1))
    return batch.count


def test_the_first_chunk_leaves_at_once_and_the_others_while_it_flies_as_one_batch() -> None:
    """The flusher is told once; what comes meanwhile waits, and goes together."""
    channel, scheduled = _channel()
    channel.put(b"0")
    assert scheduled == [channel]
    first = _take(channel)
    for number in range(1, 100):
        channel.put(b"%d" % number)
    assert scheduled == [channel]
    assert channel.take() is None
    channel.send_again()
    assert channel.take() is first, "until it is acknowledged"
    assert channel.acknowledged(Appended(0, 1, 1)) == (1, 1, True)
    second = _take(channel)
    assert (second.seq, second.count) == (1, 99)
    assert unframe(second.payload, JSON) == [b"%d" % number for number in range(1, 100)]
    channel.acknowledged(Appended(1, 100, 1))
    assert channel.take() is None
    assert channel.flush(0.0) == 100
    channel.put(b"again")
    assert scheduled == [channel, channel]


@given(
    st.lists(st.integers(1, 300), max_size=60),
    st.integers(1, 400),
    st.integers(1, 20),
)
def test_batches_keep_order_and_limits(sizes: list[int], batch_bytes: int, chunks: int) -> None:
    """No batch exceeds a limit, unless one chunk alone does; nothing is lost or reordered."""
    channel, _ = _channel(batch_bytes=batch_bytes, batch_chunks=chunks)
    written = [b"x" * size for size in sizes]
    for data in written:
        channel.put(data)
    sent: list[bytes] = []
    while isinstance(batch := channel.take(), Batch):
        pieces = unframe(batch.payload, JSON)
        assert len(pieces) == batch.count <= chunks
        assert batch.count == 1 or sum(map(len, pieces)) <= batch_bytes
        sent += pieces
        channel.acknowledged(Appended(len(sent) - batch.count, len(sent), 1))
    assert sent == written
    assert channel.unsent == 0


def test_a_full_buffer_blocks_and_goes_on_when_there_is_room() -> None:
    """Back-pressure: the writer waits for the acknowledgement, not for the timeout."""
    channel, _ = _channel(buffer_bytes=10, write_timeout=20)
    channel.put(b"x" * 10)
    done = threading.Event()

    def write() -> None:
        channel.put(b"y")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.05)
    _acknowledge(channel, 0)
    assert done.wait(5)
    thread.join()
    assert channel.unsent == 1


def test_a_buffer_that_stays_full_refuses_the_chunk_and_counts() -> None:
    """``WriteTimeout`` says how much is waiting; what was accepted before is still sent."""
    channel, scheduled = _channel(buffer_bytes=10, write_timeout=0.05)
    channel.put(b"x" * 10)
    with pytest.raises(WriteTimeout, match=r"10 bytes.*1 chunks of runs/run/default") as raised:
        channel.put(b"y")
    assert raised.value.unsent == 1
    assert len(scheduled) == 2, "in case an interrupted put() has not told the flusher"
    assert _acknowledge(channel, 0) == 1
    assert channel.take() is None
    channel.put(b"z" * 1000)  # alone in the buffer, any chunk fits


def test_the_failure_that_ends_a_channel_reaches_everybody_with_its_counts() -> None:
    """Who waits, who writes later and who drains: each gets an error of its own."""
    channel, _ = _channel()
    for number in range(5):
        channel.put(b"%d" % number)
        if number == 1:
            _acknowledge(channel, 0)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            channel.flush(10)
        except StreamFenced as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    channel.fail(StreamFenced("a later attempt has taken over"))
    thread.join(5)
    with pytest.raises(StreamFenced, match="chunks 2 to 4, counted from 0") as late:
        channel.put(b"x")
    (waited,) = failures
    assert waited is not late.value
    assert isinstance(waited, StreamFenced)
    assert waited.unsent == late.value.unsent == 3
    assert channel.take() is None


def test_offsets_of_awaited_chunks_are_those_of_the_acknowledgement() -> None:
    """Others' chunks may lie between this channel's batches."""
    channel, _ = _channel()
    places = [channel.put(b"x", awaited=number % 2 == 0) for number in range(4)]
    assert places == [0, 1, 2, 3]
    _acknowledge(channel, 100)
    assert channel.offset_of(0) == 100
    assert channel.offset_of(2) == 102


def test_many_waiters_wake_together_and_timeouts_leave_nothing_behind() -> None:
    """Every acknowledgement wakes all who wait; who gave up is forgotten."""
    channel, _ = _channel()
    channel.put(b"x")
    for _ in range(3):
        with pytest.raises(WriteTimeout, match=r"not acknowledged within 0 s: 1 chunks"):
            channel.flush(0.0)
    assert channel._waiters == []
    ends: list[int] = []
    threads = [threading.Thread(target=lambda: ends.append(channel.flush(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    _acknowledge(channel, 41)
    for thread in threads:
        thread.join(5)
    assert ends == [42] * 8


class _Struck(Exception):
    """What the signal handler raises."""


def test_an_exception_from_a_signal_handler_may_strike_anywhere(
    times: Callable[[int, int], int],
) -> None:
    """A soft time limit is that. No lock stays held, what was accepted is sent, once."""

    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    flusher, store = _flusher()

    def strike(number: int, frame: FrameType | None) -> None:
        raise _Struck

    before = signal.signal(signal.SIGALRM, strike)
    try:
        for _ in range(times(500, 5_000)):
            channel = Channel(
                SLOT,
                Producer(str(chance.random()), Attempt("run", "a")),
                JSON,
                StreamsSettings(buffer_bytes=200, batch_chunks=20),
                flusher.schedule,
            )
            accepted = 0
            with suppress(_Struck):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-3))
                while True:
                    channel.put(encode_json(accepted))
                    accepted += 1
            channel.put(b"end")
            channel.flush(10)
            sent = store.chunks.pop(channel.producer.producer_id)
            assert sent in (
                [b"%d" % number for number in range(accepted)] + [b"end"],
                [b"%d" % number for number in range(accepted + 1)] + [b"end"],
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Store:
    """Takes every batch; notices one that was sent twice, or out of turn."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[bytes]] = {}
        self.seq: dict[str, int] = {}

    def append_many(self, appends: Any) -> list[Appended]:
        results = []
        for append in appends:
            name = append.producer.producer_id
            assert append.batch.seq == self.seq.get(name, -1) + 1
            self.seq[name] = append.batch.seq
            sent = self.chunks.setdefault(name, [])
            sent += unframe(append.batch.payload, JSON)
            results.append(Appended(len(sent) - append.batch.count, len(sent), 1))
        time.sleep(0)
        return results


class _Cache:
    """Always has credentials."""

    def peek(self, slot: Slot) -> object:
        return self

    def get(self, slot: Slot, **_: Any) -> object:
        return self


def _flusher() -> tuple[Any, _Store]:
    from celery_streams.stats import Stats
    from celery_streams.writing.flusher import Flusher

    store: Any = _Store()
    cache: Any = _Cache()
    flusher = Flusher(
        store, cache, StreamsSettings(), Stats(), tick=lambda: False, tick_interval=1.0
    )
    return flusher, store


def test_a_failure_of_the_cache_costs_one_stream_its_turn_not_the_others() -> None:
    """Credentials that vanish between two looks are an error of that stream, tried again."""
    flusher, store = _flusher()
    calls = 0

    class Vanishing(_Cache):
        def get(self, slot: Slot, **_: Any) -> object:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise StoreUnavailable("evicted a moment ago, and the authority is away")
            return self

    flusher._cache = Vanishing()
    settings = StreamsSettings()
    channels = [
        Channel(SLOT, Producer(name, Attempt("run", "a")), JSON, settings, flusher.schedule)
        for name in "ab"
    ]
    for channel in channels:
        channel.put(b"1")
    for channel in channels:
        channel.flush(5)
    assert store.chunks == {"a": [b"1"], "b": [b"1"]}


def test_a_hot_channel_gets_one_batch_a_round() -> None:
    """A quiet channel's chunk is in the very next round, however much the hot one has waiting."""
    flusher, _ = _flusher()
    rounds: list[list[str]] = []
    over = threading.Event()

    class Watching(_Store):
        def append_many(self, appends: Any) -> list[Appended]:
            rounds.append([append.producer.producer_id for append in appends])
            if len(rounds) % 5 == 0 and len(rounds) < 100:
                quiet.put(b"1")
            if len(rounds) == 150:
                over.set()
            if len(rounds) < 150:
                hot.put(b"2")
            return super().append_many(appends)

    flusher._store = Watching()
    settings = StreamsSettings(batch_chunks=1)
    hot, quiet = (
        Channel(SLOT, Producer(name, Attempt("run", "a")), JSON, settings, flusher.schedule)
        for name in ("hot", "quiet")
    )
    for _ in range(50):
        hot.put(b"2")
    assert over.wait(10)
    hot.flush(10)
    assert all(len(names) == len(set(names)) for names in rounds)
    with_quiet = [place + 1 for place, names in enumerate(rounds) if "quiet" in names]
    assert with_quiet == [place + 1 for place in range(5, 100, 5)]
