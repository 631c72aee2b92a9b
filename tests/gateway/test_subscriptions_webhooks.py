"""Webhooks: what is sent, signed and tried again, and by whom."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, cast

import pytest

from celery_streams import Streams
from celery_streams.slots import Slot
from tests.gateway.hooks import CONTROL, SUBS, Receiver, eventually, nodes, verified
from tests.gateway.serving import serving

HOOK = {"type": "webhook", "pattern": "events/*"}


@pytest.fixture(params=["valkey", "redis7", "cluster"])
def url(request) -> str:
    server = request.getfixturevalue(request.param)
    server.flush()
    return server.url


@pytest.fixture
def one(valkey) -> str:
    valkey.flush()
    return valkey.url


def test_a_signed_webhook_whose_answer_acknowledges(url):
    """The signature is good, the body as the protocol has it, `done` acknowledges."""

    async def main():
        async with Receiver().listening() as hook, nodes(url, 2) as (a, b):
            # A lease that a busy machine does not outlast.
            await a.subscribe("s", **HOOK, lease_ttl_ms=20_000, webhook={"url": hook.url})
            await b.put("events/a", 1, 2)
            await eventually(lambda: hook.requests, "a webhook")
            headers, body = hook.requests[0]
            jwks = (await b.ask("GET", f"{CONTROL}/jwks.json")).document
            assert verified(headers, body, jwks)
            document = json.loads(body)
            assert document["callback_url"] == f"http://gw.example{SUBS}/s/callback"
            assert document["streams"] == [
                {
                    "path": "events/a", "link_type": "glob", "acked_offset": "0" * 16,
                    "tail_offset": "2".zfill(16), "has_pending": True,
                }
            ]  # fmt: skip

            async def acked():
                return await a.acked("s") == {"events/a": 2}

            await eventually(acked, "the auto-ack")
            await asyncio.sleep(1.5)
            assert len(hook.requests) == 1

    asyncio.run(main())


def test_chunks_that_tasks_write_to_the_store(url):
    """No gateway has seen them: the leader's feed has."""

    async def main():
        async with Receiver().listening() as hook, nodes(url, 3) as (a, *_):
            await a.subscribe("s", type="webhook", pattern="**", webhook={"url": hook.url})
            outside = Streams(url=url, secret="test secret")

            def write(run, text):
                with outside.write_to(run, create=True) as writer:
                    writer.write(text)

            began = time.monotonic()
            await asyncio.to_thread(write, "r1", "one")
            await eventually(lambda: hook.requests, "a wake for a new stream", timeout=5)
            found = time.monotonic() - began
            assert hook.documents[0]["streams"][0]["path"] == "runs/r1/default"

            async def acked():
                return await a.acked("s") == {"runs/r1/default": 1}

            await eventually(acked, "the ack")
            began = time.monotonic()
            await asyncio.to_thread(write, "r1", "two")
            await eventually(lambda: len(hook.requests) > 1, "a wake for one followed", timeout=5)
            followed = time.monotonic() - began
            assert hook.documents[1]["streams"][0]["acked_offset"] == "1".zfill(16)
            print(f"new stream {found:.3f} s, followed stream {followed:.3f} s")
            assert found < 2
            assert followed < 1
            outside.close()

    asyncio.run(main())


def test_each_generation_is_delivered_once_however_many_processes(one):
    """Four processes append at once: no generation and no chunk is delivered twice."""

    async def main():
        async with Receiver().listening() as hook, nodes(one, 4) as found:
            await found[0].subscribe(
                "s", **{**HOOK, "lease_ttl_ms": 20_000}, webhook={"url": hook.url}
            )
            await found[0].put("events/0", 0)
            await asyncio.gather(
                *(node.put(f"events/{n}-{m}", 1) for n, node in enumerate(found) for m in range(10))
            )
            for n in range(10):
                await asyncio.gather(
                    *(node.post(f"events/{m}-{n}", 2) for m, node in enumerate(found))
                )

            async def done():
                acked = await found[1].acked("s")
                return len(acked) == 41 and sum(acked.values()) == 81

            await eventually(done, "everything acknowledged")
            generations = [each["generation"] for each in hook.documents]
            assert len(set(generations)) == len(generations)
            assert len({each["wake_id"] for each in hook.documents}) == len(generations)
            covered: dict[str, int] = {}
            for document in hook.documents:
                for each in document["streams"]:
                    start = covered.get(each["path"], 0)
                    assert int(each["acked_offset"]) == start  # no chunk twice, none left out
                    covered[each["path"]] = int(each["tail_offset"])

    asyncio.run(main())


def test_two_dispatchers_and_one_takes_over(one):
    """A leader that vanishes is replaced, and its streams are followed."""

    async def main():
        async with Receiver().listening() as hook, nodes(one, 3) as found:
            await found[0].subscribe("s", **HOOK, webhook={"url": hook.url})
            for each in found:
                await each.describe("s")  # their loops have started
            running = [next(iter(each.app._running.values())).subscriptions for each in found]

            def leaders():
                return [each for each in running if each.dispatcher._leading]

            (first,) = await eventually(leaders, "a leader")
            # It vanishes without a word.
            first.store.commands.resign = first.store.commands.ids
            first._running.cancel()
            others = [each for each in running if each is not first]
            await eventually(lambda: any(r.dispatcher._leading for r in others), "another leader")
            outside = Streams(url=one, secret="test secret")

            def write():
                with outside.open_writer(Slot.path("events/task")) as writer:
                    writer.write(1)

            await asyncio.to_thread(write)
            await eventually(lambda: hook.requests, "a wake by the new leader")
            outside.close()

    asyncio.run(main())


def test_callbacks_extend_the_lease_and_end_the_wake(one):
    """Without `done` a callback is a heartbeat; without callbacks the lease runs out."""

    async def main():
        hook = Receiver(answer=lambda _: (202, b""))
        async with hook.listening(), nodes(one, 2) as (a, b):
            await a.subscribe("s", **HOOK, lease_ttl_ms=2000, webhook={"url": hook.url})
            await a.put("events/a", 1, 2)
            await eventually(lambda: hook.requests, "a webhook")
            first = hook.documents[0]
            wake = {"wake_id": first["wake_id"], "generation": first["generation"]}
            token = first["callback_token"]
            for _ in range(12):  # longer than the lease, and each well inside it
                await asyncio.sleep(0.2)
                answer = await b.act("s", "callback", token, **wake)
                assert answer.document == {"ok": True, "next_wake": False}
            assert len(hook.requests) == 1
            acks = [{"stream": "events/a", "offset": "1".zfill(16)}]
            answer = await b.act("s", "callback", token, **wake, acks=acks, done=True)
            assert answer.document == {"ok": True, "next_wake": True}
            await eventually(lambda: len(hook.requests) == 2, "the next wake")
            assert hook.documents[1]["generation"] == first["generation"] + 1
            assert (await b.act("s", "callback", token, **wake)).status == 409
            # Nobody calls back: the lease runs out.
            await eventually(lambda: len(hook.requests) >= 3, "a wake after the lease", timeout=8)

    asyncio.run(main())


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_receiver_that_fails_is_tried_again_later(one, status):
    """Any answer but 2xx is a failure, redirects included."""

    async def main():
        hook = Receiver(answer=lambda _: (status, b'{"done": true}'))
        async with hook.listening(), nodes(one, 2) as (a, b):
            await a.subscribe("s", **HOOK, webhook={"url": hook.url})
            await a.put("events/a", 1)

            async def failed():
                found = await b.describe("s")
                return found if found["status"] == "failed" else None

            found = await eventually(failed, "a failure")
            assert found["next_attempt_at"]
            hook.answer = lambda _: (200, b'{"done": true}')

            async def acked():
                return await b.acked("s") == {"events/a": 1}

            await eventually(acked, "the ack after a retry")
            assert (await a.describe("s"))["status"] == "active"

    asyncio.run(main())


def test_the_schedule_survives_the_processes(one):
    """Pauses double, and another process keeps to the time that was set."""

    async def main():
        hook = Receiver()
        async with hook.listening():
            port = hook.port
        async with nodes(one) as (a,):
            await a.subscribe("s", **HOOK, webhook={"url": f"http://127.0.0.1:{port}/hook"})
            await a.put("events/a", 1)
            client = a.streams.runtime.link.client

            def kept(field):
                return int(cast("Any", client.hget("cs/{sub/s}/record", field)) or 0)

            pauses = []
            for number in range(1, 4):
                await eventually(lambda n=number: kept("attempts") == n, f"{number} attempts")
                due = kept("next") / 1000
                pauses.append(due - time.time())
            for pause, expected in zip(pauses, (1, 2, 4), strict=True):
                assert 0.75 * expected - 0.3 < pause < 1.2 * expected + 0.1
        async with nodes(one) as (b,):  # another process honours what is left of it
            await b.describe("s")
            async with Receiver(port=port).listening() as again:
                await eventually(lambda: again.requests, "a delivery", timeout=10)
                assert due - 0.2 < time.time() < due + 3

    asyncio.run(main())


def test_a_process_that_is_killed_while_it_delivers(valkey):
    """Another one delivers the next generation; the first is fenced."""
    valkey.flush()
    env = {
        "CELERY_STREAMS_GATEWAY_WEBHOOK_LOCALHOST": "1",
        "CELERY_STREAMS_SECRET": "test secret of 32 bytes .......",
    }

    async def main():
        hook = Receiver(delay=30)
        async with hook.listening():
            with serving(valkey.url, **env) as victim, serving(valkey.url, **env) as survivor:
                body = json.dumps({**HOOK, "lease_ttl_ms": 2000, "webhook": {"url": hook.url}})
                headers = {"content-type": "application/json"}
                answer = await asyncio.to_thread(
                    victim.request, "PUT", f"{SUBS}/s", body.encode(), headers
                )
                assert answer.status == 201
                await asyncio.to_thread(
                    victim.request, "PUT", "/v1/stream/events/a", b"[1]", headers
                )
                await eventually(lambda: hook.requests, "the first delivery")
                victim.process.kill()
                hook.delay = 0
                await eventually(lambda: len(hook.requests) > 1, "the second", timeout=10)
                first, second = hook.documents[:2]
                assert second["generation"] > first["generation"]
                assert second["streams"] == first["streams"]
                token = f"Bearer {first['callback_token']}"
                wake = {"wake_id": first["wake_id"], "generation": first["generation"]}
                answer = await asyncio.to_thread(
                    survivor.request, "POST", f"{SUBS}/s/callback", json.dumps(wake).encode(),
                    {**headers, "authorization": token},
                )  # fmt: skip
                assert answer.status == 409

    asyncio.run(main())


def test_an_answer_too_large_or_too_late(one):
    """Neither size nor time is for the receiver to choose."""

    async def main():
        hook = Receiver(answer=lambda _: (200, b'{"done": true, "x": "' + b"x" * 10**6 + b'"}'))
        async with hook.listening(), nodes(one, gateway_webhook_timeout=0.5) as (a,):
            await a.subscribe("s", **{**HOOK, "lease_ttl_ms": 5000}, webhook={"url": hook.url})
            await a.put("events/a", 1)
            await eventually(lambda: hook.requests, "a webhook")
            await asyncio.sleep(0.5)
            found = await a.describe("s")
            assert found["status"] == "active"  # it arrived, and said nothing
            assert await a.acked("s") == {"events/a": 0}
            await a.subscribe("t", **HOOK, webhook={"url": hook.url})
            hook.delay = 2
            await a.post("events/a", 1)

            async def failed():
                return (await a.describe("t"))["status"] == "failed"

            await eventually(failed, "a timeout")

    asyncio.run(main())
