"""Replies that never come, hooks that raise, and a store that is away: turns end all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from celery_streams.chat.message import ResponseMessage
from tests.chat.client import Gates, Page, message, serving_agents, texts
from tests.chat.conftest import APP, SETTINGS
from tests.gateway.serving import Gateway
from tests.servers import Proxy, ValkeyProcess
from tests.workers import Worker, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def durable() -> Iterator[ValkeyProcess]:
    """A store that keeps its data when it is killed; the broker is another server."""
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        yield server


@pytest.fixture(scope="module")
def network(durable: ValkeyProcess) -> Iterator[Proxy]:
    with Proxy(durable.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def agents(store: ValkeyProcess, durable: ValkeyProcess, network: Proxy) -> Iterator[Worker]:
    """A worker that reaches its store through the network. A lost turn is not taken over here."""
    env = {**SETTINGS, "CELERY_STREAMS_ORPHAN_TIMEOUT": "60"}
    url = durable.url_for(port=network.port)
    with worker(APP, store, concurrency=2, env=env, streams_url=url) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(agents: Worker, durable: ValkeyProcess) -> Iterator[Gateway]:
    with serving_agents(agents, CELERY_STREAMS_URL=durable.url) as started:
        yield started


#: A part of the call that no other call has, in its first 4096 bytes.
BEGIN, FINISH = b"/fence/out/chat", b'{"type":"finish"}'


async def test_a_turn_that_does_not_hear_that_it_has_begun_asks_again(
    page: Page, network: Proxy
) -> None:
    """It is the same attempt: nothing of it comes twice, and it is not taken for its successor."""
    for _ in range(3):
        lost = network.cut_reply_to(BEGIN)
        stream = await page.send("one")
        assert await asyncio.to_thread(lost.wait, 5)
        assert stream.types.count("start") == 1
        assert stream.types[-1] == "finish"


async def test_a_turn_that_does_not_hear_that_it_has_ended_asks_again(
    page: Page, network: Proxy, gates: Gates
) -> None:
    """Its end is there once, its branch is left once, and its hook is called."""
    await page.send("one")
    for number in range(3):
        lost = network.cut_reply_to(FINISH)
        stream = await page.send(None, trigger="regenerate-message")
        assert await asyncio.to_thread(lost.wait, 5)
        assert stream.types.count("finish") == 1
        assert len(await page.branches()) == number + 1
    await page.send("two")
    assert gates.hooks(page.chat).count("turn-complete") >= 4


async def test_the_next_turn_is_sent_although_the_end_of_the_first_was_not_heard(
    page: Page, network: Proxy, gates: Gates, gate: str
) -> None:
    """The same answer comes again: which message is due. Nobody waits for a lease to run out."""
    async with page.sending(f"gate:{gate} one") as first:
        await gates.reached(gate)
        async with page.sending("two") as second:
            lost = network.cut_reply_to(FINISH)
            gates.open(gate)
            await first.until(lambda s: s.done)
            async with asyncio.timeout(5):
                await second.until(lambda s: s.done)
    assert await asyncio.to_thread(lost.wait, 5)
    assert second.text == "two "


async def test_messages_that_were_taken_and_not_heard_of_are_taken_again(
    page: Page, network: Proxy, gates: Gates, gate: str
) -> None:
    """inbox.pending() has them, once."""
    async with page.sending(f"one gate:{gate} pending pending") as first:
        await gates.reached(gate)
        async with page.sending("wait!") as second:
            lost = network.cut_reply_to(b"/chat/taken\r\n")
            gates.open(gate)
            await second.until(lambda s: s.done)
        await first.until(lambda s: s.done)
    assert await asyncio.to_thread(lost.wait, 5)
    assert first.text == "one [wait!]"
    assert texts((await page.messages())["messages"])[1] == "wait!"


async def test_a_store_that_restarts_while_a_turn_ends_delays_it(
    page: Page, durable: ValkeyProcess, gates: Gates, gate: str
) -> None:
    """The worker has no store for the answer's end: it waits."""
    async with page.sending(f"one gate:{gate} two") as stream:
        await gates.reached(gate)
        await stream.until(lambda s: s.text)
        durable.kill()
        gates.open(gate)
        await asyncio.sleep(0.5)  # the answer's last chunks, and its end, wait in the worker
        await asyncio.to_thread(durable.start)
        await stream.until(lambda s: s.done)
    assert stream.text == "one two ", stream.chunks
    assert texts((await page.messages())["messages"])[-1] == "one two"


@pytest.mark.parametrize("hook", ["messages", "save"])
async def test_a_hook_of_the_history_that_raises_ends_the_turn_with_an_error(
    page: Page, hook: str
) -> None:
    """At once, not when a lease has run out; nothing of the exception is told, and the next
    message is answered."""
    page.agent = "keeper"
    await page.send("zero")
    async with asyncio.timeout(10):
        stream = await page.send("one", fails=hook)
    assert stream.types[-2:] == ["error", "finish"]
    assert "secret" not in str(stream.chunks)
    assert texts((await page.messages())["messages"])[2] == "one"
    after = await page.send("count")
    assert after.text == "3 ", "the user's database has what was saved"


async def test_an_edit_whose_saving_fails_leaves_its_branch(page: Page) -> None:
    """The snapshot and the branch are the store's, and stored."""
    page.agent = "keeper"
    question = message("one")
    await page.send(None, messages=[question])
    edited = {**question, "parts": [{"type": "text", "text": "uno"}]}
    sent = {"messages": [edited], "messageId": question["id"], "fails": "save"}
    assert (await page.send(None, **sent)).types[-1] == "finish"
    [branch] = await page.branches()
    assert texts(await page.branch(branch["id"])) == ["one", "one"]


async def test_a_page_shows_an_answer_once_whose_worker_died_after_its_last_chunk(
    page: Page, gates: Gates, gate: str
) -> None:
    """In save_messages, say: what the AI SDK makes of the stream is what the history has."""
    page.agent = "keeper"
    async with page.sending("a step tool step b", saved=gate) as stream:
        os.kill(await gates.reached(gate), signal.SIGKILL)
        await gates.reached(gate)
        gates.open(gate)
        await stream.until(lambda s: s.done)
    shown = ResponseMessage(stream.chunks[0]["messageId"])
    for chunk in stream.chunks:
        shown.add(chunk)
    parts = [part["type"] for part in shown.message()["parts"] if part["type"] != "step-start"]
    assert parts == ["text", "tool-clock", "text"]
