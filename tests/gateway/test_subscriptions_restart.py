"""Each kind of subscriber outlives a restart of the server that holds the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.hooks import CONTROL, SUBS, Node, Receiver, eventually, nodes
from tests.gateway.subscribed import APP, noted, produce
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker


@pytest.fixture(scope="module")
def durable() -> Iterator[ValkeyProcess]:
    """A server that keeps its data when it is killed."""
    with ValkeyProcess(aof=True) as server:
        yield server


@pytest.fixture
def store(durable: ValkeyProcess) -> ValkeyProcess:
    durable.flush()
    return durable


def restart(store: ValkeyProcess) -> None:
    store.kill()
    store.start()


async def insist(node: Node, method: str, path: str, document: Any = None, **headers: str) -> Any:
    """Ask until the gateway has found its server again."""

    async def answered() -> Any:
        answer = await node.ask(method, path, document, **headers)
        return None if answer.status == 503 else answer

    answer = await eventually(answered, f"{method} {path}")
    assert answer.status < 300, answer
    return answer


def acknowledged(node: Node, name: str, expected: dict[str, int]) -> Any:
    """Whether the subscription has got so far."""

    async def reached() -> bool:
        answer = await node.ask("GET", f"{SUBS}/{name}")
        if answer.status != 200:
            return False
        found = {each["path"]: int(each["acked_offset"]) for each in answer.document["streams"]}
        return found == expected

    return eventually(reached, "the acks", timeout=20)


def test_a_webhook(store: ValkeyProcess) -> None:
    """The server restarts while the receiver has the wake, and again while nobody has."""

    async def main() -> None:
        def answer(document: Any) -> tuple[int, bytes]:
            if document["generation"] == 1:
                restart(store)
            return 200, b'{"done": true}'

        hook = Receiver(answer=answer)
        async with hook.listening(), nodes(store.url, 2) as (a, b):
            await a.subscribe("s", type="webhook", pattern="events/*", webhook={"url": hook.url})
            await b.put("events/a", 1, 2)
            await acknowledged(a, "s", {"events/a": 2})
            await asyncio.to_thread(restart, store)
            await insist(b, "PUT", "/v1/stream/events/b", [3])
            await acknowledged(a, "s", {"events/a": 2, "events/b": 1})
            told = {(each["path"], each["tail_offset"][-1])
                    for document in hook.documents for each in document["streams"]}  # fmt: skip
            assert told == {("events/a", "2"), ("events/b", "1")}

    asyncio.run(main())


def test_a_worker_that_pulls(store: ValkeyProcess) -> None:
    """Its lease and its token are good afterwards, and the next wake comes."""

    async def main() -> None:
        async with nodes(store.url, 2) as (a, b):
            await a.put("wake/pool")
            await a.subscribe(
                "s", type="pull-wake", pattern="events/*", wake_stream="wake/pool",
                lease_ttl_ms=30_000,
            )  # fmt: skip
            await a.put("events/a", 1)
            claim = (await b.act("s", "claim", worker="w")).document
            await asyncio.to_thread(restart, store)
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            acks = [{"stream": "events/a", "offset": "1"}]
            bearer = {"authorization": f"Bearer {claim['token']}"}
            await insist(a, "POST", f"{SUBS}/s/ack", {**wake, "acks": acks, "done": True}, **bearer)
            await insist(b, "PUT", "/v1/stream/events/b", [2])

            async def woken() -> bool:
                answer = await a.ask("GET", "/v1/stream/wake/pool")
                return answer.status == 200 and any(
                    event["generation"] > claim["generation"] for event in answer.document
                )

            await eventually(woken, "the next wake")
            again = (await a.act("s", "claim", worker="w")).document
            assert [each["path"] for each in again["streams"]] == ["events/b"]

    asyncio.run(main())


def test_a_celery_task(store: ValkeyProcess, valkey: ValkeyProcess) -> None:
    """The server restarts while a task holds the wake, which it renews and ends all the same."""
    valkey.flush()  # the broker; it stays

    async def main(running: Worker) -> None:
        async with nodes(store.url, 2, secret="test secret") as found:
            for node in found:
                node.streams._app = running.app
                await node.ask("GET", f"{CONTROL}/jwks.json")  # its loop has started
            name = await asyncio.to_thread(
                found[0].streams.subscribe, "runs/*/default", f"{APP}.slow", lease=3.0
            )
            client = store.client()
            expected = await asyncio.to_thread(produce, running, 2)
            await eventually(lambda: client.get("slow"), "the task has begun")
            await asyncio.to_thread(restart, store)
            await eventually(lambda: noted(client).keys() == expected.keys(), "the chunks")
            path, count = next(iter(expected)).partition("#")[0], len(expected)
            await acknowledged(found[1], name, {path: count})

    with worker(APP, valkey, streams_url=store.url, concurrency=2) as running:
        asyncio.run(main(running))
