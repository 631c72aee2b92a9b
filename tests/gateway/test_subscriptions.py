"""Subscriptions: their configuration, their links, and who holds a wake."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import pytest

from tests.gateway.hooks import CONTROL, SUBS, Node, eventually, nodes

PULL = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake/pool"}


@pytest.fixture(params=["valkey", "redis7", "cluster"])
def url(request) -> str:
    server = request.getfixturevalue(request.param)
    server.flush()
    return server.url


@pytest.fixture
def one(valkey) -> str:
    valkey.flush()
    return valkey.url


async def events(node, wake="wake/pool"):
    return [(each["subscription_id"], each["generation"]) for each in await node.read(wake)]


def test_create_confirm_conflict_delete(url):
    """201, 200 for the same, 409 for another configuration, 404 after deletion; on any process."""

    async def main():
        async with nodes(url, 2) as (a, b):
            created = await a.subscribe("s", **PULL, description="x")
            assert created["lease_ttl_ms"] == 1000
            assert created["status"] == "active"
            assert created["wake_stream"] == "wake/pool"
            assert created["webhook"] is None
            assert await b.subscribe("s", 200, **PULL, description="x") == created
            answer = await b.ask("PUT", f"{SUBS}/s", {**PULL, "lease_ttl_ms": 2000})
            assert answer.status == 409
            assert answer.document["error"]["code"] == "SUBSCRIPTION_ALREADY_EXISTS"
            assert (await b.ask("DELETE", f"{SUBS}/s")).status == 204
            assert (await b.ask("DELETE", f"{SUBS}/s")).status == 204
            for method in ("GET",):
                answer = await a.ask(method, f"{SUBS}/s")
                assert answer.status == 404
                assert answer.document["error"]["code"] == "SUBSCRIPTION_NOT_FOUND"
            await a.subscribe("s", **{**PULL, "lease_ttl_ms": 2000})

    asyncio.run(main())


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"type": "webhook"},
        {**PULL, "type": "carrier-pigeon"},
        {**PULL, "wake_stream": None},
        {**PULL, "wake_stream": "runs/x"},
        {**PULL, "pattern": None},
        {**PULL, "pattern": "a*"},
        {**PULL, "pattern": "a//b"},
        {**PULL, "pattern": None, "streams": ["__ds/subscriptions"]},
        {**PULL, "pattern": None, "streams": "a"},
        {**PULL, "lease_ttl_ms": 999},
        {**PULL, "lease_ttl_ms": 600_001},
        {**PULL, "lease_ttl_ms": True},
        {**PULL, "description": 1},
        {**PULL, "description": "\ud800"},
        {"type": "webhook", "pattern": "a/*", "webhook": "http://x"},
        {"type": "celery", "pattern": "a/*"},
    ],
)
def test_what_is_no_subscription(one, document):
    """A document that cannot be is refused with INVALID_REQUEST."""

    async def main():
        async with nodes(one) as (node,):
            answer = await node.ask("PUT", f"{SUBS}/s", document)
            assert answer.status == 400
            assert answer.document["error"]["code"] == "INVALID_REQUEST"

    asyncio.run(main())


def test_existing_streams_are_linked_at_their_tails(url):
    """History is not replayed; what comes later is pending, new streams from their beginning."""

    async def main():
        async with nodes(url, 2) as (a, b):
            await a.put("events/old", 1, 2, 3)
            await a.put("wake/pool")
            await a.subscribe("s", **PULL)
            assert await b.acked("s") == {"events/old": 3}
            await b.put("events/new", 1, 2)
            await b.post("events/old", 4)
            await eventually(lambda: events(a), "a wake")

            async def both():
                return len(await b.acked("s")) == 2

            await eventually(both, "the link to the new stream")
            claim = await b.act("s", "claim", worker="w")
            assert claim.status == 200
            streams = {each["path"]: each for each in claim.document["streams"]}
            assert int(streams["events/old"]["acked_offset"]) == 3
            assert int(streams["events/old"]["tail_offset"]) == 4
            assert int(streams["events/new"]["acked_offset"]) == 0
            assert all(each["has_pending"] for each in streams.values())
            assert all(each["link_type"] == "glob" for each in streams.values())

    asyncio.run(main())


def test_explicit_links(url):
    """They are added and removed without touching what the pattern links."""

    async def main():
        async with nodes(url, 2) as (a, b):
            await a.put("events/a", 1)
            await a.put("wake/pool")
            await a.subscribe("s", **PULL, streams=["events/a", "manual/x"])

            async def kinds(node):
                found = await node.describe("s")
                return {each["path"]: each["link_type"] for each in found["streams"]}

            assert await kinds(a) == {"events/a": "explicit", "manual/x": "explicit"}
            for node in (a, b):
                answer = await node.ask("POST", f"{SUBS}/s/streams", {"streams": ["manual/y"]})
                assert answer.status == 204
            for path in ("events%2Fa", "manual%2Fy", "manual/nothing"):
                answer = await b.ask("DELETE", f"{SUBS}/s/streams/{path}")
                assert answer.status == 204, answer
            # Asked without a server the path is not decoded: here it is by hand.
            for path in ("events/a", "manual/y"):
                await b.ask("DELETE", f"{SUBS}/s/streams/{path}")
            assert await kinds(a) == {"events/a": "glob", "manual/x": "explicit"}
            await b.put("manual/x", 1)
            await eventually(lambda: events(a), "a wake for an explicit stream")
            await b.put("manual/y", 1)
            claim = await a.act("s", "claim", worker="w")
            assert [each["path"] for each in claim.document["streams"]] == ["manual/x"]
            answer = await a.ask("POST", f"{SUBS}/nobody/streams", {"streams": ["a"]})
            assert answer.status == 404

    asyncio.run(main())


def test_claim_ack_release(url):
    """The whole life of a pull-wake lease, every refusal included, across two processes."""

    async def main():
        async with nodes(url, 2) as (a, b):
            await a.put("wake/pool")
            await a.subscribe("s", **{**PULL, "lease_ttl_ms": 5000})
            answer = await a.act("s", "claim", worker="w")
            assert answer.document["error"]["code"] == "NO_PENDING_WORK"
            await a.put("events/a", 1, 2, 3)
            claim = (await b.act("s", "claim", worker="w")).document
            assert 0 < claim["lease_ttl_ms"] <= 5000
            busy = await a.act("s", "claim", worker="v")
            assert busy.status == 409
            assert busy.document["error"]["current_holder"] == "w"
            assert busy.document["error"]["generation"] == claim["generation"]
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            token = claim["token"]

            def ack(offset, stream="events/a"):
                return [{"stream": stream, "offset": offset}]

            for bad, status, code in [
                ({**wake, "acks": ack("9" * 16)}, 400, "INVALID_OFFSET"),
                ({**wake, "acks": ack("now")}, 400, "INVALID_OFFSET"),
                ({**wake, "acks": ack("x")}, 400, "INVALID_OFFSET"),
                ({**wake, "acks": ack("1", "events/other")}, 400, "INVALID_REQUEST"),
                ({**wake, "done": "yes"}, 400, "INVALID_REQUEST"),
                ({**wake, "generation": wake["generation"] + 1}, 409, "FENCED"),
                ({**wake, "wake_id": "w_other"}, 409, "FENCED"),
                ({}, 400, "INVALID_REQUEST"),
            ]:
                answer = await b.act("s", "ack", token, **bad)
                assert (answer.status, answer.document["error"]["code"]) == (status, code), bad
            answer = await b.act("s", "ack", token, **wake, acks=ack("2".zfill(16)))
            assert answer.document == {"ok": True, "next_wake": False}
            assert await a.acked("s") == {"events/a": 2}
            answer = await a.act("s", "ack", token, **wake, acks=ack("1".zfill(16)))
            assert await a.acked("s") == {"events/a": 2}  # never back
            before = len(await events(a))
            assert (await a.act("s", "release", token, **wake)).status == 204
            await eventually(lambda: _more(a, before), "another wake event")
            assert (await a.act("s", "release", token, **wake)).status == 409
            claim = (await b.act("s", "claim", worker="w")).document
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            await a.post("events/a", 4)
            done = await b.act("s", "ack", claim["token"], **wake, acks=ack("3"), done=True)
            assert done.document == {"ok": True, "next_wake": True}
            claim = (await a.act("s", "claim", worker="w")).document
            assert claim["generation"] > wake["generation"]
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            done = await b.act("s", "ack", claim["token"], **wake, acks=ack("4"), done=True)
            assert done.document == {"ok": True, "next_wake": False}

    asyncio.run(main())


async def _more(node, before):
    return len(await events(node)) > before


def test_only_one_of_many_claims_wins(one):
    """Of 21 claims at once one wins; of 3 equal final acks one counts."""

    async def main():
        async with nodes(one, 3) as (a, b, c):
            await a.put("wake/pool")
            await a.subscribe("s", **{**PULL, "lease_ttl_ms": 30_000})
            for _ in range(20):
                await a.post("events/a", 1) if _ else await a.put("events/a", 1)
                claims = await asyncio.gather(
                    *(node.act("s", "claim", worker=f"w{n}") for n in range(7)
                      for node in (a, b, c))
                )  # fmt: skip
                (won,) = [each.document for each in claims if each.status == 200]
                lost = [each.document["error"] for each in claims if each.status != 200]
                assert {each["code"] for each in lost} == {"ALREADY_CLAIMED"}
                wake = {"wake_id": won["wake_id"], "generation": won["generation"]}
                tail = won["streams"][0]["tail_offset"]
                acks = [{"stream": "events/a", "offset": tail}]
                answers = await asyncio.gather(
                    *(node.act("s", "ack", won["token"], **wake, acks=acks, done=True)
                      for node in (a, b, c))
                )  # fmt: skip
                assert sorted(each.status for each in answers) == [200, 409, 409]

    asyncio.run(main())


def test_a_lease_that_runs_out(url):
    """Heartbeats keep a lease; without them it ends, and another generation begins."""

    async def main():
        async with nodes(url, 2) as (a, b):
            await a.put("wake/pool")
            await a.subscribe("s", **{**PULL, "lease_ttl_ms": 5000})
            await a.put("events/a", 1)
            claim = (await a.act("s", "claim", worker="w")).document
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            for _ in range(4):  # heartbeats keep it, beyond its time
                await asyncio.sleep(1.5)
                assert (await b.act("s", "ack", claim["token"], **wake)).status == 200
            before = len(await events(a))
            await eventually(lambda: _more(b, before), "a wake after the lease", timeout=20)
            assert (await a.act("s", "ack", claim["token"], **wake)).status == 409
            again = (await b.act("s", "claim", worker="v")).document
            assert again["generation"] > claim["generation"]
            assert again["wake_id"] != claim["wake_id"]

    asyncio.run(main())


def test_a_deleted_subscription_takes_no_acks_and_no_generation_comes_twice(one):
    """A tombstone keeps the generation."""

    async def main():
        async with nodes(one) as (node,):
            await node.put("wake/pool")
            await node.subscribe("s", **PULL)
            await node.put("events/a", 1)
            claim = (await node.act("s", "claim", worker="w")).document
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            await node.ask("DELETE", f"{SUBS}/s")
            answer = await node.act("s", "ack", claim["token"], **wake, done=True)
            assert answer.status == 404
            await node.subscribe("s", **PULL)
            assert (await node.act("s", "ack", claim["token"], **wake)).status == 409
            await node.post("events/a", 1)
            again = (await node.act("s", "claim", worker="w")).document
            assert again["generation"] > claim["generation"]

    asyncio.run(main())


def test_a_missing_wake_stream_is_waited_for(one):
    """The wake event is written once the wake stream exists."""

    async def main():
        async with nodes(one) as (node,):
            await node.subscribe("s", **PULL)
            await node.put("events/a", 1)

            async def failing():
                found = await node.describe("s")
                return found["status"] == "failed" and found["next_attempt_at"]

            await eventually(failing, "a failed delivery")
            await node.put("wake/pool")
            await eventually(lambda: events(node), "the wake event")
            assert (await node.describe("s"))["status"] == "active"

    asyncio.run(main())


def test_a_stream_of_the_same_name_starts_anew(one):
    """Positions in a deleted stream mean nothing in its successor."""

    async def main():
        async with nodes(one, 2) as (a, b):
            await a.put("wake/pool")
            await a.put("events/a", 1, 2, 3)
            await a.subscribe("s", **PULL)
            await a.ask("DELETE", "/v1/stream/events/a")
            await b.put("events/a", 1)
            claim = await eventually(lambda: _claimed(a), "a claim")
            (stream,) = claim["streams"]
            assert (int(stream["acked_offset"]), int(stream["tail_offset"])) == (0, 1)

    asyncio.run(main())


async def _claimed(node):
    answer = await node.act("s", "claim", worker="w")
    return answer.document if answer.status == 200 else None


def test_tokens(one):
    """A token is good for its wake and its use only, and only in the header."""

    async def main():
        async with nodes(one, 2) as (a, b):
            await a.put("wake/pool")
            await a.subscribe("s", **PULL)
            await a.subscribe("t", **{**PULL, "pattern": "other/*"})
            await a.put("events/a", 1)
            claim = (await a.act("s", "claim", worker="w")).document
            wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}
            token = claim["token"]
            header, claims, mac = token.split(".")
            for name, what, bad in [
                ("s", "ack", ""),
                ("s", "ack", "x"),
                ("s", "ack", token + "x"),
                ("s", "ack", f"{header}.{claims}."),
                ("s", "ack", f"{header}.{claims[:-2]}.{mac}"),
                ("t", "ack", token),
                ("s", "callback", token),  # another use
            ]:
                answer = await b.act(name, what, bad, **wake)
                assert (answer.status, answer.document["error"]["code"]) == (401, "TOKEN_INVALID")
            answer = await b.ask("POST", f"{SUBS}/s/ack?token={token}", wake)
            assert answer.status == 401  # only in the header
            assert (await b.act("s", "ack", token, **wake)).status == 200

    asyncio.run(main())


def test_rights(one):
    """Administration, patterns, wake streams, tasks and claims each need their scope."""

    async def main():
        async with nodes(one, insecure=False) as (node,):

            async def put(document, *scopes, name="s"):
                token = node.streams.token(scopes)
                headers = {"authorization": f"Bearer {token}"}
                answer = await node.ask("PUT", f"{SUBS}/{name}", document, **headers)
                admin = f"Bearer {node.streams.token(['admin:*'])}"
                await node.ask("DELETE", f"{SUBS}/{name}", authorization=admin)
                return answer.status

            def pull(pattern=None, *streams):
                return {**PULL, "pattern": pattern, "streams": list(streams)}

            assert (await node.ask("PUT", f"{SUBS}/s", PULL)).status == 401
            own, wake = "admin:subscriptions/s", "write:streams/wake/pool"
            assert await put(pull("events/*"), own, wake, "read:streams/events/*") == 201
            assert await put(pull("events/*"), "admin:*") == 201
            assert await put(pull("events/**"), own, wake, "read:streams/events/*") == 403
            assert await put(pull("events/*"), own, "read:streams/events/*") == 403
            assert await put(pull("events/*"), wake, "read:streams/events/*") == 403
            assert await put(pull("events/*"), own, wake, "read:streams/events") == 403
            assert await put(pull("*/a"), own, wake, "read:streams/*") == 403
            assert await put(pull("*/a"), own, wake, "read:*") == 201
            assert await put(pull("runs/r/*"), own, wake, "read:runs/r") == 201
            assert await put(pull("runs/*/default"), own, wake, "read:runs/r") == 403
            assert await put(pull("runs/*/default"), own, wake, "read:runs/*") == 201
            assert await put(pull("**"), own, wake, "read:runs/*", "read:streams/*") == 403
            assert await put(pull(None, "a/b"), own, wake, "read:streams/a/b") == 201
            assert await put(pull(None, "a/b"), own, wake, "read:streams/a/c") == 403
            assert await put(pull("events/*"), own, wake, "read:*", name="other") == 403
            task = {"type": "celery", "pattern": "events/*", "task": "proj.task"}
            assert await put(task, own, "read:*") == 403
            assert await put(task, "admin:*") == 201
            # Claims: a right of their own. Keys: everybody's.
            admin = f"Bearer {node.streams.token(['admin:*'])}"
            await node.ask("PUT", f"{SUBS}/s", PULL, authorization=admin)
            for scope, status in [
                ("write:subscriptions/s", 409),
                (own, 409),
                ("write:subscriptions/t", 403),
                ("read:*", 403),
            ]:
                token = f"Bearer {node.streams.token([scope])}"
                answer = await node.ask(
                    "POST", f"{SUBS}/s/claim", {"worker": "w"}, authorization=token
                )
                assert answer.status == status
            assert (await node.ask("GET", f"{CONTROL}/jwks.json")).status == 200
            assert (await node.ask("GET", f"{SUBS}/s")).status == 401

    asyncio.run(main())


def test_all_processes_publish_the_same_key_also_without_a_secret(one):
    """Keys follow from the secret, or are kept in Redis; former ones stay published."""

    async def main():
        async with (
            nodes(one, 2, secret=None) as found,
            nodes(one, 2, secret="another secret of more than 16 bytes") as others,
        ):
            sets = [
                (await node.ask("GET", f"{CONTROL}/jwks.json")).document
                for node in [*found, *others]
            ]
        assert sets[0] == sets[1] != sets[2] == sets[3]
        old = "another secret of more than 16 bytes"
        async with nodes(one, secret="the new secret of so many bytes", token_secrets=[old]) as (
            node,
        ):
            rotated = (await node.ask("GET", f"{CONTROL}/jwks.json")).document
            assert len(rotated["keys"]) == 2
            assert sets[2]["keys"][0] in rotated["keys"]

    asyncio.run(main())


def test_what_is_not_there(one):
    """Unknown control resources, methods, and paths with encoded slashes elsewhere."""

    async def main():
        async with nodes(one) as (node,):
            for method, path, status in [
                ("GET", f"{CONTROL}/", 404),
                ("GET", f"{CONTROL}/nothing", 404),
                ("PUT", f"{CONTROL}/streams/x", 404),
                ("POST", f"{CONTROL}/jwks.json", 405),
                ("POST", f"{SUBS}/s", 405),
                ("GET", f"{SUBS}/s/claim", 405),
                ("GET", f"{SUBS}/s", 404),
            ]:
                assert (await node.ask(method, path, {})).status == status, (method, path)
            for raw in (b"/v1/stream/a%2Fb", b"/v1/stream/__ds/subscriptions/a%2Fb",
                        b"/v1/stream/__ds/subscriptions/a/streams/x%2F..%2Fy",
                        b"/v1/stream/__ds/subscriptions/a/streams/x%5Cy"):  # fmt: skip
                answer = await ask_raw(node, raw)
                assert answer == 400, raw

    asyncio.run(main())


async def ask_raw(node: Node, raw: bytes) -> int:
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "DELETE", "path": unquote(raw.decode()), "raw_path": raw,
        "headers": [], "scheme": "http", "query_string": b"", "root_path": "",
    }  # fmt: skip
    await node.app(scope, receive, send)
    return sent[0]["status"]


def test_appends_cost_nothing_without_subscriptions(one):
    """No script beside the append itself."""

    async def main():
        async with nodes(one) as (node,):
            await node.put("events/a", 1)
            client = node.streams.runtime.link.client
            before = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            for _ in range(50):
                await node.post("events/a", 1)
            after = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            assert after - before < 50 + 5

    asyncio.run(main())
