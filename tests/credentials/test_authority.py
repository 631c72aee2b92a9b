"""Registering streams and minting grants, on real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from celery_streams.contracts import Authority
from celery_streams.credentials import RedisAuthority
from celery_streams.errors import ConfigurationError, RunFinished
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import RedisLink
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from tests.credentials.fleet import LAYOUT, SLOT
from tests.servers import ServerProcess, ValkeyProcess
from tests.servers.children import eventually

META = LAYOUT.meta(SLOT)


@pytest.fixture
def link(server: ServerProcess) -> Iterator[RedisLink]:
    link = RedisLink(parse_address(server.url), StreamsSettings(url=server.url))
    yield link
    link.close()


def authority(link: RedisLink, **overrides: Any) -> RedisAuthority:
    return RedisAuthority(link, LAYOUT, StreamsSettings(**overrides))


def client(link: RedisLink) -> redis.Redis:
    assert isinstance(link.client, redis.Redis)
    return link.client


def grants(link: RedisLink, slot: Slot = SLOT) -> set[bytes]:
    names: list[Any] = client(link).hkeys(LAYOUT.meta(slot))
    return {name for name in names if name.startswith(b"g/")}


def test_it_is_an_authority(link: RedisLink) -> None:
    """It satisfies the protocol that other back ends implement."""
    assert isinstance(authority(link), Authority)


def test_initialize_registers_the_stream_and_grants_writing(link: RedisLink) -> None:
    """The record has an end, a type and a grant that expires by the server's clock; the key is
    registered on its run."""
    before = time.time()
    credentials = authority(link, credentials_ttl=60).initialize(SLOT)
    assert credentials.slot == SLOT
    assert len(credentials.token) == 32
    assert before + 60 <= credentials.expires_at <= time.time() + 60
    record = client(link).hgetall(META)
    expiry = int(record.pop(b"g/" + credentials.token.encode()))
    assert record == {b"end": b"0", b"type": b"application/json"}
    seconds, microseconds = client(link).time()
    assert expiry - (seconds + microseconds / 1e6) * 1000 == pytest.approx(60_000, abs=5_000)
    assert expiry / 1000 >= credentials.expires_at - 0.1  # one machine, one clock
    assert client(link).smembers(LAYOUT.keys(SLOT)) == {b"default"}


def test_tokens_do_not_show_in_a_repr(link: RedisLink) -> None:
    """Credentials may be logged by mistake without giving anything away."""
    credentials = authority(link).initialize(SLOT)
    assert credentials.token not in repr(credentials)


def test_initializing_again_keeps_the_end_and_registers_once(link: RedisLink) -> None:
    """A second mint, of a stream with chunks, resets nothing."""
    first = authority(link).initialize(SLOT)
    client(link).hset(META, "end", 7)
    second = authority(link).initialize(SLOT)
    assert first.token != second.token
    assert first.mint_id != second.mint_id
    assert client(link).hget(META, "end") == b"7"
    assert len(grants(link)) == 2
    assert client(link).scard(LAYOUT.keys(SLOT)) == 1


@pytest.mark.parametrize(("retention", "life", "kept"), [(500, 50, 500), (50, 500, 500)])
def test_the_record_is_kept_for_the_retention_or_the_grants_life(
    link: RedisLink, retention: float, life: float, kept: float
) -> None:
    """Whichever is longer: a grant must not vanish with its record."""
    authority(link, retention=retention, credentials_ttl=life).initialize(SLOT)
    for name in (META, LAYOUT.keys(SLOT)):
        assert client(link).pttl(name) == pytest.approx(kept * 1000, abs=10_000)


def test_expired_grants_are_pruned_and_live_ones_kept(link: RedisLink) -> None:
    """However many there were, they are gone after a bounded number of mints."""
    live = authority(link).initialize(SLOT)
    client(link).hset(META, mapping={f"g/{number:032x}": 1 for number in range(300)})
    mints = 0
    while len(grants(link)) > 1 + mints:
        authority(link).initialize(SLOT)
        mints += 1
        assert mints < 100
    assert b"g/" + live.token.encode() in grants(link)


def test_a_finished_run_opens_no_stream(link: RedisLink) -> None:
    """The error says how the run ended and what to do; nothing was written."""
    client(link).hset(LAYOUT.owner(SLOT), "state", "SUCCESS")
    with pytest.raises(RunFinished, match=r"run-1 has finished \(SUCCESS\).*session") as caught:
        authority(link).initialize(SLOT)
    assert caught.value.state == "SUCCESS"
    assert not client(link).exists(META, LAYOUT.keys(SLOT))


def test_a_session_outlives_runs(link: RedisLink) -> None:
    """A session of the same name as a finished run is opened."""
    slot = Slot.session("run-1")
    client(link).hset(LAYOUT.owner(slot), "state", "SUCCESS")
    authority(link).initialize(slot)
    assert client(link).hget(LAYOUT.meta(slot), "end") == b"0"


def test_another_content_type_is_refused(link: RedisLink) -> None:
    """The error names both types; the record and its grants stay as they were."""
    authority(link).initialize(SLOT)
    before = client(link).hgetall(META)
    with pytest.raises(ConfigurationError, match=r"application/json.*text/plain"):
        authority(link).initialize(SLOT, content_type="text/plain")
    assert client(link).hgetall(META) == before


def test_revoke_withdraws_every_grant_of_one_slot(link: RedisLink) -> None:
    """It says how many; the stream, and other streams' grants, stay."""
    other = Slot.run("run-1", "other")
    minting = authority(link)
    for slot in (SLOT, SLOT, SLOT, other):
        minting.initialize(slot)
    assert minting.revoke(SLOT) == 3
    assert minting.revoke(SLOT) == 0
    assert client(link).hget(META, "end") == b"0"
    assert not grants(link)
    assert len(grants(link, other)) == 1


def test_readers_that_wait_for_the_stream_are_woken(link: RedisLink) -> None:
    """The live channel says that the stream has been opened."""
    messages = []
    with client(link).pubsub() as pubsub:
        pubsub.ssubscribe(LAYOUT.live(SLOT))
        assert pubsub.get_message(timeout=5)["type"] == "ssubscribe"
        authority(link).initialize(SLOT)

        def woken() -> bool:
            messages.append(pubsub.get_message(timeout=1))
            return messages[-1] is not None

        eventually(woken, "a message on the live channel")
    assert messages[-1]["data"] == b"o"


def test_a_server_without_sharded_channels_fails_before_anything_is_written() -> None:
    """No half-registered stream on a server that is too old to carry it."""
    with ValkeyProcess(rename_commands={"SPUBLISH": ""}) as old:
        link = RedisLink(parse_address(old.url), StreamsSettings(url=old.url))
        with pytest.raises(ConfigurationError, match="too old"):
            authority(link).initialize(SLOT)
        assert client(link).dbsize() == 0
        link.close()
