"""The assembled gateway with a secret: who may do what, and what it says to those who may not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from celery_streams import Streams
from tests.gateway.following import TOKEN_SECRET, Follower
from tests.gateway.serving import Answer, Gateway, serving
from tests.servers import ValkeyProcess

pytestmark = pytest.mark.anyio
PREFIX = "/v1/stream"


@pytest.fixture(scope="module")
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    streams = Streams(url=valkey.url, secret=TOKEN_SECRET)
    yield streams
    streams.close()


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    env = {
        "CELERY_STREAMS_SECRET": TOKEN_SECRET,
        "CELERY_STREAMS_GATEWAY_CONNECTIONS_PER_TOKEN": "3",
    }
    with serving(valkey.url, "--host", "127.0.0.1", **env) as gateway:
        yield gateway


@pytest.fixture
def run_id(streams: Streams) -> str:
    run_id = f"run-{time.time_ns()}"
    with streams.write_to(run_id, create=True) as writer:
        writer.write("secret")
    return run_id


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", "content-type": "application/json"}


def refused(answer: Answer, status: int, code: str | None = None) -> None:
    """It is a problem document that says no more than it should."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.document["status"] == status
    if code is not None:
        assert answer.document["code"] == code
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_runs_reader_reads_that_run(gateway: Gateway, streams: Streams, run_id: str) -> None:
    """A run's reader reads that run."""
    token = streams.token([f"read:runs/{run_id}"], ttl=60)
    path = f"{PREFIX}/runs/{run_id}"
    assert gateway.request("GET", path, None, bearer(token)).document == ["secret"]
    assert gateway.request("HEAD", path, None, bearer(token)).status == 200
    for other in (f"{PREFIX}/runs/{run_id}0", f"{PREFIX}/runs/{run_id[:-1]}", f"{PREFIX}/runs/x"):
        refused(gateway.request("GET", other, None, bearer(token)), 403, "forbidden")
        live = gateway.request("GET", f"{other}?live=sse&offset=-1", None, bearer(token))
        refused(live, 403, "forbidden")
    for method, body in (("POST", b"[1]"), ("PUT", None), ("DELETE", None)):
        refused(gateway.request(method, path, body, bearer(token)), 403, "forbidden")
    stolen = {**bearer(streams.token(["write:streams/*"])), "stream-forked-from": path}
    refused(gateway.request("PUT", f"{PREFIX}/fork", None, stolen), 403, "forbidden")


def test_what_a_task_writes_is_an_admins_to_end(
    gateway: Gateway, streams: Streams, run_id: str
) -> None:
    """What a task writes is an admin's to end."""
    path, writer = f"{PREFIX}/runs/{run_id}", bearer(streams.token([f"write:runs/{run_id}"]))
    assert gateway.request("POST", path, b"[1]", writer).status == 204
    closing = {**writer, "stream-closed": "true"}
    refused(gateway.request("POST", path, None, closing), 403, "forbidden")
    refused(gateway.request("PUT", path, None, closing), 403, "forbidden")
    refused(gateway.request("DELETE", path, None, writer), 403, "forbidden")
    admin = bearer(streams.token([f"admin:runs/{run_id}"]))
    assert gateway.request("POST", path, None, {**admin, "stream-closed": "true"}).status == 204
    assert gateway.request("DELETE", path, None, admin).status == 204


def test_nobody_without_a_good_token(gateway: Gateway, streams: Streams, run_id: str) -> None:
    """Nobody without a good token."""
    path = f"{PREFIX}/runs/{run_id}"
    good = streams.token([f"read:runs/{run_id}"], ttl=60)
    refused(gateway.request("GET", path), 401, "token-missing")
    head, claims, signature = good.split(".")
    forged = (
        f"{head}.{claims}.{signature[:-2]}AA", f"{head}.{claims}.", "x", f"{good}.x",
        "eyJhbGciOiJub25lIn0." + claims + ".",
    )  # fmt: skip
    for token in forged:
        refused(gateway.request("GET", path, None, bearer(token)), 401, "token-rejected")
    both = gateway.request("GET", f"{path}?token={good}", None, bearer(good))
    refused(both, 400, "several-tokens")
    for operations in ("/healthz", "/readyz", "/openapi.json"):
        assert gateway.request("GET", operations).status == 200
    refused(gateway.request("GET", "/metrics"), 401)
    refused(gateway.request("GET", "/v1/runs"), 401)


async def test_a_token_in_the_url_shows_in_no_log(
    gateway: Gateway, streams: Streams, run_id: str
) -> None:
    """A token in the url shows in no log."""
    token = streams.token([f"read:runs/{run_id}"], ttl=600)
    path = f"{PREFIX}/runs/{run_id}"
    async with Follower(gateway.port, f"{path}?token={token}") as follower:
        await follower.until(lambda self: self.values == ["secret"], "the chunk")
    for query in (f"%74oken={token}", f"token={token}&offset=-7", f"x=1&token={token[:-4]}"):
        await asyncio.to_thread(gateway.request, "GET", f"{path}?{query}")
    gateway.log.wait_for(f"{run_id}?x=1")
    assert "[hidden]" in gateway.log.text
    for part in token.split("."):
        assert part[:-4] not in gateway.log.text


async def test_a_token_has_so_many_connections(
    gateway: Gateway, streams: Streams, run_id: str
) -> None:
    """A token has so many connections."""
    token, other = (streams.token([f"read:runs/{run_id}"]) for _ in range(2))
    path = f"{PREFIX}/runs/{run_id}"
    async with AsyncExitStack() as stack:
        followers = [
            Follower(gateway.port, path, authorization=f"Bearer {token}") for _ in range(3)
        ]
        for each in followers:
            await stack.enter_async_context(each)
            assert (await each.ready()).status == 200
        live = f"{path}?live=sse&offset=-1"
        over = await asyncio.to_thread(gateway.request, "GET", live, None, bearer(token))
        refused(over, 429, "too-many-connections")
        assert int(over.headers["retry-after"]) > 0
        plain = await asyncio.to_thread(gateway.request, "GET", path, None, bearer(token))
        assert plain.status == 200
        async with Follower(gateway.port, path, authorization=f"Bearer {other}") as others:
            assert (await others.ready()).status == 200
        await followers.pop().leave()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            async with Follower(gateway.port, path, authorization=f"Bearer {token}") as again:
                await again.ready()
            if again.status == 200:
                break
        assert again.status == 200


def raw(gateway: Gateway, request: bytes) -> bytes:
    """What comes back for bytes that no HTTP library sends."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=15) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize(
    "path",
    ["a%2Fb", "a%2fb", "a%5Cb", "../runs/x", "a/../b", "%2e%2e/b", "a/./b", "a%00b", "a%0Ab",
     "a%7Fb", "a%", "a%zz", "a%ff", "a//b", "", "a/", "runs/", "runs/a/b/c", "sessions/a/mine",
     "a%7Bb", "x" * 256, "/".join("abcdefgh" * 150), "runs/%20a", "%C2%85"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_paths_that_name_nothing(
    gateway: Gateway, streams: Streams, method: str, path: str
) -> None:
    """Paths that name nothing."""
    token = streams.token(["admin:*"])
    answer = raw(
        gateway,
        f"{method} {PREFIX}/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        "content-length: 0\r\nconnection: close\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 400"), answer[:300]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "header",
    ["content-type: text/plain\r\ncontent-type: application/json", "stream-seq: a\r\nstream-seq: b",
     "producer-id: a\r\nProducer-Id: b", "stream-seq: \x01", "stream-ttl: 1e3", "stream-ttl: -1",
     "stream-expires-at: tomorrow", "stream-expires-at: 2030-02-30T00:00:00Z",
     "stream-ttl: 9999999999999", "producer-epoch: 1", "content-type: nonsense",
     "stream-forked-from: http://x/", "stream-fork-offset: 1",
     "stream-ttl: 1\r\nstream-expires-at: 2030-01-01T00:00:00Z",
     "if-none-match: a\r\nif-none-match: b"],
)  # fmt: skip
def test_headers_that_mean_nothing(gateway: Gateway, streams: Streams, header: str) -> None:
    """Headers that mean nothing."""
    token = streams.token(["admin:*"])
    answers = [
        raw(
            gateway,
            f"{method} {PREFIX}/headers-{time.time_ns()} HTTP/1.1\r\nhost: x\r\n{header}\r\n"
            f"authorization: Bearer {token}\r\ncontent-length: 1\r\n"
            "connection: close\r\n\r\n1".encode("latin-1"),
        )
        for method in ("PUT", "POST")
    ]
    assert any(answer.startswith(b"HTTP/1.1 400") for answer in answers), answers
    assert not any(answer.startswith(b"HTTP/1.1 5") for answer in answers), answers


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1970-01-01T00:00:00Z",
     "9999-12-31T23:59:59.999999999Z"],
)  # fmt: skip
def test_times_at_the_ends_of_the_calendar(gateway: Gateway, streams: Streams, moment: str) -> None:
    """Times at the ends of the calendar."""
    token, path = streams.token(["admin:*"]), f"{PREFIX}/expires-{time.time_ns()}"
    headers = {**bearer(token), "stream-expires-at": moment}
    assert gateway.request("PUT", path, b"[1]", headers).status == 201
    found = gateway.request("HEAD", path, None, bearer(token))
    assert found.status == (200 if moment.startswith("9999") else 404)


def test_a_huge_offset(gateway: Gateway, streams: Streams) -> None:
    """A huge offset."""
    token, path = streams.token(["admin:*"]), f"{PREFIX}/huge-{time.time_ns()}"
    assert gateway.request("PUT", path, b"[1]", bearer(token)).status == 201
    for offset in ("9999999999999999", "9007199254740993", "1" * 17, "2"):
        for live in ("", "&live=sse", "&live=long-poll"):
            answer = gateway.request("GET", f"{path}?offset={offset}{live}", None, bearer(token))
            refused(answer, 400, "invalid-offset")
        headers = {**bearer(token), "stream-forked-from": path, "stream-fork-offset": offset}
        refused(gateway.request("PUT", f"{path}-f", None, headers), 400)


def test_the_log_has_no_errors(gateway: Gateway) -> None:
    """The log has no errors."""
    assert "Traceback" not in gateway.log.text


async def test_deleted_streams_end_their_readers(gateway: Gateway, streams: Streams) -> None:
    """Deleted streams end their readers."""
    token, path = streams.token(["admin:*"]), f"{PREFIX}/deleted-{time.time_ns()}"
    assert gateway.request("PUT", path, b"[1]", bearer(token)).status == 201
    async with Follower(gateway.port, path, authorization=f"Bearer {token}") as follower:
        await follower.ready()
        await asyncio.to_thread(gateway.request, "DELETE", path, None, bearer(token))
        await follower.ended()
        assert follower.clean
        assert not follower.closed
