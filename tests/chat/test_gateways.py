"""One session behind several gateways, and readers that come, go and fall behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import Iterator

import psutil
import pytest

from tests.chat.client import Gates, Page, message, serving_agents
from tests.gateway.serving import Gateway
from tests.servers.children import eventually
from tests.workers import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def other(agents: Worker) -> Iterator[Gateway]:
    """A gateway that looks at the log by itself so seldom that only messages can bring news."""
    with serving_agents(agents, CELERY_STREAMS_RECHECK_INTERVAL="60") as started:
        yield started


async def test_a_session_is_the_same_at_every_gateway(
    page: Page, other: Gateway, gates: Gates, gate: str
) -> None:
    """Sent at one; resumed, read by its address, and stopped at the other."""
    elsewhere = Page(other, chat=page.chat)
    address = await asyncio.to_thread(page.refer, f"one gate:{gate} until-stopped")
    await gates.reached(gate)
    async with (
        page.resuming() as first,
        elsewhere.resuming() as second,
        page.following(address) as third,
        elsewhere.following(address) as fourth,
    ):
        streams = (first, second, third, fourth)
        for each in streams:
            await each.until(lambda s: s.text)
        gates.open(gate)
        await gates.reached(page.chat)
        assert (await elsewhere.stop()).status == 202
        for each in streams:
            await each.until(lambda s: s.done)
            assert each.chunks == first.chunks
    assert first.types[-1] == "abort"
    assert await page.messages() == await elsewhere.messages()


async def test_a_gateway_that_is_killed_stops_nothing(
    page: Page, agents: Worker, gates: Gates, gate: str
) -> None:
    """Its readers lose their connections; the address it gave is good at any other."""
    with serving_agents(agents) as doomed:
        lost = Page(doomed, chat=page.chat)
        address = await asyncio.to_thread(lost.refer, f"one gate:{gate} two")
        async with lost.following(address) as durable, lost.resuming() as stream:
            await durable.until(lambda s: s.text)
            await stream.until(lambda s: s.text)
            for each in (*doomed.workers, psutil.Process(doomed.process.pid)):
                each.kill()
            await stream.until(lambda s: s.over)
            await durable.until(lambda s: s.over)
        assert not stream.clean
        assert not durable.clean
    async with page.following(address, durable.offset) as rest:
        gates.open(gate)
        await rest.until(lambda s: s.closed)
    assert (durable.text, rest.text) == ("one ", "two ")


async def test_a_message_that_a_running_turn_has_taken_leads_to_its_answer_also_afterwards(
    page: Page, gates: Gates, gate: str
) -> None:
    """Whoever reads the address of the second message after all is over gets the answer that
    took it, from its beginning, although that begins before the message came."""
    first = await asyncio.to_thread(page.refer, f"one gate:{gate} pending two")
    await gates.reached(gate)
    second = await asyncio.to_thread(page.refer, "wait!")
    gates.open(gate)
    async with page.following(first) as stream:
        await stream.until(lambda s: s.closed)
    assert stream.text == "one [wait!]two "
    await page.send("another turn")
    async with page.following(second) as late:
        await late.until(lambda s: s.closed)
    assert late.chunks == stream.chunks
    answer = await asyncio.to_thread(page.gateway.request, "GET", second)
    assert answer.document == stream.chunks


async def test_readers_that_come_and_go_take_nothing_from_one_who_stays(
    page: Page, other: Gateway, gates: Gates, gate: str
) -> None:
    """Subscribing and unsubscribing many times at once; the last reader hears at once."""
    elsewhere = Page(other, chat=page.chat)
    address = await asyncio.to_thread(page.refer, f"one gate:{gate} two")
    await gates.reached(gate)

    async def come_and_go(number: int) -> None:
        for turn in range(8):
            if (turn + number) % 2:
                async with elsewhere.following(address) as stream:
                    await stream.until(lambda s: s.text)
            else:
                async with elsewhere.resuming() as stream:
                    await stream.until(lambda s: s.text)

    async with asyncio.timeout(60):
        await asyncio.gather(*(come_and_go(number) for number in range(8)))
    async with elsewhere.resuming() as first, elsewhere.following(address) as second:
        await first.until(lambda s: s.text)
        await second.until(lambda s: s.text)
        gates.open(gate)
        async with asyncio.timeout(5):
            await first.until(lambda s: s.done)
            await second.until(lambda s: s.done)
    assert first.chunks == second.chunks


async def test_asking_for_the_active_answer_while_turns_end_is_answered_soundly(
    page: Page, other: Gateway
) -> None:
    """Readers who ask all the time, while turns begin and end: each gets nothing, or one whole
    answer from its beginning to its end."""
    elsewhere = Page(other, chat=page.chat)
    sending = True
    seen: list[str] = []

    async def ask() -> None:
        while sending:
            async with elsewhere.resuming() as stream:
                if stream.status == 204:
                    continue
                async with asyncio.timeout(10):
                    await stream.until(lambda s: s.over)
            assert stream.status == 200
            assert (stream.done, stream.clean) == (True, True)
            assert stream.types[0] == "start"
            assert stream.types[-1] == "finish"
            assert stream.types.count("start") == 1
            seen.append(stream.text)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for number in range(20):
        await page.send(f"turn-{number}")
    sending = False
    await asyncio.gather(*asking)
    assert len(seen) > 5
    assert {text.strip() for text in seen} <= {f"turn-{number}" for number in range(20)}


async def test_an_answer_that_was_trimmed_is_gone(page: Page) -> None:
    """Its address says so, however it is read; the last turns' are there."""
    addresses = [
        await asyncio.to_thread(page.refer, f"turn-{number}", messages=[message(f"turn-{number}")])
        for number in range(10)
    ]
    async with page.following(addresses[-1]) as stream:
        await stream.until(lambda s: s.closed)
    for live in ("", "&offset=-1&live=sse", "&offset=-1&live=long-poll"):
        answer = await asyncio.to_thread(page.gateway.request, "GET", addresses[0] + live)
        assert answer.status == 410
        assert answer.headers["content-type"] == "application/problem+json"
        kept = await asyncio.to_thread(page.gateway.request, "GET", addresses[5] + live)
        assert kept.status == 200
        assert b"turn-5" in kept.body


async def test_an_answer_that_waited_behind_a_large_one_is_read_at_once(
    page: Page, gates: Gates, gate: str
) -> None:
    """Its address leads past the other's chunks, more than one read brings; a large answer comes
    in several reads, each of which gets on."""
    page.agent = "scripted"
    part = uuid.uuid4().hex
    repeat = [{"type": "text-delta", "id": part, "delta": "x" * 65536}, 100]
    script = [{"gate": gate}, {"type": "text-start", "id": part}]
    large = await asyncio.to_thread(page.refer, "go", script=script, repeat=repeat)
    await gates.reached(gate)
    page.agent = "echo"
    small = await asyncio.to_thread(page.refer, "small")
    gates.open(gate)
    async with page.following(small) as stream:
        await stream.until(lambda s: s.closed)
    assert stream.text == "small "
    answer = await asyncio.to_thread(page.gateway.request, "GET", small)
    assert answer.document == stream.chunks
    for live in ("", "&live=long-poll"):
        await read_in_parts(page, f"{large}{live}")


async def read_in_parts(page: Page, address: str) -> None:
    offset, reads, chunks = "-1", 0, []
    while True:
        answer = await asyncio.to_thread(page.gateway.request, "GET", f"{address}&offset={offset}")
        chunks += answer.document
        reads += 1
        if "stream-up-to-date" in answer.headers:
            break
        assert answer.headers["stream-next-offset"] > offset
        offset = answer.headers["stream-next-offset"]
    assert answer.headers["stream-closed"] == "true"
    assert sum(len(chunk.get("delta", "")) for chunk in chunks) == 100 * 65536
    assert chunks[-1] == {"type": "finish"}
    assert reads > 1


async def test_a_reader_that_takes_nothing_costs_little_and_delays_nobody(
    page: Page, other: Gateway, gates: Gates, gate: str
) -> None:
    """Of 32 MiB that it does not take the gateway holds a few; another reader has it all."""
    page.gateway = other
    page.agent = "scripted"
    process = psutil.Process(other.process.pid)
    part, size = uuid.uuid4().hex, 64 * 1024
    delta = {"type": "text-delta", "id": part, "delta": "x" * size}
    small = [{"type": "text-start", "id": part}, {"gate": gate}]
    body = {"repeat": [delta, 512], "script": small}
    data = json.dumps({"id": page.chat, "messages": [message("go")], **body}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", other.port, limit=1024)
    head = f"POST {page.path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    await reader.readuntil(b"\r\n\r\n")
    await gates.reached(gate)
    before = process.memory_info().rss
    async with page.resuming() as stream:
        gates.open(gate)
        async with asyncio.timeout(60):
            await stream.until(lambda s: s.done)
    assert len(stream.text) == 512 * size
    grown = (process.memory_info().rss - before) / 2**20
    print(f"the gateway has grown by {grown:.1f} MiB")
    assert grown < 20
    writer.transport.abort()
    eventually(other.answers, "the gateway answers")


async def test_a_killed_process_s_answer_is_followed_by_its_address(
    page: Page, gates: Gates, gate: str
) -> None:
    """The dead attempt's chunks, reset-step and the next attempt's, in one stream that closes."""
    address = await asyncio.to_thread(page.refer, f"one gate:{gate} two")
    async with page.following(address) as stream:
        pid = await gates.reached(gate)
        await stream.until(lambda s: s.text)
        os.kill(pid, signal.SIGKILL)
        await gates.reached(gate)
        gates.open(gate)
        await stream.until(lambda s: s.closed)
    assert stream.types.count("start") == 2
    assert stream.types.count("reset-step") == 1
    assert stream.types[-1] == "finish"
