"""Following streams live while connections, servers and clients fail."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.gateway.following import Follower, create, subscribed, through
from tests.gateway.serving import Gateway, serving
from tests.servers import Cluster, ValkeyProcess
from tests.servers.children import eventually

pytestmark = pytest.mark.anyio

Times = Callable[[int, int], int]
FAST = {"CELERY_STREAMS_RECHECK_INTERVAL": "1", "CELERY_STREAMS_SOCKET_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    with serving(valkey.url) as gateway:
        yield gateway


async def append(gateway: Gateway, path: str, *values: object) -> None:
    await asyncio.to_thread(gateway.append, path, *values)


async def enter(stack: AsyncExitStack, *followers: Follower) -> list[Follower]:
    for each in followers:
        await stack.enter_async_context(each)
    return [await each.ready() for each in followers]


async def everybody(followers: list[Follower], count: int, timeout: float = 60) -> None:
    """Each has exactly the numbers below ``count``, in order."""
    for each in followers:
        await each.until(lambda self: len(self.values) >= count, f"{count} values", timeout)
        assert each.values == list(range(count))


@pytest.mark.soak
async def test_chunks_written_while_somebody_subscribes_arrive(
    gateway: Gateway, times: Times
) -> None:
    """dify's race: the reader comes while the first chunks are written."""
    for number in range(times(30, 500)):
        path = f"/v1/stream/race/{number}-{time.time_ns()}"
        await asyncio.to_thread(create, gateway, path)
        writing = asyncio.gather(*(append(gateway, path, each) for each in range(8)))
        async with Follower(gateway.port, path) as one, Follower(gateway.port, path) as two:
            await writing
            for each in (one, two):
                await each.until(lambda self: len(self.values) >= 8, "all values")
            assert one.values == two.values
            assert sorted(one.values) == list(range(8))


@pytest.mark.soak
async def test_a_cut_feed_connection_loses_nothing(valkey: ValkeyProcess, times: Times) -> None:
    """A cut feed connection loses nothing."""
    path, total, at = f"/v1/stream/cut/{time.time_ns()}", 0, random.Random(4711)
    with serving(valkey.url) as writer, through(valkey.port, **FAST) as (proxy, gateway):
        create(writer, path)
        async with AsyncExitStack() as stack:
            followers = [Follower(gateway.port, path) for _ in range(20)]
            await enter(stack, *followers)
            for _ in range(times(6, 60)):
                cut = proxy.cut_after(at.randrange(1, 3000), "down")
                deadline = time.monotonic() + 30
                while not cut.is_set() and time.monotonic() < deadline:
                    await append(writer, path, *range(total, total + 10))
                    total += 10
                assert cut.is_set()
            await everybody(followers, total)
            await asyncio.to_thread(writer.request, "POST", path, None, {"stream-closed": "true"})
            for each in followers:
                assert (await each.ended()).closed
                assert each.clean


@pytest.mark.soak
async def test_a_killed_subscription_connection_is_replaced(
    valkey: ValkeyProcess, gateway: Gateway, times: Times
) -> None:
    """A killed subscription connection is replaced."""
    path, total, client = f"/v1/stream/killed/{time.time_ns()}", 0, valkey.client()
    create(gateway, path)
    async with AsyncExitStack() as stack:
        followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(5)))
        for _ in range(times(5, 100)):
            client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            await append(gateway, path, *range(total, total + 3))
            total += 3
            await everybody(followers, total)


async def test_a_restarted_server_is_followed_on() -> None:
    """A restarted server is followed on."""
    with ValkeyProcess(aof=True) as server, serving(server.url, **FAST) as gateway:
        path = "/v1/stream/restarted"
        create(gateway, path, 0, 1)
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(3)))
            server.kill()
            answer = await asyncio.to_thread(gateway.request, "GET", path)
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.document["code"] == "store-unavailable"
            server.start()
            await append(gateway, path, 2)
            await everybody(followers, 3)


async def test_whoever_is_connected_outlasts_a_silent_server(valkey: ValkeyProcess) -> None:
    """Whoever is connected outlasts a silent server."""
    path, run = f"/v1/stream/stalled/{time.time_ns()}", f"/v1/stream/runs/r{time.time_ns()}"
    with serving(valkey.url) as writer, through(valkey.port, **FAST) as (proxy, gateway):
        create(writer, path, 0)
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(10)))
            (pending,) = await enter(stack, Follower(gateway.port, run))
            proxy.stall()
            await append(writer, path, 1)
            for query in ("", "?live=sse&offset=-1", "?live=long-poll&offset=-1"):
                for stream in (path, "/v1/stream/runs/another"):
                    answer = await asyncio.to_thread(gateway.request, "GET", stream + query)
                    assert (answer.status, answer.document["status"]) == (503, 503)
                    assert answer.headers["retry-after"]
            proxy.resume()
            await everybody(followers, 2)
            assert not pending.over
            await append(writer, path, 2)
            await everybody(followers, 3)


@pytest.mark.parametrize("how", ["failover", "kill"])
async def test_a_clusters_failover_is_followed(how: str) -> None:
    """Also by readers that come afterwards, to a gateway that nobody asks anything else."""
    with (
        Cluster(primaries=3, replicas=1, aof=True) as cluster,
        serving(cluster.url, **FAST) as gateway,
        serving(cluster.url, **FAST) as other,
    ):
        path = "/v1/stream/moved"
        key = "cs/{path/moved}/meta/default"
        create(gateway, path, 0)
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(3)))
            # The other gateway knows the nodes of before.
            await enter(stack, Follower(other.port, "/v1/stream/sessions/known"))
            primary = cluster.primary_of(key)
            primary.client().execute_command("WAIT", 1, 5000)
            if how == "kill":
                cluster.kill_primary_of(key)
                await asyncio.to_thread(cluster.wait_taken_over, key, primary)
            else:
                await asyncio.to_thread(cluster.failover, key)
            deadline = time.monotonic() + 30
            while True:
                async with Follower(other.port, path) as late:
                    await late.ready()
                if late.status == 200 or time.monotonic() > deadline:
                    break
            assert late.status == 200
            assert late.values == [0]
            await append(other, path, 1)
            await everybody(followers, 2)


async def test_a_moved_slot_is_followed() -> None:
    """A moved slot is followed."""
    with Cluster() as cluster, serving(cluster.url, **FAST) as gateway:
        path, key = "/v1/stream/slot", "cs/{path/slot}/meta/default"
        create(gateway, path)
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(3)))
            for total in (1, 2, 3):
                await asyncio.to_thread(move, cluster, key)
                (late,) = await enter(stack, Follower(gateway.port, path))
                assert late.status == 200
                followers.append(late)
                await append(gateway, path, total - 1)
                await everybody(followers, total)


def move(cluster: Cluster, key: str) -> None:
    """Give the slot of ``key`` and its keys to another node."""
    source = cluster.primary_of(key)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.client().execute_command("CLUSTER KEYSLOT", key)
    ids = {node.port: node.client().execute_command("CLUSTER MYID") for node in cluster.nodes}
    target.client().execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source.port])
    source.client().execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target.port])
    while names := source.client().execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        source.client().execute_command(
            "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names
        )
    for node in (target, source, *cluster.nodes):
        node.client().execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target.port])


async def test_one_that_does_not_read_is_cut_off_alone(valkey: ValkeyProcess) -> None:
    """One that does not read is cut off alone."""
    with serving(valkey.url, CELERY_STREAMS_GATEWAY_SUBSCRIBER_BUFFER="200000") as gateway:
        path = f"/v1/stream/slow/{time.time_ns()}"
        create(gateway, path)
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", gateway.port))
        slow.sendall(f"GET {path}?live=sse&offset=-1 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(5)))
            values = [[number, "x" * 50_000] for number in range(200)]
            for value in values:
                await append(gateway, path, value)
            for each in followers:
                await each.until(lambda self: len(self.values) == 200, "200 large values")
                assert each.values == values
            received = await asyncio.to_thread(drained, slow)
            assert not received.endswith(b"0\r\n\r\n")
            assert len(received) < 200 * 50_000
            metrics = await asyncio.to_thread(gateway.request, "GET", "/metrics")
            assert b"cut_off_total 1.0" in metrics.body
        assert "Traceback" not in gateway.log.text


def drained(connection: socket.socket) -> bytes:
    """Everything up to the end of a connection, however that ends."""
    received = b""
    connection.settimeout(30)
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    finally:
        connection.close()
    return received


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_whoever_vanishes_is_forgotten(
    valkey: ValkeyProcess, gateway: Gateway, reset: bool
) -> None:
    """Whoever vanishes is forgotten."""
    name = f"gone/{time.time_ns()}"
    create(gateway, f"/v1/stream/{name}")
    channel = f"cs/{{path/{name.replace('/', '%2F')}}}/live/default"
    followers = [Follower(gateway.port, f"/v1/stream/{name}") for _ in range(10)]
    async with AsyncExitStack() as stack:
        await enter(stack, *followers)
        assert channel in subscribed(valkey.client())
        for each in followers:
            await each.leave(reset=reset)
        await asyncio.to_thread(
            eventually, lambda: channel not in subscribed(valkey.client()), "unsubscribed"
        )


async def test_connections_to_redis_do_not_grow_with_readers(valkey: ValkeyProcess) -> None:
    """Connections to redis do not grow with readers."""
    with through(valkey.port) as (proxy, gateway):
        names = [f"/v1/stream/sessions/many-{time.time_ns()}-{each}" for each in range(50)]
        async with AsyncExitStack() as stack:
            followers = [Follower(gateway.port, names[each % 50]) for each in range(300)]
            await asyncio.gather(*(stack.enter_async_context(each) for each in followers))
            await asyncio.gather(*(each.ready() for each in followers))
            for name in names:
                await asyncio.to_thread(create, gateway, name, 1)
            for each in followers:
                await each.until(lambda self: self.values == [1], "the value")
            assert proxy.open_connections <= 14  # 8 for requests, 1 for events, others' own


async def test_a_stopping_gateway_ends_live_reads(valkey: ValkeyProcess) -> None:
    """A stopping gateway ends live reads."""
    with serving(valkey.url) as gateway:
        path = f"/v1/stream/drained/{time.time_ns()}"
        create(gateway, path, 1)
        async with AsyncExitStack() as stack:
            followers = await enter(stack, *(Follower(gateway.port, path) for _ in range(20)))
            poll = asyncio.create_task(
                asyncio.to_thread(
                    gateway.request, "GET", f"{path}?live=long-poll&offset={followers[0].offset}"
                )
            )
            await asyncio.to_thread(
                eventually,
                lambda: b"subscribers 21.0" in gateway.request("GET", "/metrics").body,
                "the long poll waits",
            )
            gateway.process.terminate()
            for each in followers:
                assert (await each.ended()).clean
                assert not each.closed
            answer = await poll
            assert answer.status == 204
            assert answer.headers["stream-next-offset"] == followers[0].offset
            assert await asyncio.to_thread(gateway.process.wait, 20) == 0


async def test_the_answer_ends_with_the_stream(gateway: Gateway) -> None:
    """At once, not when somebody next looks."""
    path = f"/v1/stream/end/{time.time_ns()}"
    create(gateway, path, 1)
    async with Follower(gateway.port, path) as follower:
        await follower.ready()
        await append(gateway, path, 2)
        await follower.until(lambda self: self.values == [1, 2], "both values")
        await asyncio.to_thread(gateway.request, "POST", path, None, {"stream-closed": "true"})
        await follower.until(lambda self: self.closed, "streamClosed")
        await follower.ended(timeout=3)
        assert follower.clean


async def test_an_empty_stream_that_expires_ends_its_readers(gateway: Gateway) -> None:
    """An empty stream that expires ends its readers."""
    path = f"/v1/stream/expires/{time.time_ns()}"
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    create(gateway, path, stream_expires_at=moment)
    async with Follower(gateway.port, path) as follower:
        await follower.ready()
        await follower.ended()
        assert follower.clean
        assert follower.status == 200
    assert "Traceback" not in gateway.log.text


@pytest.mark.soak
async def test_a_slow_feed_confuses_no_one(valkey: ValkeyProcess, times: Times) -> None:
    """Readers that come and go while each message takes its time to Redis and back."""
    path, total = f"/v1/stream/sessions/slow-{time.time_ns()}", 0
    with serving(valkey.url) as writer, through(valkey.port) as (proxy, gateway):
        create(writer, path)
        proxy.delay(0.02)
        for _ in range(times(10, 200)):
            async with Follower(gateway.port, path) as leaving:
                await leaving.ready()
                await leaving.leave()
            async with Follower(gateway.port, path) as staying:
                await append(writer, path, total)
                total += 1
                await everybody([staying], total)


async def test_the_cursor_only_grows(gateway: Gateway) -> None:
    """The cursor only grows."""
    path = f"/v1/stream/cursor/{time.time_ns()}"
    create(gateway, path)
    cursors, theirs = [], ""
    for number in range(5):
        async with Follower(gateway.port, f"{path}?cursor={theirs}") as follower:
            await follower.ready()
            await append(gateway, path, number)
            await everybody([follower], number + 1)
            cursors += [int(each["streamCursor"]) for each in follower.controls]
            theirs = str(cursors[-1])
    assert cursors == sorted(cursors)
    assert json.loads(theirs) > cursors[0]
