"""Subscriptions whose subscriber is a Celery task, with real workers."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest
from celery import Celery

from celery_streams import Streams
from celery_streams.errors import StreamError
from celery_streams.subscriptions.config import InvalidSubscription
from celery_streams.subscriptions.store import SubscriptionConflict
from celery_streams.subscriptions.tasks import HEADER
from tests.gateway.hooks import CONTROL, eventually, nodes
from tests.gateway.subscribed import APP, noted, produce
from tests.servers import ValkeyProcess
from tests.workers import worker


@pytest.fixture(scope="module")
def broker():
    """A server of this module's own: what is left over by others stays away from its workers."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def working(broker):
    """One worker for most tests; each has other streams."""
    with worker(APP, broker, concurrency=2) as running:
        yield running


@pytest.fixture
def running(working, broker):
    """The worker, and a store without streams; its broker is another database."""
    broker.client().flushdb()
    return working


def drive(running, task, check, *, lease=1.0):
    """Subscribe ``task``, produce chunks, and ``check(running, node, name, client)``."""

    async def main():
        async with nodes(running.streams_url, 2, secret="test secret") as found:
            for node in found:
                node.streams._app = running.app
                await node.ask("GET", f"{CONTROL}/jwks.json")  # its loop has started
            name = await asyncio.to_thread(
                lambda: found[0].streams.subscribe("runs/*/default", f"{APP}.{task}", lease=lease)
            )
            await check(running, found[1], name, found[0].streams.runtime.link.client)

    asyncio.run(main())


async def every_chunk_once(running, node, name, client):
    """Produce, and see it processed and acknowledged."""
    expected: dict[str, int] = {}
    for count in (1, 5, 30):
        expected |= await asyncio.to_thread(produce, running, count)
    await eventually(lambda: noted(client) == expected, "every chunk once", timeout=20)

    async def settled():
        acked = await node.acked(name)
        return sum(acked.values()) == 36

    await eventually(settled, "the acks")
    assert (await node.describe(name))["status"] == "active"


def test_success_acknowledges(running):
    """Every chunk is processed once, and acknowledged."""
    drive(running, "note", every_chunk_once)


def test_tasks_on_a_cluster(broker, cluster):
    """The same where subscription, streams and index lie on different nodes."""
    cluster.flush()
    with worker(APP, broker, streams_url=cluster.url, queue="on-a-cluster") as running:
        drive(running, "note", every_chunk_once)


def test_failure_is_tried_again_with_pauses(running):
    """A failing task is sent again after 1 s, then 2 s."""

    async def check(running, node, name, client):
        expected = await asyncio.to_thread(produce, running, 3)
        await eventually(lambda: noted(client) == expected, "the third try", timeout=20)
        tries = [float(each) for each in client.lrange("tries", 0, -1)]
        assert len(tries) == 3
        assert tries[1] - tries[0] > 0.75
        assert tries[2] - tries[1] > 1.5

        async def settled():
            return (await node.describe(name))["status"] == "active"

        await eventually(settled, "the end of the failures")

    drive(running, "fail_first", check)


def test_a_retry_is_the_same_wake(running):
    """Its message has the header of the first one's: it takes the wake, and is not ignored."""

    async def check(running, node, name, client):
        expected = await asyncio.to_thread(produce, running, 3)
        await eventually(lambda: noted(client) == expected, "the chunks", timeout=20)
        ids = {each.decode() for each in client.lrange("ids", 0, -1)}
        assert (len(ids), client.llen("ids")) == (1, 3)
        result = running.app.AsyncResult(ids.pop())
        await eventually(lambda: result.state == "SUCCESS", "the success")

        async def settled():
            return sum((await node.acked(name)).values()) == 3

        await eventually(settled, "the acks")

    drive(running, "retry_twice", check)


def test_retries_that_run_out_are_a_failure(running):
    """The task is sent again, as another one."""

    async def check(running, node, name, client):
        expected = await asyncio.to_thread(produce, running, 1)
        await eventually(lambda: noted(client) == expected, "the chunks", timeout=20)
        first, again, other = client.lrange("ids", 0, -1)
        assert first == again != other
        assert running.app.AsyncResult(first.decode()).state == "FAILURE"

    drive(running, "retry_in_vain", check)


def test_a_lease_lasts_as_long_as_the_task(running):
    """A task longer than its lease is executed once."""

    async def check(running, node, name, client):
        expected = await asyncio.to_thread(produce, running, 2)
        await eventually(lambda: noted(client) == expected, "the chunks", timeout=20)
        await asyncio.sleep(2.5)
        assert noted(client) == expected
        assert client.get("slow") == b"1"

    drive(running, "slow", check)


def test_a_worker_that_dies_is_replaced(running):
    """The lease runs out and the task is sent again."""

    async def check(running, node, name, client):
        expected = await asyncio.to_thread(produce, running, 2)
        await eventually(lambda: noted(client) == expected, "the chunks", timeout=30)
        assert client.get("deaths") == b"2"

    drive(running, "die_first", check)


def test_a_message_that_comes_twice_is_executed_once(running, monkeypatch):
    """The copy finds the wake taken."""

    async def main():
        sent, before = [], len(running.log.text)
        async with nodes(running.streams_url, secret="test secret") as (node,):
            send = running.app.send_task

            def twice(task, args, headers, **options):
                sent.append(headers)
                return [send(task, args=args, headers=headers, **options) for _ in range(2)]

            node.streams._app = running.app
            await node.ask("GET", f"{CONTROL}/jwks.json")
            monkeypatch.setattr(running.app, "send_task", twice)
            await asyncio.to_thread(node.streams.subscribe, "runs/*/default", f"{APP}.note")
            result = send(f"{APP}.produce", (3,))
            await asyncio.to_thread(result.get, timeout=20)
            client = node.streams.runtime.link.client
            await eventually(lambda: len(noted(client)) == 3, "the chunks")
            await asyncio.to_thread(
                running.log.wait_for, "is not for this task any more", after=before
            )
            assert set(noted(client).values()) == {1}
            assert HEADER in sent[0]

    asyncio.run(main())


def test_what_was_written_while_no_gateway_ran(running):
    """The first gateway finds streams that are newer than the subscription."""
    url = running.streams_url
    streams = Streams(running.app, url=url, secret="test secret")
    before = produce(running, 2)
    name = streams.subscribe("runs/**", f"{APP}.note")
    after = produce(running, 3)
    streams.close()

    async def main():
        async with nodes(url, secret="test secret") as (node,):
            node.streams._app = running.app
            client = node.streams.runtime.link.client
            await node.acked(name)  # its loop has started
            await eventually(lambda: noted(client) == after, "the new run's chunks")
            assert not set(noted(client)) & set(before)

    asyncio.run(main())


def test_saying_the_same_again_changes_nothing(valkey):
    """subscribe() is idempotent, also within an event loop; another configuration is refused."""
    valkey.flush()
    streams = Streams(Celery("x", set_as_current=False), url=valkey.url, secret="test secret")
    name = streams.subscribe("a/*", "proj.task")
    assert streams.subscribe("a/*", "proj.task") == name
    assert streams.subscribe("b/*", "proj.task") != name
    with pytest.raises(SubscriptionConflict):
        streams.subscribe("a/*", "proj.task", queue="other")
    assert streams.subscribe("a/*", "proj.task", subscription_id="mine") == "mine"
    assert streams.unsubscribe("mine")
    assert not streams.unsubscribe("mine")
    for bad in ({"pattern": "a*"}, {"pattern": None}, {"lease": 0.1}, {"subscription_id": "a/b"}):
        with pytest.raises(InvalidSubscription):
            streams.subscribe(**{"pattern": "a/*", "task": "t", **cast("Any", bad)})
    assert issubclass(InvalidSubscription, StreamError)

    async def within_a_loop():
        began = time.monotonic()
        assert streams.subscribe("a/*", "proj.task") == name
        return time.monotonic() - began

    assert asyncio.run(within_a_loop()) < 5
    streams.close()
