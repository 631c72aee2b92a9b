"""Exactly once, in order, from one attempt: whatever is lost, killed or overtaken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celery_streams.contracts import Append, Appended, Attempt
from celery_streams.errors import (
    ChunkTooLarge,
    ConfigurationError,
    OffsetGone,
    StoreUnavailable,
    StreamClosed,
    StreamFenced,
    StreamNotFound,
)
from celery_streams.slots import Slot
from celery_streams.stores.s2.state import (
    PAYLOAD_BYTES,
    knock_headers,
    timestamp_of,
)
from tests.conftest import SettingsFor
from tests.s2.conftest import Connect, S2Backend
from tests.s2.servers import BASIN, S2Lite
from tests.s2.tokens import TokenServer
from tests.stores.contract.backend import SLOT, Background


@pytest.fixture
def durable() -> Iterator[S2Lite]:
    """A server of the test's own, with its data in files."""
    with S2Lite(durable=True) as server:
        yield server


@pytest.mark.parametrize("others", [0, 1, 40])
def test_a_lost_acknowledgement_is_found_in_the_log(
    connect: Connect, tokens: TokenServer, others: int
) -> None:
    """Whoever appended in between, and though the state tells of 32 producers only."""
    backend, elsewhere = connect(), connect()
    writer = backend.writer()
    writer.append("a")
    tokens.lose_answers("append")
    with pytest.raises(StoreUnavailable):
        writer.append("b", "c")
    for number in range(others):
        elsewhere.writer().append(number)
    assert writer.resend() == Appended(1, 3, 1, duplicate=True)
    writer.seq += 1
    assert writer.append("d").offset == 3 + others
    assert backend.chunks() == ["a", "b", "c", *range(others), "d"]


def test_every_acknowledgement_in_a_row_may_be_lost(
    backend: S2Backend, tokens: TokenServer
) -> None:
    """The first append of a process is looked for, too."""
    writer = backend.writer()
    for number in range(10):
        tokens.lose_answers("append", number % 3)
        writer.insist(number)
    assert backend.chunks() == list(range(10))


def test_a_lost_acknowledgement_of_the_end(backend: S2Backend, tokens: TokenServer) -> None:
    """Closing again finds it closed."""
    writer = backend.writer()
    writer.append("a")
    tokens.lose_answers("append")
    with pytest.raises(StoreUnavailable):
        writer.close()
    assert writer.close().closed == "CLOSED"
    assert backend.chunks() == ["a"]


def test_a_process_that_lost_everything_finds_a_producers_last_batch(connect: Connect) -> None:
    """Behind more producers than a record tells of; and a gap is seen as one."""
    writer = connect().writer()
    writer.append("a")
    writer.append("b")
    backend = connect()
    for number in range(40):
        backend.writer().append(number)
    writer.store = connect().store
    assert writer.resend() == Appended(1, 2, 1, duplicate=True)
    assert writer.append("c").offset == 42


def test_a_producer_no_longer_told_of_goes_on_in_a_process_that_knows_it(
    connect: Connect,
) -> None:
    """Its batch is not taken for a gap."""
    backend, elsewhere = connect(), connect()
    writer = backend.writer()
    writer.append("a")
    for number in range(40):
        elsewhere.writer().append(number)
    assert writer.append("b").offset == 41


def test_writers_of_many_stores_race_without_losing_anything(connect: Connect) -> None:
    """Each append is judged by what is there; losers judge again."""
    stores = [connect() for _ in range(4)]

    def write(backend: S2Backend, name: int) -> None:
        writer = backend.writer()
        for number in range(25):
            writer.insist([name, number])

    for writing in [Background(write, backend, name) for name, backend in enumerate(stores)]:
        writing.result(60)
    chunks = stores[0].chunks()
    assert len(chunks) == 100
    for name in range(4):
        assert [number for who, number in chunks if who == name] == list(range(25))


def test_knocks_are_no_records_to_anybody(backend: S2Backend, kind: str) -> None:
    """However many stand at the tail: reading, appending, opening, following go on."""
    if kind == "asyncio":
        pytest.skip("what is decided does not depend on the shell")
    writer = backend.writer()
    writer.append("a", "b")
    view = backend.store._thread.run(_view_of(backend))

    async def knock(count: int) -> None:
        from s2_sdk import Record

        record = Record(b"", knock_headers(b"somebody"), timestamp_of(0))
        for _ in range(count):
            await view._requests.append(writer.credentials.token, [record])

    for count in (1, 20):
        backend.store._thread.run(knock(count))
        assert backend.store.head(SLOT).end == 2
        assert backend.chunks() == ["a", "b"]
        assert not backend.store.read(SLOT, 2).entries
        with pytest.raises(ConfigurationError):
            backend.open(content_type="text/plain")
    following = Background(backend.follow)
    assert backend.writer().append("c").offset == 2
    assert writer.append("d").offset == 3
    backend.store._thread.run(knock(2))
    writer.close()
    assert following.result() == list("abcd")


async def _view_of(backend: S2Backend) -> Any:
    return backend.store._here().view(SLOT)


def test_a_writer_that_never_rests_lets_others_in(connect: Connect) -> None:
    """It would win every race, because it knows the tail without asking."""
    greedy, modest = connect(), connect()
    enough = threading.Event()

    def append_for_ever() -> int:
        writer = greedy.writer()
        while not enough.is_set():
            writer.insist("greedy")
        return writer.seq

    appending = Background(append_for_ever)
    writer = modest.writer()
    for number in range(5):
        writer.insist(number)
    enough.set()
    assert appending.result() > 0
    assert [chunk for chunk in modest.chunks() if chunk != "greedy"] == list(range(5))


def test_an_attempt_is_fenced_by_another_process(connect: Connect) -> None:
    """From its successor's first append on, for good; foreign runs are fenced for themselves."""
    first = Attempt("run-1", "first")
    retry = Attempt("run-1", "retry", generation=1)
    foreign = Attempt("run-2", "theirs")
    zombie = connect().writer(SLOT, first)
    zombie.append("a")
    theirs = connect().writer(SLOT, foreign)
    theirs.append("b")
    assert connect().writer(SLOT, retry).append("c") == Appended(2, 3, 2)
    with pytest.raises(StreamFenced, match="attempt 2 there"):
        zombie.append("d")
    with pytest.raises(StreamFenced):
        zombie.close()
    with pytest.raises(StreamFenced):
        connect().writer(SLOT, first).append("e")
    assert theirs.append("f").offset == 3


def test_the_owners_fence_is_kept_however_many_other_runs_write(connect: Connect) -> None:
    """A record tells of 32 runs: the owner's is always among them."""
    backend = connect()
    backend.writer(SLOT, Attempt("run-1", "retry", generation=1)).append("own")
    for number in range(40):
        backend.writer(SLOT, Attempt(f"sub-{number}", f"attempt-{number}")).append(number)
    with pytest.raises(StreamFenced):
        connect().writer(SLOT, Attempt("run-1", "first")).append("late")
    assert backend.store.head(SLOT).epoch == 1


def test_names_that_fill_the_state_do_not_fill_the_record(connect: Connect) -> None:
    """The longest names there can be, and the largest chunk, fit one record."""
    backend = connect()
    slot = Slot.run("\N{GRINNING FACE}" * 63, "\N{GRINNING FACE}" * 63)
    for number in range(20):
        run = "\N{GRINNING FACE}" * 60 + f"{number:03}"
        backend.writer(slot, Attempt(run, "a" * 200)).append(number)
    largest = "x" * (PAYLOAD_BYTES - 2)
    backend.writer(slot).append(largest)
    assert backend.chunks(slot) == [*range(20), largest]
    with pytest.raises(ChunkTooLarge, match="S2 takes"):
        backend.writer(slot).append(largest + "x")


def test_the_servers_death_costs_nothing(
    durable: S2Lite, settings_for: SettingsFor, kind: str
) -> None:
    """SIGKILL in the middle of appends, again and again: each batch is there once."""
    url = f"s2://{BASIN}?endpoint={durable.endpoint}&skip_access_tokens=1"
    settings = settings_for(url, socket_timeout=2)
    with S2Backend(settings, kind) as backend:
        writer = backend.writer()
        reading = Background(S2Backend(settings, "sync").follow_insisting)
        done = threading.Event()

        def kill() -> None:
            for _ in range(4):
                done.wait(0.4)
                durable.kill()
                durable.start()
            done.set()

        killing = Background(kill)
        written = 0
        while not done.is_set():
            writer.insist(written)
            written += 1
        killing.result()
        writer.close()
        assert backend.chunks() == list(range(written)) == reading.result()
        assert written > 20


def test_a_follower_waits_for_a_stream_that_does_not_exist_yet(connect: Connect) -> None:
    """And gets it from its beginning, live."""
    backend = connect()
    following = Background(connect().follow)
    writer = backend.writer()
    for number in range(5):
        writer.append(number)
    writer.close()
    assert following.result() == list(range(5))


def test_a_follower_of_a_quiet_stream_hears_of_it(connect: Connect) -> None:
    """An empty page each ``idle`` seconds, with the head."""
    backend = connect()
    writer = backend.writer()
    writer.append("a")
    pages = iter(backend.store.follow(SLOT, 0, idle=0.1))
    assert len(next(pages).entries) == 1
    quiet = next(pages)
    assert (quiet.entries, quiet.head.end) == ((), 1)
    writer.append("b")
    while not (page := next(pages)).entries:
        pass
    assert (page.entries[0].start, page.head.end) == (1, 2)
    pages.close()


def test_following_ends_when_the_stream_is_deleted(connect: Connect) -> None:
    """With an error, not with silence."""
    backend = connect()
    backend.writer().append("a")
    pages = backend.store.follow(SLOT, 0, idle=60)
    next(pages)
    waiting = Background(next, pages)
    connect().store.delete(SLOT)
    with pytest.raises((StreamNotFound, StoreUnavailable)):
        waiting.result()


def test_following_from_a_trimmed_offset_says_so(connect: Connect) -> None:
    """Rather than skipping what is gone."""
    backend = connect(max_chunks=2)
    writer = backend.writer()
    for number in range(6):
        writer.append(number)
    with pytest.raises(OffsetGone) as error:
        next(iter(backend.store.follow(SLOT, 1, idle=60)))
    assert error.value.first == 4


def test_the_server_is_told_to_trim(connect: Connect, tokens: TokenServer) -> None:
    """The log does not grow for ever; the token allows trimming."""
    backend = connect(max_chunks=5)
    writer = backend.writer()
    for number in range(60):
        writer.append(number)
    assert backend.chunks(offset=backend.store.head(SLOT).first) == [55, 56, 57, 58, 59]
    assert not tokens.refused
    cold = connect(max_chunks=5)
    again = cold.writer()
    for number in range(3):
        again.append(number)
    assert cold.store.head(SLOT).first == 58


def test_closing_a_store_that_looks_for_what_to_keep(connect: Connect, kind: str) -> None:
    """What it was about to send is answered for once, and is not sent behind that answer."""
    if kind == "asyncio":
        pytest.skip("what is decided does not depend on the shell")
    writer = connect(max_chunks=5).writer()
    for number in range(10):
        writer.append(number)
    cold = connect(max_chunks=5)
    hand = cold.writer()
    batch = Append(SLOT, hand.batch("late"), hand.producer, hand.credentials)

    async def closing() -> tuple[list[Any], list[Any]]:
        view = cold.store._here().view(SLOT)
        requests = view._requests
        answers: list[Any] = []
        looking, go_on = asyncio.Event(), asyncio.Event()
        stamped = requests.stamped

        async def held(*args: Any) -> Any:
            looking.set()
            await go_on.wait()
            return await stamped(*args)

        requests.stamped = held
        view.submit(batch, answers.append)
        await looking.wait()
        running = list(view._pipeline._tasks)
        await view.shut()
        go_on.set()
        return answers, await asyncio.gather(*running, return_exceptions=True)

    answers, outcomes = cold.store._thread.run(closing())
    assert outcomes == [None]
    assert [type(each) for each in answers] == [StoreUnavailable]
    assert writer.append("on").offset == 10


def test_ending_a_stream_for_its_run(connect: Connect) -> None:
    """The registry says how; nobody is asked whether it may."""
    backend = connect(max_chunks=5)
    writer = backend.writer()
    writer.append("a")
    backend.run_end("FAILURE")
    assert backend.store.head(SLOT).closed == "FAILURE"
    with pytest.raises(StreamClosed, match="FAILURE"):
        writer.append("b")


def test_a_stream_that_is_made_again_after_its_end_is_written_to(
    backend: S2Backend, connect: Connect
) -> None:
    """Another process has deleted it: that it had ended is not believed from memory."""
    slot = Slot.session("chat-1")
    writer = backend.writer(slot)
    writer.append("old")
    backend.store.close(slot, writer.credentials, writer.attempt)
    with pytest.raises(StreamClosed):
        backend.writer(slot).append("late")
    other = connect()
    assert other.store.delete(slot)
    again = backend.writer(slot)
    again.append("new")
    assert other.chunks(slot) == ["new"]
