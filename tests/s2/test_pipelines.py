"""Several batches of one writer in flight on S2: nothing lost, nothing twice, all in order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from celery_streams import Streams
from celery_streams.contracts import Append, Appended, Attempt, PipelinedStore
from celery_streams.errors import ChunkTooLarge, StoreUnavailable, StreamFenced
from celery_streams.stores.s2.store import S2Store
from tests.conftest import SettingsFor
from tests.s2.conftest import Place, S2Backend
from tests.s2.fleet import Fleet, all_there
from tests.s2.member import RUN, connected
from tests.s2.servers import BASIN, S2Lite
from tests.s2.tokens import TokenServer
from tests.servers import Distance, Proxy, ValkeyProcess
from tests.servers.children import eventually
from tests.stores.contract.backend import SLOT, Background, Hand

Open = Callable[..., Streams]


def _url(port: int) -> str:
    return f"s2://{BASIN}?endpoint=http://127.0.0.1:{port}&skip_access_tokens"


@pytest.fixture
def open_streams(valkey: ValkeyProcess, place: Place) -> Iterator[Open]:
    """``open_streams(port, **settings)``: streams whose chunks are on the S2 server there."""
    valkey.flush()
    with ExitStack() as stack:

        def make(port: int, **settings: Any) -> Streams:
            streams = connected(valkey.url, _url(port), **settings)
            stack.callback(streams.close)
            return streams

        yield make


@pytest.fixture
def proxy(s2_lite: S2Lite) -> Iterator[Proxy]:
    """In front of the S2 server."""
    with Proxy(s2_lite.port, resp=False) as proxy:
        yield proxy


@pytest.fixture
def there(s2_lite: S2Lite, settings_for: SettingsFor, place: Place) -> Iterator[S2Backend]:
    """Another process's way to the same S2, by which a test sees what is there."""
    with S2Backend(settings_for(_url(s2_lite.port))) as backend:
        yield backend


def _end(backend: S2Backend) -> int:
    page = backend.store.read(SLOT, 0)
    return 0 if page.head is None else page.head.end


def test_the_s2_store_is_pipelined(there: S2Backend) -> None:
    """It takes many batches of one producer at once."""
    assert isinstance(there.store, PipelinedStore)
    assert there.store.max_in_flight >= 8


def test_batches_leave_and_are_applied_while_none_is_acknowledged(
    open_streams: Open, proxy: Proxy, there: S2Backend
) -> None:
    """S2's answers are held back: a batch a chunk is in the log all the same."""
    streams = open_streams(proxy.port)
    with streams.write_to(RUN, create=True) as writer:
        writer.append(0)
        writer.append(1)  # in a session
        proxy.stall("down")
        for number in range(2, 12):
            writer.write(number)
            eventually(lambda: _end(there) == number + 1, "S2 has it")  # noqa: B023
        assert writer._channel.unsent == 10
        proxy.resume("down")
        assert writer.wait().offset == 12
    assert len(there.store.read(SLOT, 0).entries) == 12


def test_the_rate_does_not_depend_on_the_round_trip(
    open_streams: Open, s2_lite: S2Lite, there: S2Backend
) -> None:
    """300 batches to a server that is 200 ms away: one a round trip would take a minute."""
    with Distance(s2_lite.port, 0.2) as distance:
        streams = open_streams(distance.port, batch_chunks=1)
        with streams.write_to(RUN, create=True) as writer:
            writer.append("first")
            start = time.monotonic()
            for number in range(300):
                writer.write(number)
            writer.wait()
            took = time.monotonic() - start
    assert len(there.store.read(SLOT, 0).entries) == 301
    assert took < 300 * 0.2 / 5


@pytest.mark.timeout(300)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_connections_cut_with_batches_in_flight(
    open_streams: Open,
    proxy: Proxy,
    there: S2Backend,
    times: Callable[[int, int], int],
    direction: Any,
) -> None:
    """At random bytes, many times: between records, in their middle, in answers."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    streams = open_streams(proxy.port, batch_chunks=2)
    written = 0
    with streams.write_to(RUN, create=True) as writer:
        for _ in range(times(25, 400)):
            cut = proxy.cut_after(
                chance.randrange(1, 8000 if direction == "up" else 900), direction
            )
            while not cut.is_set():
                for _ in range(chance.randrange(1, 40)):
                    writer.write(written)
                    written += 1
                if chance.random() < 0.2:
                    writer.flush(timeout=30)
        assert writer.wait().offset == written
    assert there.chunks() == list(range(written))


def test_two_writers_of_one_process_are_cut_together(
    open_streams: Open, proxy: Proxy, there: S2Backend
) -> None:
    """Their batches are in flight in one session, and each has its own order."""
    streams = open_streams(proxy.port, batch_chunks=1)
    writers = [streams.write_to(RUN, create=True), streams.write_to(RUN, create=True)]
    count = 0
    for _ in range(10):
        cut = proxy.cut_after(random.randrange(200, 4000), "up")
        while not cut.is_set():
            for _ in range(20):
                for name, writer in enumerate(writers):
                    writer.write([name, count])
                count += 1
            writers[count % 2].flush(timeout=30)
    for writer in writers:
        writer.wait()
    all_there(there.chunks(), 2, count)


def test_a_server_that_stands_still_ends_the_writer_in_time(
    open_streams: Open, proxy: Proxy, there: S2Backend
) -> None:
    """What is in flight is not waited for beyond the timeouts; what was applied stays."""
    streams = open_streams(proxy.port, batch_chunks=1, socket_timeout=0.5, retry_timeout=2)
    writer = streams.write_to(RUN, create=True)
    writer.append(0)
    proxy.stall()
    start = time.monotonic()
    for number in range(1, 20):
        writer.write(number)
    with pytest.raises(StoreUnavailable, match="19 chunks of"):
        writer.flush(timeout=30)
    assert time.monotonic() - start < 15
    proxy.resume()
    assert there.chunks()[:1] == [0]


@pytest.mark.parametrize("fault", ["revoked", "expired", "throttled"])
def test_a_token_that_ends_with_batches_in_flight(
    tokens: TokenServer, valkey: ValkeyProcess, fault: str
) -> None:
    """One new mint and all is sent again; being throttled is no reason for one."""
    valkey.flush()
    streams = connected(valkey.url, tokens.url(), batch_chunks=1)
    with streams.write_to(RUN, create=True) as writer:
        for number in range(3):
            writer.append(number)
        tokens.hold()
        try:
            for number in range(3, 13):
                writer.write(number)
            eventually(lambda: tokens.held == 10, "all are in flight")
            if fault == "revoked":
                assert tokens.revoke_all() == 1
            elif fault == "expired":
                tokens.expire_all()
            else:
                tokens.throttle("append", 1, 0.3)
        finally:
            tokens.let_go()
        assert writer.wait().offset == 13
    assert sum(tokens.minted.values()) == (1 if fault == "throttled" else 2)
    with streams.read(RUN, timeout=20) as reader:
        assert [next(reader) for _ in range(13)] == list(range(13))
    streams.close()


def _batches(hand: Hand, count: int) -> list[Append]:
    """The next batches of a producer, a chunk each."""
    appends = []
    for _ in range(count):
        batch = hand.batch(f"{hand.attempt.attempt_id} {hand.seq}")
        appends.append(Append(hand.slot, batch, hand.producer, hand.credentials))
        hand.seq += 1
    return appends


def test_a_fenced_attempt_with_batches_in_flight(
    s2_lite: S2Lite, proxy: Proxy, settings_for: SettingsFor, there: S2Backend
) -> None:
    """None of them is applied: the successor's first append comes before, for good."""
    with S2Backend(settings_for(_url(proxy.port))) as backend:
        zombie = backend.writer(SLOT, Attempt("run-1", "first"))
        zombie.append("a")
        zombie.append("b")
        proxy.stall("up")
        results: list[Appended | Exception] = []
        answered = threading.Event()

        def answer(answers: Any) -> None:
            results.extend(result for _, result in answers)
            if len(results) == 6:
                answered.set()

        backend.store.submit(_batches(zombie, 6), answer)
        there.writer(SLOT, Attempt("run-1", "retry", generation=1)).append("c")
        proxy.resume("up")
        assert answered.wait(20)
        assert all(isinstance(each, StreamFenced) for each in results)
        with pytest.raises(StreamFenced):
            zombie.append("d")
    assert there.chunks() == ["a", "b", "c"]


def test_batches_behind_one_that_was_overtaken_are_sent_again_in_order(
    s2_lite: S2Lite, proxy: Proxy, settings_for: SettingsFor, there: S2Backend
) -> None:
    """Another process appends while they are under way; nobody is told of a failure."""
    with S2Backend(settings_for(_url(proxy.port))) as backend:
        hand = backend.writer()
        hand.append("a")
        hand.append("b")
        for _ in range(5):
            proxy.stall("up")
            appending = Background(backend.store.append_many, _batches(hand, 8))
            there.writer().append("theirs")
            proxy.resume("up")
            assert all(isinstance(each, Appended) for each in appending.result())
    ours = [chunk for chunk in there.chunks() if chunk != "theirs"][2:]
    assert ours == [f"{hand.attempt.attempt_id} {number}" for number in range(2, 42)]


def test_lost_answers_are_found_behind_whatever_others_wrote(
    s2_lite: S2Lite, proxy: Proxy, settings_for: SettingsFor, there: S2Backend
) -> None:
    """Each batch with the offset it got, more producers later than a record tells of."""
    with S2Backend(settings_for(_url(proxy.port), socket_timeout=1)) as backend:
        hand = backend.writer()
        hand.append("a")
        hand.append("b")
        proxy.stall("down")
        appends = _batches(hand, 6)
        appending = Background(backend.store.append_many, appends)
        eventually(lambda: _end(there) == 8, "all are applied")
        proxy.cut()
        assert all(isinstance(each, StoreUnavailable) for each in appending.result())
        for number in range(40):
            there.writer().append(number)
        proxy.resume("down")
        again = backend.store.append_many(appends)
        assert again == [Appended(at, at + 1, 1, duplicate=True) for at in range(2, 8)]
        (more,) = backend.store.append_many(_batches(hand, 1))
        assert more == Appended(48, 49, 1)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_write_to_one_stream_with_pipelines(
    valkey: ValkeyProcess, place: Place, s2_lite: S2Lite, count: int
) -> None:
    """Hot loops of small batches: each chunk once, in each writer's order."""
    valkey.flush()
    fleet = Fleet(valkey, _url(s2_lite.port), batch_chunks=5)
    fleet.start(count, 600, 0)
    fleet.result()
    all_there(fleet.chunks(), count, 600)


def test_an_idle_session_is_ended_and_a_long_one_is_renewed(
    tokens: TokenServer, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2 may look at a token only when a session begins, and sessions cost the server."""
    monkeypatch.setattr("celery_streams.stores.s2.pipeline._LIFETIME", 0.3)
    monkeypatch.setattr("celery_streams.stores.s2.pipeline._IDLE", 0.3)
    valkey.flush()
    streams = connected(valkey.url, tokens.url())
    with streams.write_to(RUN, create=True) as writer:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            writer.append("on and on")
        begun = tokens.sessions
        assert begun >= 3
        eventually(lambda: tokens.open_sessions == 0, "the session ends")
        writer.append("again")
        assert tokens.sessions == begun + 1
    streams.close()


def test_a_session_is_not_renewed_with_batches_in_flight(
    tokens: TokenServer, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would overtake each other: the next begins when nothing is in flight."""
    monkeypatch.setattr("celery_streams.stores.s2.pipeline._LIFETIME", 0.3)
    valkey.flush()
    streams = connected(valkey.url, tokens.url(), batch_chunks=1)
    before = tokens.sessions
    with streams.write_to(RUN, create=True) as writer:
        writer.append(0)
        tokens.hold()
        try:
            writer.write(1)
            eventually(lambda: tokens.held == 1, "it is in flight")
            time.sleep(0.5)  # the session's time is over
            writer.write(2)
            time.sleep(0.2)
            assert tokens.held == 1
            assert tokens.sessions == before + 1
        finally:
            tokens.let_go()
        assert writer.wait().offset == 3
    assert tokens.sessions == before + 2
    assert streams.stats().retries == 0
    streams.close()


def test_the_servers_death_with_batches_in_flight(
    open_streams: Open, settings_for: SettingsFor
) -> None:
    """SIGKILL in a hot loop, again and again: what is on its disk is there once, in order."""
    with S2Lite(durable=True) as server, S2Backend(settings_for(_url(server.port))) as backend:
        streams = open_streams(server.port, batch_chunks=2, socket_timeout=2)
        done = threading.Event()

        def kill() -> None:
            for _ in range(4):
                done.wait(0.5)
                server.kill()
                server.start()
            done.set()

        with streams.write_to(RUN, create=True) as writer:
            writer.append(0)
            killing = Background(kill)
            written = 1
            while not done.is_set():
                for _ in range(5):
                    writer.write(written)
                    written += 1
                time.sleep(0.005)
            killing.result()
            assert writer.wait().offset == written
        assert backend.chunks() == list(range(written))


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-any"])
def test_a_chunk_that_no_record_takes_is_refused_before_anything_is_sent(
    tokens: TokenServer, valkey: ValkeyProcess, content_type: str
) -> None:
    """By write(), whatever its type; the largest that one takes arrives."""
    valkey.flush()
    streams = connected(valkey.url, tokens.url())
    most = S2Store.max_chunk_bytes
    quotes = 2 if content_type == "application/json" else 0

    def chunk(size: int) -> Any:
        text = "x" * (size - quotes)
        return text.encode() if content_type == "application/x-any" else text

    writer = streams.write_to(RUN, create=True, content_type=content_type)
    with pytest.raises(ChunkTooLarge):
        writer.write(chunk(most + 1))
    assert tokens.requests["append"] == tokens.requests["create-stream"] == 0
    assert not tokens.minted
    writer.write(chunk(3))
    writer.write(chunk(most))
    assert writer.wait().count == 2
    with streams.read(RUN, timeout=20) as reader:
        assert [next(reader), next(reader)] == [chunk(3), chunk(most)]
    streams.close()
