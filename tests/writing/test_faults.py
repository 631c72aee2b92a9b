"""Whatever happens between writer and server: nothing is lost, nothing twice, or it says so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from celery_streams import (
    ConfigurationError,
    CredentialsRejected,
    Slot,
    StoreUnavailable,
    StreamError,
    Streams,
)
from celery_streams.contracts import JSON, Authority, Credentials
from celery_streams.credentials.authority import RedisAuthority
from tests.lifecycle.client import chunks_of
from tests.servers import Proxy, ValkeyProcess
from tests.servers.children import eventually
from tests.soak.harness import Report, wait_for_progress, writing
from tests.writing.conftest import OpenStreams


def test_a_lost_reply_is_not_a_lost_or_doubled_chunk(
    open_streams: OpenStreams, slot: Slot, proxy: Proxy, times: Callable[[int, int], int]
) -> None:
    """Applied, but the client cannot know: the resend gets the first answer."""
    streams = open_streams(port=proxy.port)
    writer = streams.open_writer(slot)
    writer.append(0)
    for number in range(1, times(60, 2000)):
        lost = proxy.cut_reply_to(b"EVALSHA")
        assert writer.append(number) == number
        assert lost.is_set()
    assert chunks_of(open_streams(), slot) == list(range(number + 1))


def test_connections_cut_at_any_byte_lose_and_double_nothing(
    open_streams: OpenStreams, slot: Slot, proxy: Proxy, times: Callable[[int, int], int]
) -> None:
    """In commands and in replies, at random places."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    streams = open_streams(port=proxy.port)
    written = 0
    with streams.open_writer(slot) as writer:
        for _ in range(times(150, 5000)):
            direction: Any = chance.choice(["up", "down"])
            cut = proxy.cut_after(
                chance.randrange(1, 1500 if direction == "up" else 150), direction
            )
            while not cut.is_set():
                for _ in range(chance.randrange(1, 20)):
                    writer.write(written)
                    written += 1
                writer.flush(timeout=20)
    assert chunks_of(open_streams(), slot) == list(range(written))


def test_a_killed_server_comes_back_with_every_chunk(
    times: Callable[[int, int], int],
) -> None:
    """SIGKILL and restart, with the append-only file synced on each write."""
    report = Report("server killed and restarted (unit)")
    slot = Slot.run("killed")
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        streams = Streams(url=server.url, secret="test secret")
        with writing(server.url, slot, writers=2) as fleet:
            for _ in range(times(4, 50)):
                wait_for_progress(streams, slot)
                server.kill()
                server.start()
                report.injected += 1
            wait_for_progress(streams, slot)
            fleet.finish(server.url, report)
        streams.close()
    report.assert_clean()


def test_revocation_is_invisible_to_the_writer(open_streams: OpenStreams, slot: Slot) -> None:
    """Rejected: evict, initialize once, resend what is not acknowledged."""
    streams = open_streams()
    writer = streams.open_writer(slot)
    for number in range(20):
        writer.write([number, 0])
        assert streams.revoke(slot.owner, slot.key) in (0, 1)
        writer.write([number, 1])
        writer.flush()
        assert streams.revoke(slot.owner, slot.key) == 1
    assert chunks_of(streams, slot) == [[number, half] for number in range(20) for half in (0, 1)]
    assert 20 <= streams.stats().initializes <= 41
    before = streams.stats().initializes
    writer.append("one more")
    assert streams.stats().initializes == before + 1


def test_revocation_under_load_costs_one_initialize(
    valkey: ValkeyProcess, slot: Slot, times: Callable[[int, int], int]
) -> None:
    """Several writing processes are refused at once; one of them initializes for all."""
    report, revocations = Report("credentials revoked under load (unit)"), times(5, 100)
    streams = Streams(url=valkey.url, secret="test secret")
    with writing(valkey.url, slot, writers=4) as fleet:
        for _ in range(revocations):
            wait_for_progress(streams, slot, 50)
            streams.revoke(slot.owner, slot.key)
            report.injected += 1
        wait_for_progress(streams, slot, 50)
        fleet.finish(valkey.url, report)
    streams.close()
    report.assert_clean()
    assert report.initializes == 1 + revocations


def test_expired_credentials_are_renewed_in_passing(open_streams: OpenStreams, slot: Slot) -> None:
    """Writing across several lifetimes shows nothing but more initializes."""
    streams = open_streams(credentials_ttl=0.3, refresh_ahead=0.0)
    writer = streams.open_writer(slot)
    began, number = time.monotonic(), 0
    while time.monotonic() - began < 1.2:
        writer.append(number)
        number += 1
    assert chunks_of(streams, slot) == list(range(number))
    assert 3 <= streams.stats().initializes <= 10


class _Rejecting(RedisAuthority):
    """Mints credentials the store has never heard of."""

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        super().initialize(slot, content_type=content_type)
        return Credentials(slot, "bad", "unknown to the store", time.time() + 1000)


def test_credentials_that_are_rejected_again_and_again_end_the_writer_evicted(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """The deadline bounds it; what the next writer finds is not the poison of the last."""
    streams = open_streams(authority=_Rejecting, retry_timeout=0.5)
    assert isinstance(streams.runtime.authority, Authority)
    writer = streams.open_writer(slot)
    writer.write(1)
    with pytest.raises(CredentialsRejected, match=r"again and again.*1 chunks of") as raised:
        writer.wait(timeout=20)
    assert raised.value.unsent == 1
    eventually(lambda: streams.runtime.cache.peek(slot) is None, "the eviction")
    assert open_streams().open_writer(slot).append("good") == 0


def test_a_lost_connection_ends_the_writer_evicted_after_the_retry_timeout(
    open_streams: OpenStreams, slot: Slot, proxy: Proxy
) -> None:
    """Not before, not much later; and the next writer writes when the store is back."""
    streams = open_streams(port=proxy.port, retry_timeout=1.0)
    writer = streams.open_writer(slot)
    writer.append(0)
    proxy.refuse()
    began = time.monotonic()
    writer.write(1)
    with pytest.raises(StoreUnavailable, match=r"gave up after \d s.*1 chunks of"):
        writer.wait(timeout=20)
    assert 0.9 < time.monotonic() - began < 5
    eventually(lambda: streams.runtime.cache.peek(slot) is None, "the eviction")
    proxy.accept()
    assert streams.open_writer(slot).append("again") == 1


def test_what_others_have_renewed_meanwhile_is_not_evicted(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """Evicting old credentials leaves newer ones alone, here and in Redis."""
    streams, others = open_streams(), open_streams()
    writer = streams.open_writer(slot)
    writer.append(0)
    old = streams.runtime.cache.peek(slot)
    assert old is not None
    streams.revoke(slot.owner, slot.key)
    others.open_writer(slot).append(1)
    new = others.runtime.cache.peek(slot)
    writer.append(2)
    found = streams.runtime.cache.peek(slot)
    assert found == new != old
    assert not streams.runtime.cache.evict(old)
    assert streams.runtime.cache.peek(slot) is found
    assert streams.stats().initializes + others.stats().initializes == 2


def test_a_wrong_password_is_said_at_once(slot: Slot, open_streams: OpenStreams) -> None:
    """No retry will help: a configuration error, without the password."""
    with ValkeyProcess(requirepass="right") as server:
        streams = open_streams(url=server.url_for(password="wr0ng-secret"))
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="CELERY_STREAMS_URL") as raised:
            streams.open_writer(slot).append(1)
        assert time.monotonic() - began < 5
        assert "wr0ng-secret" not in str(raised.value)
        assert open_streams(url=server.url).open_writer(slot).append(1) == 0


def test_a_server_out_of_memory_or_read_only_is_named(
    slot: Slot, open_streams: OpenStreams
) -> None:
    """Retried up to the deadline; then the error says what is wrong with the server."""
    with ValkeyProcess(maxmemory="4mb") as server:
        streams = open_streams(url=server.url, retry_timeout=0.5, max_chunk_bytes=10_000_000)
        writer = streams.open_writer(slot)
        writer.append("fits")
        filler = server.client()
        with suppress(redis.OutOfMemoryError):
            for number in range(100):
                filler.set(f"filler-{number}", b"x" * 200_000)
        writer.write("x" * 900_000)
        with pytest.raises(StoreUnavailable, match=r"out of memory.*maxmemory"):
            writer.wait(timeout=20)
        filler.flushdb()
    with ValkeyProcess() as primary, ValkeyProcess(replicaof=primary) as replica:
        streams = open_streams(url=replica.url, retry_timeout=0.5)
        with pytest.raises(StreamError, match=r"read-only replica.*primary"):
            streams.open_writer(slot).append(1)
