"""Several batches of one channel in flight: no server; a store that answers as a test says."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_streams import Slot, StoreUnavailable, StreamFenced
from celery_streams.chunks import unframe
from celery_streams.contracts import (
    JSON,
    Answer,
    Append,
    Appended,
    Attempt,
    Batch,
    PipelinedStore,
    Producer,
)
from celery_streams.errors import ChunksLost
from celery_streams.settings import StreamsSettings
from celery_streams.stats import Stats
from celery_streams.writing.channel import Channel
from celery_streams.writing.flusher import Flusher
from tests.servers.children import eventually

SLOT = Slot.run("run")
_CHUNK = b"1234567890"


def _channel(depth: int, schedule: Callable[[Channel], None], **options: Any) -> Channel:
    producer = Producer("p", Attempt("run", "a"))
    return Channel(SLOT, producer, JSON, StreamsSettings(**options), schedule, depth)


class ChannelMachine(RuleBasedStateMachine):
    """A channel, and a store that applies what was sent in order and may lose its answers."""

    @initialize(depth=st.integers(1, 5), chunks=st.integers(1, 3), room=st.integers(30, 200))
    def begin(self, depth: int, chunks: int, room: int) -> None:
        self.told = False  # whether the flusher knows that there is something
        self.depth, self.room = depth, room
        self.channel = _channel(depth, self.schedule, batch_chunks=chunks, buffer_bytes=room)
        self.written: list[bytes] = []
        self.applied: list[bytes] = []
        self.last = -1
        self.sent: list[Batch] = []
        self.acknowledged = 0

    def schedule(self, channel: Channel) -> None:
        self.told = True

    @precondition(lambda self: self.channel.unsent * len(_CHUNK) + len(_CHUNK) <= self.room)
    @rule()
    def put(self) -> None:
        """There is room, counting what is in flight: never blocks."""
        self.written.append(b"%010d" % len(self.written))
        assert self.channel.put(self.written[-1]) == len(self.written) - 1

    @rule(later=st.booleans())
    def send(self, later: bool) -> None:
        """As the flusher: whatever there is, until nothing may be sent (now, or later)."""

        def take() -> Batch | float | None:
            self.channel._not_before = 0.0 if later else float("inf")
            return self.channel.take()

        while isinstance(batch := take(), Batch):
            self.sent.append(batch)
            assert len(self.sent) <= self.depth
            assert [each.seq for each in self.sent] == list(
                range(self.sent[0].seq, self.sent[0].seq + len(self.sent))
            )
        self.told = isinstance(batch, float)

    def apply(self, batch: Batch) -> Appended:
        """What every store does with a producer's batch."""
        if batch.seq > self.last:
            assert batch.seq == self.last + 1
            self.last = batch.seq
            self.applied += unframe(batch.payload, JSON)
        return Appended(0, len(self.applied), 1, duplicate=False)

    @precondition(lambda self: self.sent)
    @rule()
    def answer(self) -> None:
        batch = self.sent.pop(0)
        count, size, more = self.channel.acknowledged(self.apply(batch))
        assert (count, size) == (batch.count, batch.count * len(_CHUNK))
        self.acknowledged += count
        self.told = self.told or more

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        """Some were applied, no answer comes, and all are sent again."""
        for batch in self.sent[: data.draw(st.integers(0, len(self.sent)))]:
            self.apply(batch)
        self.sent.clear()
        self.channel.send_again()
        self.told = True

    @invariant()
    def nothing_is_lost_doubled_or_reordered(self) -> None:
        if hasattr(self, "channel"):
            assert self.applied == self.written[: len(self.applied)]
            assert self.channel.unsent == len(self.written) - self.acknowledged
            assert self.channel._bytes == self.channel.unsent * len(_CHUNK)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        """Whatever is not durable is in flight, or the flusher knows of it."""
        if hasattr(self, "channel") and self.channel.unsent:
            assert self.sent or self.told


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class _Cache:
    """Always has credentials."""

    def peek(self, slot: Slot) -> object:
        return self

    def get(self, slot: Slot, **_: Any) -> object:
        return self

    def evict(self, credentials: object) -> bool:
        return True


class _Pipelined:
    """Keeps what is submitted until it is answered for."""

    max_in_flight = 8

    def __init__(self) -> None:
        self.waiting: list[tuple[Append, Answer, int]] = []
        self.applied: dict[str, list[bytes]] = {}
        self.last: dict[str, int] = {}
        self.lock = threading.Lock()

    def submit(self, appends: Sequence[Append], answer: Answer) -> None:
        with self.lock:
            self.waiting += [(append, answer, place) for place, append in enumerate(appends)]

    def in_flight(self, name: str = "a") -> list[int]:
        """The sequence numbers of a producer's."""
        with self.lock:
            return [
                append.batch.seq
                for append, _, _ in self.waiting
                if append.producer.producer_id == name
            ]

    def apply(self, append: Append) -> Appended | Exception:
        name, batch = append.producer.producer_id, append.batch
        last = self.last.get(name, -1)
        if batch.seq > last + 1:
            return ChunksLost("a gap")
        if batch.seq == last + 1:
            self.last[name] = batch.seq
            self.applied.setdefault(name, []).extend(unframe(batch.payload, JSON))
        return Appended(0, len(self.applied[name]), 1)

    def answer(self, error: Exception | None = None, *, name: str = "", count: int = 1000) -> int:
        """Answer for what waits, in order; with an error for the first and all behind it."""
        with self.lock:
            mine = [each for each in self.waiting if name in ("", each[0].producer.producer_id)]
            mine = mine[:count]
            self.waiting = [each for each in self.waiting if each not in mine]
        for append, answer, place in mine:
            answer([(place, error or self.apply(append))])
        return len(mine)

    def _unused(self, *args: Any) -> Any:
        raise AssertionError("a pipelined store is only handed batches")

    append = append_many = read = follow = head = close = delete = _unused


def _flusher(store: Any) -> Flusher:
    cache: Any = _Cache()
    return Flusher(store, cache, StreamsSettings(), Stats(), tick=lambda: False, tick_interval=1.0)


def _open(flusher: Flusher, name: str, **options: Any) -> Channel:
    producer = Producer(name, Attempt("run", "a"))
    given = StreamsSettings(**options)
    return Channel(SLOT, producer, JSON, given, flusher.schedule, _Pipelined.max_in_flight)


def test_what_makes_a_store_pipelined() -> None:
    """Its attribute and its method; any other store waits for each answer."""
    assert isinstance(_Pipelined(), PipelinedStore)


def test_as_many_batches_leave_as_the_store_takes_at_once() -> None:
    """One by one while none is answered; then chunks gather, and leave with the first answer."""
    store = _Pipelined()
    channel = _open(_flusher(store), "a")
    for number in range(store.max_in_flight):
        channel.put(b"%d" % number)
        eventually(lambda: store.in_flight() == list(range(number + 1)), "it leaves")  # noqa: B023
    for number in range(100):
        channel.put(b"%d" % number)
    assert len(store.in_flight()) == store.max_in_flight
    store.answer(count=1)
    eventually(lambda: store.in_flight() == list(range(1, 9)), "the next one leaves")
    store.answer()
    channel.flush(5)
    assert len(store.applied["a"]) == store.max_in_flight + 100


def test_a_hot_channel_sends_full_batches_or_few() -> None:
    """While something is in flight, a batch that is not full waits for more chunks."""
    store = _Pipelined()
    channel = _open(_flusher(store), "a", batch_chunks=50)
    channel.put(_CHUNK)
    eventually(lambda: store.in_flight() == [0], "the first leaves at once")
    for _ in range(125):
        channel.put(_CHUNK)
    eventually(lambda: store.in_flight() == [0, 1, 2, 3], "two full ones, and the rest")
    counts = [append.batch.count for append, _, _ in store.waiting]
    assert counts[0] == 1
    assert sum(counts) == 126
    store.answer()
    channel.flush(5)


def test_a_slow_stream_does_not_hold_up_the_others() -> None:
    """Its answers are awaited by nobody."""
    store = _Pipelined()
    flusher = _flusher(store)
    slow, quick = _open(flusher, "slow"), _open(flusher, "quick")
    slow.put(_CHUNK)
    eventually(lambda: store.in_flight("slow") == [0], "it is in flight")
    for number in range(20):
        quick.put(b"%d" % number)
        eventually(lambda: bool(store.in_flight("quick")), "it leaves")
        store.answer(name="quick")
        quick.flush(5)
    assert slow.unsent == 1


def test_after_a_failure_all_are_sent_again_in_order_once_all_are_answered() -> None:
    """Whatever is said of those behind it, a gap among it; and it counts as one failure."""
    store = _Pipelined()
    flusher = _flusher(store)
    channel = _open(flusher, "a", batch_chunks=1)
    for number in range(8):
        channel.put(b"%d" % number)
    eventually(lambda: store.in_flight() == list(range(8)), "all are in flight")
    store.answer(count=2)
    store.answer(StoreUnavailable("cut"), count=2)
    assert channel.unsent in (6, 7, 8)
    store.answer(count=1)  # a gap
    assert store.in_flight() == [5, 6, 7], "nothing is sent again before they are answered"
    store.answer()
    eventually(lambda: store.in_flight() == list(range(2, 8)), "from the first that failed")
    store.answer()
    channel.flush(5)
    assert store.applied["a"] == [b"%d" % number for number in range(8)]
    assert channel.error is None
    assert flusher._stats.snapshot().retries == 1


def test_what_was_applied_after_all_is_not_there_twice() -> None:
    """An answer is lost, and those behind it are answered for."""
    store = _Pipelined()
    channel = _open(_flusher(store), "a", batch_chunks=1)
    for number in range(4):
        channel.put(b"%d" % number)
    eventually(lambda: store.in_flight() == list(range(4)), "all are in flight")
    store.apply(store.waiting[0][0])
    store.answer(StoreUnavailable("cut"), count=1)
    store.answer()
    eventually(lambda: store.in_flight() == list(range(4)), "all are sent again")
    store.answer()
    channel.flush(5)
    assert store.applied["a"] == [b"%d" % number for number in range(4)]


def test_a_failure_for_good_ends_the_writer_with_what_is_not_durable() -> None:
    """Those in flight behind it are lost with it."""
    store = _Pipelined()
    channel = _open(_flusher(store), "a", batch_chunks=1)
    for number in range(5):
        channel.put(b"%d" % number)
    eventually(lambda: store.in_flight() == list(range(5)), "all are in flight")
    store.answer(count=2)
    store.answer(StreamFenced("a later attempt"))
    eventually(lambda: channel.error is not None, "it ends")
    assert isinstance(channel.error, StreamFenced)
    assert channel.error.unsent == 3


def test_random_answers_from_another_thread(times: Callable[[int, int], int]) -> None:
    """Three hot channels; answers come late, in groups, some are lost: each chunk arrives once."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    store = _Pipelined()
    flusher = _flusher(store)
    channels = [_open(flusher, name, batch_chunks=7, buffer_bytes=500) for name in "abc"]
    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.001):
            lost = StoreUnavailable("cut") if chance.random() < 0.1 else None
            for append, _, _ in store.waiting[: chance.randrange(8)] if lost else ():
                store.apply(append)
            store.answer(lost, name=chance.choice("abc"), count=chance.randrange(1, 10))

    answering = threading.Thread(target=answer)
    answering.start()
    count = times(3_000, 50_000)
    try:
        for number in range(count):
            for channel in channels:
                channel.put(b"%d" % number)
        for channel in channels:
            channel.flush(30)
    finally:
        over.set()
        answering.join()
    for name in "abc":
        assert store.applied[name] == [b"%d" % number for number in range(count)]
