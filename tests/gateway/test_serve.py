"""``celery -A proj streams serve``: starting, its limits, its log, and what it refuses."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from celery_streams import Streams
from tests.gateway.serving import SERVE, Gateway, Reading, answer, read_live, serving, start
from tests.servers import ValkeyProcess
from tests.servers.children import end, eventually

SECRET = "a secret of thirty-two bytes or more"


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    """One without tokens, for tests that leave it as it was."""
    with serving(valkey.url) as gateway:
        yield gateway


def _ended(gateway: Gateway) -> tuple[int, str]:
    status = gateway.process.wait(timeout=30)
    gateway.log.join()
    return status, gateway.log.text


def test_it_says_where_it_listens_on_what_store_and_whether_it_asks_for_tokens(
    valkey: ValkeyProcess,
) -> None:
    """Port 0 becomes the real one; the store's password is not shown."""
    with serving(valkey.url, "--insecure", "--ui") as gateway:
        (line,) = re.findall(r"^celery-streams gateway: .*$", gateway.log.text, re.MULTILINE)
        assert f"http://127.0.0.1:{gateway.port} " in line
        assert f":{valkey.port}/0" in line
        assert "INSECURE" in line
        assert gateway.request("GET", "/").headers["content-type"].startswith("text/html")


def test_without_a_secret_it_does_not_start(valkey: ValkeyProcess) -> None:
    """Exit status 1 and one line that says what to set; no port was opened."""
    status, text = _ended(start((*SERVE, "--port", "0"), valkey.url))
    assert status == 1
    assert "CELERY_STREAMS_SECRET" in text
    assert "--insecure" in text
    assert "http://" not in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1


def test_with_a_secret_it_asks_for_tokens(valkey: ValkeyProcess) -> None:
    """401 without, 201 with one that ``streams.token`` has minted."""
    with serving(valkey.url, "--workers", "1", CELERY_STREAMS_SECRET=SECRET) as gateway:
        assert "tokens required" in gateway.log.text
        assert gateway.request("PUT", "/v1/stream/guarded").status == 401
        token = Streams(url=valkey.url, secret=SECRET).token(["write:streams/guarded"], ttl=60)
        headers = {"authorization": f"Bearer {token}"}
        assert gateway.request("PUT", "/v1/stream/guarded", None, headers).status == 201


def test_a_port_that_is_taken_is_told_in_one_line(gateway: Gateway, valkey: ValkeyProcess) -> None:
    """Also with several workers: the supervisor opens the port."""
    for workers in ("1", "2"):
        command = (*SERVE, "--insecure", "--port", str(gateway.port), "--workers", workers)
        status, text = _ended(start(command, valkey.url))
        assert status == 1
        assert f"cannot listen on 127.0.0.1:{gateway.port}" in text
        assert "Traceback" not in text


def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path: Path) -> None:
    """As without the extra: importing uvicorn fails."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    gateway = start((*SERVE, "--insecure"), "redis://127.0.0.1:1", PYTHONPATH=f"{tmp_path}:.")
    status, text = _ended(gateway)
    assert status == 1
    assert "celery-streams[gateway]" in text
    assert "uvicorn" in text
    assert "Traceback" not in text


def test_no_line_of_the_log_shows_a_token(gateway: Gateway) -> None:
    """Neither in a query nor in a path that was mistaken for one."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzY29wZSI6InJlYWQ6KiJ9.c2lnbmF0dXJl"
    gateway.request("GET", f"/v1/stream/secret-{token[-4:]}?token={token}&offset=-1")
    gateway.request("GET", f"/v1/stream/x?t%6Fken={token}")
    gateway.request("GET", f"/v1/stream/{token}")
    text = gateway.log.wait_for("GET /v1/stream/[hidden]")
    assert token not in text
    assert "token=[hidden]" in text


def _raw(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=25)


def test_a_request_that_comes_a_byte_at_a_time_is_not_waited_for(gateway: Gateway) -> None:
    """Three ways to be slow: silence, a dripping head, the rest of a body nobody wants."""
    began = time.monotonic()
    silent, dripping, unwanted = _raw(gateway), _raw(gateway), _raw(gateway)
    unwanted.sendall(b"PATCH /v1/stream/x HTTP/1.1\r\nhost: a\r\ncontent-length: 999\r\n\r\n")
    assert answer(unwanted).status == 405
    closed: dict[str, float] = {}
    connections = {"silent": silent, "dripping": dripping, "unwanted": unwanted}
    for each in connections.values():
        each.settimeout(0.2)
    drips = iter(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-slow: " + b"y" * 1000)
    while len(closed) < 3 and time.monotonic() - began < 20:
        for name in [name for name in connections if name not in closed]:
            try:
                if name == "dripping":
                    connections[name].sendall(bytes([next(drips)]))
                if name == "unwanted":
                    connections[name].sendall(b"z")
                if connections[name].recv(100) == b"":
                    closed[name] = time.monotonic() - began
            except TimeoutError:
                pass
            except OSError:
                closed[name] = time.monotonic() - began
    for each in connections.values():
        each.close()
    assert set(closed) == set(connections)
    assert all(9 <= seconds <= 12 for seconds in closed.values()), closed


def test_a_head_without_end_is_refused_before_it_fills_the_memory(gateway: Gateway) -> None:
    """431 soon after the limits of the settings (24 KiB together), not after ten seconds."""
    with _raw(gateway) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ")
        began = time.monotonic()
        sent = 0
        try:
            while sent < 2**24:
                sent += connection.send(b"y" * 4096)
        except OSError:
            pass
        assert sent < 2**23
        assert time.monotonic() - began < 5


def test_a_connection_is_used_again_after_a_body_that_was_not_wanted(gateway: Gateway) -> None:
    """A refused request's body is passed over, however it is cut; the next request is served."""
    with _raw(gateway) as connection:
        connection.sendall(
            b"PATCH /v1/stream/x HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n"
        )
        assert answer(connection).status == 405
        for _ in range(20):
            connection.sendall(b"z" * 10_000)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert answer(connection).status == 200


def test_a_subscriber_that_does_not_read_is_cut_off_without_an_error_in_the_log(
    valkey: ValkeyProcess,
) -> None:
    """Its connection breaks; others get everything; the log has no error, the metric one."""
    with serving(valkey.url, CELERY_STREAMS_GATEWAY_SUBSCRIBER_BUFFER="65536") as gateway:
        path = "/v1/stream/slow"
        gateway.request("PUT", path, headers={"content-type": "application/json"})
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", gateway.port))
        stuck.sendall(f"GET {path}?live=sse&offset=-1 HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        eventually(lambda: _metric(gateway, "subscribers") == 1, "it has subscribed")

        async def read() -> Reading:
            reading = Reading()
            reader = asyncio.create_task(read_live(gateway.port, path, reading))
            async with asyncio.timeout(30):
                while await asyncio.to_thread(_metric, gateway, "cut_off_total") == 0:
                    await asyncio.to_thread(gateway.append, path, *["x" * 60_000] * 4)
                last = await asyncio.to_thread(
                    gateway.request, "POST", path, None, {"stream-closed": "true"}
                )
                assert last.status == 204
                await reader
            return reading

        reading = asyncio.run(read())
        assert reading.closed
        assert reading.clean
        assert int(reading.offset) == len(reading.values)
        assert _metric(gateway, "cut_off_total") == 1
        stuck.settimeout(10)
        assert not _rest(stuck).endswith(b"0\r\n\r\n"), "it takes its answer for complete"
        end(gateway.process)
        gateway.log.join()
        assert "ERROR" not in gateway.log.text
        assert "Traceback" not in gateway.log.text


def test_what_waits_for_a_slow_subscriber_is_shown(valkey: ValkeyProcess) -> None:
    """``waiting_bytes`` grows while it does not read, and is 0 once it has caught up."""
    with serving(valkey.url) as gateway:
        path = f"/v1/stream/lag-{time.time_ns()}"
        gateway.request("PUT", path, headers={"content-type": "application/json"})
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(15)
            slow.connect(("127.0.0.1", gateway.port))
            slow.sendall(f"GET {path}?live=sse&offset=-1 HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            eventually(lambda: _metric(gateway, "subscribers") == 1, "it has subscribed")
            appended = 0
            while _metric(gateway, "waiting_bytes") == 0:
                assert appended < 500, "nothing waits for a subscriber that reads nothing"
                gateway.append(path, "x" * 60_000)
                appended += 1
            seen, rest = 0, b""
            while seen < appended:
                rest += slow.recv(2**20)
                seen += rest.count(b"event: data")
                rest = rest[-10:]
            eventually(lambda: _metric(gateway, "waiting_bytes") == 0, "it has caught up")
            assert _metric(gateway, "catching_up") == 0
        assert _metric(gateway, "cut_off_total") == 0


def _rest(connection: socket.socket) -> bytes:
    """The last of what comes until the connection ends."""
    last = b""
    with connection, suppress(ConnectionResetError):
        while data := connection.recv(2**20):
            last = (last + data)[-20:]
    return last


def _metric(gateway: Gateway, name: str) -> float:
    text = gateway.request("GET", "/metrics").body.decode()
    found = re.search(rf"^celery_streams_gateway_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def test_requests_leave_nothing_for_the_collector(valkey: ValkeyProcess) -> None:
    """Not even clients that break off: the collector stops all delivery while it looks."""
    request = b"POST /v1/stream/kept HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request += b"content-length: 1\r\n\r\n1"
    tail = b"GET /v1/stream/kept?offset=-1&live=sse HTTP/1.1\r\nhost: x\r\n\r\n"
    with serving(valkey.url) as gateway:
        gateway.request("PUT", "/v1/stream/kept", b"", {"content-type": "application/json"})
        before = _collected(gateway)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=15) as connection:
            for _ in range(2000):
                connection.sendall(request)
                assert answer(connection).status == 204
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=15) as connection:
                connection.sendall(tail)
                assert connection.recv(15).startswith(b"HTTP/1.1 200")
        eventually(lambda: _metric(gateway, "subscribers") == 0, "all have been forgotten")
        assert _collected(gateway) - before < 2000  # one for each would be very few


def _collected(gateway: Gateway) -> float:
    """Objects that the collector has freed so far."""
    text = gateway.request("GET", "/metrics").body.decode()
    return sum(map(float, re.findall(r"^python_gc_objects_collected_total{.*} (\S+)$", text, re.M)))


def test_ctrl_c_ends_it_with_status_0(valkey: ValkeyProcess) -> None:
    """As SIGTERM does; nothing but the server's farewell in the log."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with serving(valkey.url) as gateway:
            gateway.process.send_signal(number)
            status, text = _ended(gateway)
        assert status == 0
        assert "Traceback" not in text
        assert "ERROR" not in text


def test_help_tells_the_options() -> None:
    """The hidden one is not for people."""
    done = subprocess.run(
        [sys.executable, *SERVE, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--workers" in done.stdout
    assert "--insecure" in done.stdout
    assert "--worker " not in done.stdout
