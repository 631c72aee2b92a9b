"""Turns whose worker, gateway or server goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from celery_streams import ChatAgent, Streams
from celery_streams.chat.abandoned import end_for_worker
from celery_streams.chat.turns import TurnCommands
from celery_streams.slots import Slot
from tests.chat.client import Gates, Page, serving_agents
from tests.chat.conftest import APP, SETTINGS
from tests.gateway.serving import Gateway
from tests.servers import Proxy, ValkeyProcess
from tests.servers.children import end, eventually
from tests.workers import BROKER_DB, Worker, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def agents(store: ValkeyProcess) -> Iterator[Worker]:
    env = {**SETTINGS, "CELERY_STREAMS_ORPHAN_TIMEOUT": "1.5"}
    with worker(APP, store, concurrency=1, env=env) as started:
        yield started


@pytest.fixture(scope="module")
def other(agents: Worker) -> Iterator[Gateway]:
    with serving_agents(agents) as started:
        yield started


async def test_a_turn_whose_whole_worker_is_lost_is_taken_over(
    page: Page, other: Gateway, agents: Worker, gates: Gates, gate: str
) -> None:
    """After its lease it is sent again, once, because somebody follows it, here and at another
    gateway, also as a Durable Stream; one complete answer comes, the same to all of them."""
    elsewhere = Page(other, chat=page.chat)
    address = await asyncio.to_thread(page.refer, f"one gate:{gate} two")
    async with (
        page.resuming() as stream,
        elsewhere.resuming() as second,
        elsewhere.following(address) as durable,
        page.following(address) as broken,
    ):
        await gates.reached(gate)
        for each in (stream, second, durable, broken):
            await each.until(lambda s: s.text)
        before, offset = broken.chunks.copy(), broken.offset
        await asyncio.to_thread(agents.kill)
        await asyncio.to_thread(agents.start)
        await gates.reached(gate)
        async with page.following(address, offset) as resumed:
            gates.open(gate)
            for each in (stream, second, durable, resumed):
                await each.until(lambda s: s.done)
    assert stream.types.count("reset-step") == 1
    assert stream.chunks == second.chunks == durable.chunks
    assert durable.closed
    assert before + resumed.chunks == stream.chunks
    kept = (await page.messages())["messages"]
    assert [each["parts"][-1]["text"] for each in kept] == [f"one gate:{gate} two", "one two "]


async def test_a_broker_that_is_away_while_a_lost_turn_is_followed_delays_it(
    page: Page, agents: Worker, store: ValkeyProcess, gates: Gates, gate: str
) -> None:
    """The turn cannot be sent again yet; who follows it waits, and has one answer in the end."""
    async with page.sending(f"one gate:{gate} two"):  # another gateway's, which is gone then
        await gates.reached(gate)
    with Proxy(store.port) as broker:
        away = f"redis://127.0.0.1:{broker.port}/{BROKER_DB}"
        with serving_agents(agents, TEST_BROKER_URL=away) as gateway:
            broker.refuse()
            broker.cut()
            waiting = Page(gateway, chat=page.chat)
            address = await asyncio.to_thread(page.refer, "two")
            async with waiting.resuming() as stream, waiting.following(address) as second:
                await stream.until(lambda s: s.text)
                await asyncio.to_thread(agents.kill)
                await asyncio.to_thread(gateway.log.wait_for, "could not send the turn")
                await asyncio.to_thread(agents.start)
                broker.accept()
                await gates.reached(gate)
                gates.open(gate)
                await stream.until(lambda s: s.done)
                await second.until(lambda s: s.closed)
            assert "Traceback" not in gateway.log.text
    assert stream.types.count("reset-step") == 1
    assert second.text == "two "


async def test_messages_sent_while_no_worker_lives_are_answered_in_order(
    page: Page, agents: Worker
) -> None:
    """The broker and the inbox keep them; each gets its own answer."""
    await asyncio.to_thread(agents.stop)
    sending = [asyncio.create_task(page.send(f"{word} count")) for word in "ab"]
    await asyncio.sleep(0)
    await asyncio.to_thread(agents.start)
    first, second = sorted(await asyncio.gather(*sending), key=lambda s: s.text[-2])
    assert first.text.endswith("1 ")
    assert second.text.endswith("3 ")


async def test_a_turn_that_is_stopped_before_it_begins_does_nothing(
    page: Page, agents: Worker, gates: Gates
) -> None:
    """No worker lives yet; the task's body is not run, and what waits behind it is answered."""
    await asyncio.to_thread(agents.stop)
    async with page.sending("never") as stream, page.sending("count") as other:
        assert (await page.stop()).document == {"stopping": True}
        await asyncio.to_thread(agents.start)
        await stream.until(lambda s: s.done)
        await other.until(lambda s: s.done)
    assert stream.types[-1] == "abort"
    assert stream.text == ""
    assert other.text == "2 "
    assert gates.hooks(page.chat).count("turn-start") == 1


async def test_a_message_that_the_broker_loses_is_sent_again_and_answered_once(
    page: Page, agents: Worker
) -> None:
    """While somebody waits for the answer. One that was not lost after all changes nothing."""
    await asyncio.to_thread(agents.stop)
    broker: Any = redis.Redis.from_url(agents.broker_url)
    async with page.sending("count") as stream:
        await asyncio.to_thread(eventually, lambda: broker.delete("celery"), "the message")
        await asyncio.to_thread(eventually, lambda: broker.llen("celery"), "it is sent again")
        [again] = broker.lrange("celery", 0, -1)
        broker.rpush("celery", again)
        await asyncio.to_thread(agents.start)
        await stream.until(lambda s: s.done)
    assert stream.types.count("start") == 1
    assert stream.text == "1 "
    assert (await page.send("count")).text == "3 "
    await asyncio.to_thread(agents.log.wait_for, "nothing is left to do")
    broker.close()


async def test_a_gateway_that_shuts_down_breaks_off_streams(
    agents: Worker, gates: Gates, gate: str
) -> None:
    """useChat sees a lost connection then (it would take a clean end for the answer's); the next
    gateway resumes the whole answer."""
    with serving_agents(agents) as first:
        page = Page(first, chat=gate)
        async with page.sending(f"one gate:{gate} two") as stream:
            await gates.reached(gate)
            await stream.until(lambda s: s.text)
            await asyncio.to_thread(end, first.process)
            await stream.until(lambda s: s.over)
        assert not stream.done
        assert not stream.clean
        assert "Traceback" not in first.log.text
    with serving_agents(agents) as second:
        page = Page(second, chat=gate)
        async with page.resuming() as stream:
            gates.open(gate)
            await stream.until(lambda s: s.done)
    assert stream.text == "one two "


async def test_a_store_that_drops_every_connection_in_mid_answer_costs_nothing(
    page: Page, gateway: Gateway, store: ValkeyProcess, gates: Gates, gate: str
) -> None:
    """Whoever listens reads the log again; the worker sends again what it has no answer to."""
    async with page.sending(f"one gate:{gate} two") as stream:
        await gates.reached(gate)
        await stream.until(lambda s: s.text)
        store.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        store.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        gates.open(gate)
        await stream.until(lambda s: s.done)
    assert stream.text == "one two "


async def test_a_task_that_fails_before_it_is_called_does_not_end_its_turn(
    page: Page, agents: Worker
) -> None:
    """Celery does that when its result backend is away, and tells the worker's parent process: the
    turn waits to be sent again, five times, and ends with an error then."""
    await asyncio.to_thread(agents.stop)
    streams = Streams(url=agents.streams_url, secret="test secret")
    runtime, commands = streams.runtime, TurnCommands(streams.runtime.layout, streams.settings)
    async with page.sending("one") as stream:
        for resent in range(6):
            turn = runtime.link.call(commands.look(page.chat)).active
            assert turn is not None
            end_for_worker(ChatAgent(), page.chat, turn.task_id, runtime, None, stopped=False)
            key = runtime.layout.chat(Slot.session(page.chat), "turn")
            runtime.link.client.hset(key, mapping={"lease": 0, "state": "queued"})
            assert (runtime.link.call(commands.take_over(page.chat)) is None) == (resent == 5)
        await stream.until(lambda s: s.done)
    assert stream.types[-2:] == ["error", "finish"]
    streams.close()
    await asyncio.to_thread(agents.start)
    assert (await page.send("count")).text == "2 "
