"""The index of streams: written when a stream is opened, and only then."""

from __future__ import annotations

import asyncio
import time

import pytest

from celery_streams.credentials.authority import RedisAuthority
from celery_streams.errors import InvalidName
from celery_streams.protocol import Creation, Post
from celery_streams.redis import recording
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import AsyncRedisLink, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.slots import Slot
from celery_streams.stores.index import StreamIndex
from celery_streams.stores.patterns import Pattern
from celery_streams.stores.protocol_store import RedisProtocolStore

LAYOUT = Layout("cs")
TEXT = Creation("text/plain", [b"a"])


@pytest.fixture(params=["valkey", "redis7", "cluster"])
def url(request) -> str:
    server = request.getfixturevalue(request.param)
    server.flush()
    return server.url


def run(url, settings, work):
    async def main():
        link = AsyncRedisLink(parse_address(url), settings)
        store = RedisProtocolStore(link, LAYOUT, settings)
        try:
            return await work(store, StreamIndex(link, LAYOUT, settings), link)
        finally:
            await link.close()

    return asyncio.run(main())


async def paths(index, pattern):
    return sorted(
        [str(each.slot) async for page in index.scan(Pattern.parse(pattern)) for each in page]
    )


def test_both_ways_to_open_a_stream_are_recorded(url, settings_for):
    """The authority and the protocol store both write an entry; scans and ranges find it."""
    settings = settings_for(url)
    link = RedisLink(parse_address(url), settings)
    authority = RedisAuthority(link, LAYOUT, settings)
    authority.initialize(Slot.run("r1"))
    authority.initialize(Slot.run("r1", "progress"))
    authority.initialize(Slot.session("s1"))
    link.close()

    async def work(store, index, _):
        for path in ("events/a", "events/b", "events/b/c"):
            await store.create(Slot.path(path), TEXT)
            await asyncio.sleep(0.002)  # entries of one millisecond are in no order
        await store.post(Slot.path("events/a"), Post("text/plain", [b"b"]))
        assert await paths(index, "events/*") == ["events/a", "events/b"]
        assert await paths(index, "events/**") == ["events/a", "events/b", "events/b/c"]
        assert await paths(index, "runs/*/default") == ["runs/r1/default"]
        assert await paths(index, "sessions/**") == ["sessions/s1/out"]
        assert len(await paths(index, "**")) == 6
        recent = await index.recent("path", 2)
        assert [str(each.slot) for each in recent] == ["events/b/c", "events/b"]
        assert abs(recent[0].opened_at - time.time()) < 5
        older = await index.recent("path", 9, before=recent[1].opened_at)
        assert "events/b" not in [str(each.slot) for each in older]
        later = await index.since("path", recent[1].opened_at)
        assert [str(each.slot) for each in later][-2:] == ["events/b", "events/b/c"]

    run(url, settings, work)


def test_what_is_found_dead_is_dropped_unless_it_may_be_coming(url, settings_for, monkeypatch):
    """A dead entry is not shown at once, and dropped once it is older than the grace."""

    async def work(store, index, link):
        await store.create(Slot.path("x/alive"), TEXT)
        await store.create(Slot.path("x/dead"), TEXT)
        await store.remove(Slot.path("x/dead"))
        assert [str(e.slot) for e in await index.recent("path", 9)] == ["x/alive"]
        assert len(await index.since("path", 0)) == 2
        monkeypatch.setattr(recording, "GRACE", -5.0)
        assert [str(e.slot) for e in await index.recent("path", 9)] == ["x/alive"]
        assert [str(e.slot) for e in await index.since("path", 0)] == ["x/alive"]

    run(url, settings_for(url), work)


def test_recent_pages_past_the_dead(url, settings_for, monkeypatch):
    """Dropping entries while paging loses none of the living."""
    monkeypatch.setattr("celery_streams.stores.index._PAGE", 3)

    async def work(store, index, link):
        for number in range(20):
            await store.create(Slot.path(f"p/{number}"), TEXT)
        for number in range(0, 20, 2):
            await store.remove(Slot.path(f"p/{number}"))
        expected = [f"p/{number}" for number in range(19, 0, -2)]
        # The first time their entries are there, the second time they are not.
        for grace in (60.0, -5.0, -5.0):
            monkeypatch.setattr(recording, "GRACE", grace)
            found = [str(each.slot) for each in await index.recent("path", 50)]
            assert sorted(found) == sorted(expected)

    run(url, settings_for(url), work)


def test_an_index_nobody_reads_stays_small(valkey, settings_for, monkeypatch):
    """Openings sample the index: it does not grow with expired streams."""
    valkey.flush()
    monkeypatch.setattr(recording, "GRACE", -5.0)
    settings = settings_for(valkey.url, retention=0.001)
    link = RedisLink(parse_address(valkey.url), settings)
    authority = RedisAuthority(link, LAYOUT, settings)
    authority._life = 0.001
    for number in range(3000):
        authority.initialize(Slot.run(f"run-{number}"))
    assert link.client.zcard("cs/index/run") < 1500
    assert link.client.pttl("cs/index/run") > 0
    link.close()


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("events/*", "events/a", True),
        ("events/*", "events/a/b", False),
        ("events/*", "events", False),
        ("events/**", "events", True),
        ("events/**", "events/a/b", True),
        ("**", "a", True),
        ("**/out", "sessions/x/out", True),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a/b/c", False),
        ("*/*", "a/b", True),
        ("*/*", "a", False),
        ("**/*", "a", True),
        ("a/**/b/**/c", "a/b/b/c/c", True),
        ("a/*/**", "a", False),
        ("a/*/**", "a/b", True),
        ("a", "a", True),
        ("a.b/*", "axb/c", False),
    ],
)
def test_patterns(pattern, path, expected):
    """`*` is one segment, `**` any number, and nothing else is special."""
    assert Pattern.parse(pattern).matches(path) is expected


@pytest.mark.parametrize("bad", ["", "/", "a//b", "a*", "***", "a/..", "x" * 2000, "a/{b}", "a\n"])
def test_patterns_that_can_match_nothing(bad):
    """They are refused when they are parsed."""
    with pytest.raises(InvalidName):
        Pattern.parse(bad)


def test_a_pattern_of_many_stars_is_no_attack():
    """Matching takes no more than the product of both lengths."""
    pattern = Pattern.parse("/".join(["**", "a"] * 200))
    begin = time.monotonic()
    assert not pattern.matches("/".join(["a"] * 500 + ["b"]))
    assert time.monotonic() - begin < 2
