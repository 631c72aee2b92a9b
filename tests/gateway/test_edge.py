"""The gateway on a raw connection: what is no request, HTTP/1.0, more clients than it takes."""

from __future__ import annotations

import base64
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from celery_streams.gateway.connections import listen
from tests.gateway.following import create
from tests.gateway.serving import Answer, Gateway, answer, serving
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    """One without tokens, for tests that leave it as it was."""
    with serving(valkey.url) as gateway:
        yield gateway


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=15)


def refused(found: Answer, status: int, code: str) -> None:
    """A problem document, with the headers that every answer carries."""
    assert found.status == status, found
    assert found.headers["content-type"] == "application/problem+json"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-security-policy"].startswith("default-src 'none'")
    assert found.headers["cache-control"] == "no-store"
    assert found.document["status"] == status
    assert found.document["code"] == code


def request(target: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *headers, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (request("/healthz", "host: x", "x-nul: a\0b"), 400, "bad-request"),
        (request("/healthz", "content-length: 1", "content-length: 2"), 400, "bad-request"),
        (request("/", "content-length: 1", "transfer-encoding: chunked"), 400, "bad-request"),
        (request("/healthz", "host: x", "transfer-encoding: chunked, gzip"), 400, "bad-request"),
        (request("/healthz", "host: x", method="BREW"), 400, "bad-request"),
        (request("/v1/stream/\xff", "host: x"), 400, "bad-request"),
        (request("nowhere", "host: x"), 400, "bad-request"),
        (request("x:443", "host: x", method="CONNECT"), 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, 400, "bad-request"),
        (request("/v1/stream/" + "x" * 200_000, "host: x"), 414, "url-too-long"),
        (request("/v1/stream/" + "x" * 13_000, "host: x"), 414, "url-too-long"),
        (b"GET /" + b"x" * 40_000, 414, "url-too-long"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 50_000, 431, "headers-too-large"),
        (request("/healthz", "host: x", version="2.0"), 505, "http-version"),
    ],
    ids=["nul", "lengths", "length-and-chunks", "coding", "method", "byte", "target", "connect",
         "tls", "url", "url-a-little", "url-endless", "head-endless", "version"],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_a_problem_document(
    gateway: Gateway, data: bytes, status: int, code: str
) -> None:
    """Also what the HTTP parser refuses; the connection ends after it, and not by a reset."""
    with connected(gateway) as connection:
        connection.sendall(data)
        found = answer(connection)
        refused(found, status, code)
        assert found.headers["connection"] == "close"
        assert found.headers["access-control-allow-origin"] == "*"
        assert connection.recv(100) == b""
    assert "Traceback" not in gateway.log.text


def test_a_body_that_is_none_is_refused_and_leaves_nothing_behind(gateway: Gateway) -> None:
    """A chunk without a size: 400, once, and nothing is appended."""
    path = f"/v1/stream/bad-{time.time_ns()}"
    create(gateway, path)
    with connected(gateway) as connection:
        head = request(
            path, "host: x", "content-type: application/json", "transfer-encoding: chunked",
            method="POST",
        )  # fmt: skip
        connection.sendall(head + b"3\r\n[1]\r\n" + b"what?\r\n")
        refused(answer(connection), 400, "bad-request")
        assert connection.recv(100) == b""
    assert gateway.request("GET", path).document == []


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"0\r\n", b"x-a: " + b"b" * 8000 + b"\r\n"),
        (b"0\r\nx-a: ", b"b" * 8000),
        (b"3;", b"b" * 8000),
    ],
    ids=["trailers", "one-trailer", "extension"],
)
def test_what_surrounds_a_body_has_a_size_too(gateway: Gateway, begun: bytes, more: bytes) -> None:
    """Trailers and chunk extensions without end are 431; they fill no memory."""
    path = f"/v1/stream/around-{time.time_ns()}"
    create(gateway, path)
    head = request(
        path, "host: x", "content-type: application/json", "transfer-encoding: chunked",
        method="POST",
    )  # fmt: skip
    before = _resident(gateway)
    with connected(gateway) as connection:
        connection.sendall(head + b"3\r\n[1]\r\n" + begun)
        told, sent = None, 0
        with suppress(ConnectionError):
            while sent < 100_000_000:
                connection.sendall(more)
                sent += len(more)
                if told is None and select.select([connection], [], [], 0)[0]:
                    told = answer(connection)
        refused(told or answer(connection), 431, "headers-too-large")
        assert _resident(gateway) - before < 20_000_000
    assert gateway.request("GET", path).document == []


def _resident(gateway: Gateway) -> int:
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


def test_trailers_are_no_headers(gateway: Gateway) -> None:
    """However a request's bytes arrive, what stands behind its body decides nothing."""
    path = f"/v1/stream/trailing-{time.time_ns()}"
    create(gateway, path)
    head = request(
        path, "host: x", "content-type: application/json", "transfer-encoding: chunked",
        method="POST",
    )  # fmt: skip
    with connected(gateway) as connection:
        for _ in range(2):  # a Stream-Seq that counts cannot come twice
            trailers = b"stream-seq: 5\r\nstream-closed: true\r\n\r\n"
            connection.sendall(head + b"3\r\n[1]\r\n0\r\n" + trailers)
            assert answer(connection).status == 204
    assert gateway.request("GET", path).document == [1, 1]


def test_requests_that_wait_on_one_connection_have_a_number(gateway: Gateway) -> None:
    """Some are answered in their order, then the connection ends; thousands fill no memory."""
    path = f"/v1/stream/pipelined-{time.time_ns()}"
    create(gateway, path, 1)
    before = _resident(gateway)
    with connected(gateway) as connection:
        with suppress(ConnectionError):
            connection.sendall(request(f"{path}?offset=-1", "host: x") * 20_000)
        answered = 0
        with suppress(ConnectionError):
            while data := connection.recv(2**16):
                answered += data.count(b"HTTP/1.1 200 OK")
    assert 1 <= answered <= 100
    assert _resident(gateway) - before < 20_000_000


def test_garbage_behind_a_request_is_not_answered_within_its_answer(gateway: Gateway) -> None:
    """A live read goes on to its end; then the connection closes."""
    path = f"/v1/stream/behind-{time.time_ns()}"
    create(gateway, path, 1)
    with connected(gateway) as connection:
        connection.sendall(request(f"{path}?live=sse&offset=-1", "host: x"))
        received = _until(connection, b"upToDate")
        connection.sendall(b"\0\0\0\0 what is this\r\n\r\n")
        connection.sendall(b"y" * 100_000)
        gateway.log.wait_for("Invalid HTTP request")
        gateway.append(path, 2)
        gateway.request("POST", path, None, {"stream-closed": "true"})
        received += _rest(connection)
    assert received.count(b"HTTP/1.1") == 1
    assert b"data:[2]" in received
    assert received.endswith(b"0\r\n\r\n")


def test_a_head_behind_a_request_has_a_size_too(gateway: Gateway) -> None:
    """While a live read is open its client cannot fill the memory with headers."""
    path = f"/v1/stream/behind-{time.time_ns()}"
    create(gateway, path, 1)
    with connected(gateway) as connection:
        connection.sendall(request(f"{path}?live=sse&offset=-1", "host: x"))
        received = _until(connection, b"upToDate")
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000)
        gateway.append(path, 2)
        gateway.request("POST", path, None, {"stream-closed": "true"})
        received += _rest(connection)
    assert b"data:[2]" in received
    assert received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "host-missing"),
        (["host: a", "host: b"], "duplicate-header"),
        (["host: a", "Host: a"], "duplicate-header"),
        (["host: a b"], "bad-header"),
        (["host: a/b"], "bad-header"),
    ],
)
def test_a_request_names_its_host_once(gateway: Gateway, headers: list[str], code: str) -> None:
    """RFC 9112, 3.2: none, two, or one that is no host are 400 under HTTP/1.1."""
    with connected(gateway) as connection:
        connection.sendall(request("/healthz", *headers))
        refused(answer(connection), 400, code)
        connection.sendall(request("/healthz", "host: [::1]:8080"))
        assert answer(connection).status == 200


def test_http_1_0_needs_no_host(gateway: Gateway) -> None:
    """Health checks of old load balancers; the connection ends with the answer."""
    with connected(gateway) as connection:
        connection.sendall(request("/healthz", version="1.0"))
        found = answer(connection)
        assert found.status == 200
        assert found.document == {"status": "alive"}
        assert connection.recv(100) == b""


def test_http_1_0_gets_events_without_chunks(gateway: Gateway) -> None:
    """A live read under HTTP/1.0 is plain bytes up to the end of the connection."""
    path = f"/v1/stream/old-{time.time_ns()}"
    create(gateway, path, 1)
    with connected(gateway) as connection:
        connection.sendall(request(f"{path}?live=sse&offset=-1", version="1.0"))
        received = _until(connection, b"upToDate")
        gateway.append(path, 2)
        received += _until(connection, b"data:[2]")
        gateway.append(path, *["x" * 50_000] * 10)
        gateway.request("POST", path, None, {"stream-closed": "true"})
        received += _rest(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert b"connection: close" in head
    assert body.startswith(b"event: data\n")
    assert b"\r" not in body
    lines = [line for line in body.split(b"\n") if line.startswith(b"data:[")]
    assert [value for line in lines for value in json.loads(line[5:])] == [
        1,
        2,
        *["x" * 50_000] * 10,
    ]
    assert b'"streamClosed":true' in body
    assert "Traceback" not in gateway.log.text


def resumed(gateway: Gateway, path: str, event_id: bytes) -> bytes:
    """What an ``EventSource`` gets that comes back with the ``id`` of the last event it took."""
    with connected(gateway) as connection:
        headers = ("host: x", f"last-event-id: {event_id.decode()}", "connection: close")
        connection.sendall(request(f"{path}?live=sse&offset=-1", *headers))
        return _rest(connection)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-bytes"])
def test_a_cut_between_any_two_events_loses_nothing_and_repeats_nothing(
    gateway: Gateway, kind: str
) -> None:
    """Every event has an id; from each of them an ``EventSource`` gets the rest, then 204."""
    path = f"/v1/stream/cuts-{time.time_ns()}"
    gateway.request("PUT", path, None, {"content-type": kind})
    with connected(gateway) as connection:
        connection.sendall(request(f"{path}?live=sse&offset=-1", "host: x", version="1.0"))
        received = _until(connection, b"upToDate")
        for number in range(3):
            gateway.request("POST", path, b"%d" % number, {"content-type": kind})
            received += _until(connection, b"event: control")
        gateway.request("POST", path, None, {"stream-closed": "true"})
        received += _rest(connection)
    events = received.partition(b"\r\n\r\n")[2].rstrip(b"\n").split(b"\n\n")
    data = [b"event: data" in event for event in events]
    assert data == [False, True, False, True, False, True, False, False]
    for taken, event in enumerate(events, 1):
        (event_id,) = [line[3:] for line in event.split(b"\n") if line.startswith(b"id:")]
        rest = resumed(gateway, path, event_id)
        if taken == len(events):
            assert rest.startswith(b"HTTP/1.1 204")
            continue
        assert _taken(rest, kind) == b"012"[sum(data[:taken]) :]
        assert b'"streamClosed":true' in rest


def test_a_full_gateway_tells_clients_to_come_back_and_probes_that_it_lives(
    valkey: ValkeyProcess,
) -> None:
    """Beyond ``gateway_max_connections``: 503 problems with Retry-After, but /healthz says 200.

    Who has connected before is served; freed places are given again.
    """
    with serving(valkey.url, CELERY_STREAMS_GATEWAY_MAX_CONNECTIONS="3") as gateway:
        create(gateway, "/v1/stream/full")
        inside = [connected(gateway) for _ in range(3)]
        for each in inside:  # none of them is a moment too late
            each.sendall(request("/v1/stream/full", "host: x"))
            assert answer(each).status == 200
        assert gateway.request("GET", "/healthz").status == 200
        for path, method in (("/readyz", "GET"), ("/v1/stream/full", "GET"), ("/v1/runs/x", "GET")):
            found = gateway.request(method, path)
            refused(found, 503, "full")
            assert int(found.headers["retry-after"]) > 0
            assert found.headers["connection"] == "close"
        with connected(gateway) as late:
            for each in inside:
                each.sendall(request("/v1/stream/full", "host: x"))
                assert answer(each).status == 200
            inside[0].sendall(request("/readyz", "host: x"))
            refused(answer(inside[0]), 503, "full")
            began = time.monotonic()
            assert late.recv(100) == b""  # it keeps others out, and says nothing
            assert time.monotonic() - began < 8
        for each in inside[1:]:
            each.close()
        eventually(
            lambda: gateway.request("GET", "/v1/stream/full").status == 200, "there is room again"
        )
        eventually(lambda: gateway.request("GET", "/readyz").status == 200, "it is ready")
        inside[0].close()


def test_accepted_connections_notice_peers_that_have_vanished(gateway: Gateway) -> None:
    """The kernel's keepalive timer runs on them, with about half a minute to go."""
    listener = listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()) as client:
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert not client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if not Path("/proc/net/tcp").exists():
        return
    with connected(gateway) as connection:
        connection.sendall(request("/healthz", "host: x"))
        answer(connection)
        ours = f"0100007F:{gateway.port:04X} 0100007F:{connection.getsockname()[1]:04X} 01"

        def timer() -> list[str]:
            rows = Path("/proc/net/tcp").read_text().splitlines()
            (row,) = [row.split() for row in rows if ours in row]
            return row[5].split(":")

        # "02": a timer that is neither retransmission nor TIME_WAIT.
        eventually(lambda: timer()[0] == "02", "the keepalive timer runs")
        assert 0 < int(timer()[1], 16) <= 31 * 100


@pytest.mark.parametrize("target", ["", "?offset=-1&live=long-poll"])
def test_a_client_that_has_said_all_it_has_to_say_is_answered(
    gateway: Gateway, target: str
) -> None:
    """It shuts its side down behind two requests: both are answered, then the connection ends."""
    path = f"/v1/stream/said-{time.time_ns()}"
    create(gateway, path)
    with connected(gateway) as connection:
        body = b"[" + b",".join([b'"%s"' % (b"x" * 1000)] * 2000) + b"]"
        head = request(
            path, "host: x", "content-type: application/json", f"content-length: {len(body)}",
            method="POST",
        )  # fmt: skip
        connection.sendall(head + body + request(path + target, "host: x"))
        connection.shutdown(socket.SHUT_WR)
        rest = _rest(connection)
    assert rest.startswith(b"HTTP/1.1 204")
    if target:  # whoever waits for chunks cannot be told from who has gone
        assert rest.count(b"HTTP/1.1") <= 2
    else:
        assert rest.endswith(body)
    assert "Traceback" not in gateway.log.text


def test_a_half_body_is_not_waited_for_once_its_client_has_ended(gateway: Gateway) -> None:
    """The rest of it cannot come: the connection ends, and nothing is appended."""
    path = f"/v1/stream/half-{time.time_ns()}"
    create(gateway, path)
    with connected(gateway) as connection:
        head = request(path, "host: x", "content-length: 9", *map(": ".join, JSON.items()),
                       method="POST")  # fmt: skip
        connection.sendall(head + b"[1")
        connection.shutdown(socket.SHUT_WR)
        assert _rest(connection) == b""
    assert gateway.request("GET", path).document == []


def subscribers(gateway: Gateway) -> float:
    text = gateway.request("GET", "/metrics").body.decode()
    return float(text.partition("\ncelery_streams_gateway_subscribers ")[2].split()[0])


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_a_live_read_whose_client_ends_is_forgotten_at_once(gateway: Gateway, live: str) -> None:
    """Whether it closes the connection or only its side of it."""
    path = f"/v1/stream/left-{time.time_ns()}"
    create(gateway, path)
    for end in (lambda one: one.shutdown(socket.SHUT_WR), socket.socket.close):
        with connected(gateway) as connection:
            connection.sendall(request(f"{path}?offset=now&live={live}", "host: x"))
            eventually(lambda: subscribers(gateway) == 1, "it follows")
            end(connection)
            eventually(lambda: subscribers(gateway) == 0, "it is forgotten")
    assert "ASGI" not in gateway.log.text


def test_requests_behind_a_live_read_do_not_keep_it_once_its_client_has_gone(
    gateway: Gateway,
) -> None:
    """They are not read while it lasts; that the client has gone shows when it is sent more."""
    path = f"/v1/stream/left-{time.time_ns()}"
    create(gateway, path)
    with connected(gateway) as connection:
        live = request(f"{path}?offset=now&live=sse", "host: x")
        connection.sendall(live + request("/healthz", "host: x") * 2)
        eventually(lambda: subscribers(gateway) == 1, "it follows")

    def forgotten() -> bool:
        gateway.append(path, "more")
        return subscribers(gateway) == 0

    eventually(forgotten, "it is forgotten")
    assert "ASGI" not in gateway.log.text


def test_a_small_answer_is_one_packet(gateway: Gateway) -> None:
    """Head and body leave in one write."""
    with connected(gateway) as connection:
        for _ in range(20):
            connection.sendall(request("/healthz", "host: x"))
            assert connection.recv(65536).endswith(b'{"status":"alive"}')


def _taken(answered: bytes, kind: str) -> bytes:
    """The digits of an answer's data."""
    digits = b""
    for event in answered.split(b"\n\n"):
        if b"event: data" in event:
            (line,) = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
            bare = base64.b64decode(line) if kind == "application/x-bytes" else line
            digits += bytes(byte for byte in bare if chr(byte).isdigit())
    return digits


def _until(connection: socket.socket, what: bytes) -> bytes:
    received = b""
    while what not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def _rest(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received
