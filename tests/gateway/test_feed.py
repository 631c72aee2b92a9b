"""The feed and the hub in this process, where the order of things can be forced."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from celery_streams import Slot, Streams
from celery_streams.gateway import create_app
from celery_streams.protocol import LiveEvent, Post
from celery_streams.stores import feed as feed_module
from celery_streams.stores.feed import RedisFeed
from tests.gateway.following import subscribed
from tests.servers import Proxy, ValkeyProcess
from tests.servers.children import eventually

pytestmark = pytest.mark.anyio
Times = Callable[[int, int], int]


@asynccontextmanager
async def feeding(url: str, **settings: Any) -> AsyncIterator[tuple[Any, RedisFeed]]:
    """A store, and a feed of it."""
    streams = Streams(url=url, secret="test secret", **settings)
    store: Any = streams.runtime.protocol_store()
    feed = store.feed()
    try:
        yield store, feed
    finally:
        await feed.aclose()
        await store.aclose()
        streams.close()


def session() -> Slot:
    return Slot.session(f"feed-{time.time_ns()}")


async def soon(true: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, true, what)


async def write(url: str, slot: Slot, value: object) -> None:
    """One chunk, by somebody else."""

    def append() -> None:
        streams = Streams(url=url, secret="test secret")
        try:
            streams.session(slot.owner).out.append(value)
        finally:
            streams.close()

    await asyncio.to_thread(append)


@pytest.mark.soak
async def test_a_connection_lost_right_after_it_confirmed(
    valkey: ValkeyProcess, times: Times
) -> None:
    """The confirmation and the end arrive together: the channel must not be taken for alive."""
    with Proxy(valkey.port) as proxy:
        async with feeding(f"redis://127.0.0.1:{proxy.port}/0", connect_timeout=1) as (_, feed):
            for number in range(times(15, 300)):
                slot, heard = session(), asyncio.Event()
                events: list[LiveEvent] = []

                def deliver(
                    event: LiveEvent, events: list[LiveEvent] = events, heard: Any = heard
                ) -> None:
                    events.append(event)
                    heard.set()

                await feed.listen(slot, deliver)
                # The next connection is lost around its confirmation, too.
                proxy.cut_after(100 + number % 20 * 7, "down")
                proxy.cut()
                async with asyncio.timeout(20):
                    while None not in events:
                        heard.clear()
                        await heard.wait()
                    while not any(getattr(event, "count", 0) for event in events):
                        heard.clear()
                        await write(valkey.url, slot, number)
                        try:
                            async with asyncio.timeout(0.5):
                                await heard.wait()
                        except TimeoutError:
                            continue
                await feed.ignore(slot)


async def test_a_connection_lost_as_it_confirms(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, forced: lost before whoever waits for the confirmation runs."""
    async with feeding(valkey.url) as (_, feed):
        slot, events, node = session(), list[LiveEvent](), feed_module._Node
        await feed.listen(slot, events.append)
        join, losses = node.join, [1, 2]

        async def join_and_lose(self: Any, channel: str) -> None:
            await join(self, channel)
            if losses:
                losses.pop()
                self._fail()

        monkeypatch.setattr(node, "join", join_and_lose)
        next(iter(feed._nodes.values()))._fail()
        await soon(lambda: not losses, "lost twice more")
        await soon(lambda: events.count(None) >= 3, "told to look at the log each time")
        await write(valkey.url, slot, 1)
        await soon(lambda: any(getattr(each, "count", 0) for each in events), "the chunk")


async def test_what_is_ignored_while_it_is_restored(valkey: ValkeyProcess) -> None:
    """The channel is let go of again, once the connection is back."""
    with Proxy(valkey.port) as proxy:
        async with feeding(f"redis://127.0.0.1:{proxy.port}/0") as (_, feed):
            kept, dropped = session(), session()
            await feed.listen(kept, lambda event: None)
            await feed.listen(dropped, lambda event: None)
            proxy.stall("down")
            proxy.cut()
            before = proxy.connections
            await soon(lambda: proxy.connections > before, "it connects again")
            await feed.ignore(dropped)
            proxy.resume()
            channels = [f"cs/{{session/{slot.owner}}}/live/out" for slot in (kept, dropped)]
            await soon(lambda: channels[0] in subscribed(valkey.client()), "kept")
            await soon(lambda: channels[1] not in subscribed(valkey.client()), "dropped")


async def test_a_half_open_connection_is_noticed(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half open connection is noticed."""
    monkeypatch.setattr(feed_module, "_SILENCE", 0.2)
    with Proxy(valkey.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with feeding(url, socket_timeout=0.5) as (_, feed):
            events: list[LiveEvent] = []
            slot = session()
            await feed.listen(slot, events.append)
            await asyncio.sleep(1.5)  # silent, but it answers
            assert proxy.connections == 1
            assert events == []
            proxy.stall("down")
            await soon(lambda: proxy.connections > 1, "another connection")
            proxy.resume()
            await soon(lambda: None in events, "told to look at the log")
            await write(valkey.url, slot, 1)
            await soon(lambda: any(getattr(each, "count", 0) for each in events), "the chunk")


@pytest.mark.soak
async def test_readers_that_come_and_go_leave_nothing_behind(
    valkey: ValkeyProcess, times: Times
) -> None:
    """Readers that come and go leave nothing behind."""
    async with feeding(valkey.url) as (store, _):
        streams = Streams(url=valkey.url, secret="test secret")
        app = create_app(streams, insecure=True)
        paths = [f"/v1/stream/come/{time.time_ns()}-{number}" for number in range(20)]
        for path in paths:
            slot = Slot.path(path.removeprefix("/v1/stream/"))
            await store.create(slot, _creation())
        try:
            await asyncio.gather(*(_read_once(app, path) for path in paths))
            gc.collect()
            tasks = len(asyncio.all_tasks())
            for _ in range(times(20, 100)):
                await asyncio.gather(*(_read_once(app, path) for path in paths * 5))
            channel = "cs/{path/come"
            await soon(
                lambda: not any(name.startswith(channel) for name in subscribed(valkey.client())),
                "unsubscribed from all",
            )
            (running,) = app._running.values()
            assert running.hub.topics == {}
            assert running.hub.followers == 0
            gc.collect()
            await asyncio.sleep(0.1)
            assert len(asyncio.all_tasks()) <= tasks + 2
            feed: Any = running.hub._feed
            assert (feed._listeners, feed._homes, feed._homeless) == ({}, {}, set())
            assert all(not node._joined and not node._waiting for node in feed._nodes.values())
        finally:
            await app.aclose()
            streams.close()


async def test_an_end_between_the_first_page_and_what_follows(valkey: ValkeyProcess) -> None:
    """The stream ends after its log was read and before the answer begins."""
    async with feeding(valkey.url) as (store, _):
        streams = Streams(url=valkey.url, secret="test secret", recheck_interval=60)
        app = create_app(streams, insecure=True)
        slot = Slot.path(f"between/{time.time_ns()}")
        await store.create(slot, _creation())
        ended, body = asyncio.Event(), b""

        async def send(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                await store.post(slot, Post(None, (), close=True))
                (running,) = app._running.values()
                topic = running.hub.topics[slot]
                async with asyncio.timeout(20):
                    while topic.version == 0:
                        await asyncio.sleep(0.005)
            body += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ended.set()

        try:
            reading = asyncio.create_task(app(_scope(f"/v1/stream/{slot}"), _silence, send))
            async with asyncio.timeout(10):
                await ended.wait()
            await reading
            assert b'"streamClosed":true' in body
        finally:
            await app.aclose()
            streams.close()


def _creation() -> Any:
    from celery_streams.protocol import Creation

    return Creation("application/json", [json.dumps(1).encode()])


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": [],
        "query_string": b"live=sse&offset=-1", "scheme": "http",
    }  # fmt: skip


async def _silence() -> Any:
    await asyncio.Event().wait()


async def _read_once(app: Any, path: str) -> None:
    """Follow, and leave as soon as there is something to read."""
    there = asyncio.Event()

    async def receive() -> Any:
        await there.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            there.set()

    await app(_scope(path), receive, send)
