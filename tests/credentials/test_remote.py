"""Credentials from a gateway: what a worker without an account token asks, and how often."""

from __future__ import annotations

import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme

from celery_streams import Streams
from celery_streams.contracts import Authority
from celery_streams.credentials.remote import HttpAuthority, _retry_after
from celery_streams.errors import ConfigurationError, RunFinished, StoreUnavailable
from celery_streams.slots import Slot
from tests.conftest import SettingsFor
from tests.gateway.serving import Gateway, serving
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

SLOT = Slot.run("run-1", "a key")
SECRET = "test secret"
MINTED = {
    "Stream-Credentials": "t0ken",
    "Stream-Credentials-Id": "mint-1",
    "Stream-Credentials-Expires": "4000000000.5",
}


class Scripted(ThreadingHTTPServer):
    """Answers in the order given, then with credentials; remembers what it was asked, and when."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[float, str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests want."""

    @property
    def times(self) -> list[float]:
        return [moment for moment, _, _ in self.asked]

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_PUT(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((time.monotonic(), f"{self.command} {self.path}", headers))
        status, answered = self.server.answers.pop(0) if self.server.answers else (201, MINTED)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": "0", **answered}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_PUT()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def authority(settings_for: SettingsFor) -> Any:
    """``authority(server, **settings)``: one that asks this server."""

    def make(server: Scripted, scheme: str = "http", **settings: Any) -> HttpAuthority:
        url = f"{scheme}://127.0.0.1:{server.server_port}/streams"
        settings = {"authority_url": url, "authority_token": "worker token", **settings}
        return HttpAuthority(settings_for("redis://unused", **settings))

    return make


def test_one_request_brings_credentials(authority: Any) -> None:
    """With the worker's token, below the prefix the gateway is mounted at."""
    with Scripted() as server:
        asking = authority(server)
        assert isinstance(asking, Authority)
        credentials = asking.initialize(SLOT, content_type="text/plain")
    assert (credentials.token, credentials.mint_id) == ("t0ken", "mint-1")
    assert credentials.expires_at == 4000000000.5
    ((_, line, headers),) = server.asked
    assert line == "PUT /streams/v1/stream/runs/run-1/a%20key"
    assert headers["authorization"] == "Bearer worker token"
    assert headers["stream-credentials"] == "append"
    assert headers["content-type"] == "text/plain"


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_honoured(authority: Any, status: int) -> None:
    """Not by the next request alone, but by everybody in the process."""
    with Scripted((status, {"Retry-After": "1"})) as server:
        asking = authority(server)
        asking.initialize(SLOT)
        first, second = server.times
        assert second - first >= 1.0
    with Scripted((status, {"Retry-After": "30"})) as server:
        asking = authority(server)
        for slot in (SLOT, Slot.run("run-2")):
            with pytest.raises(StoreUnavailable):
                asking.initialize(slot)
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [0, 500, 502])
def test_what_may_pass_is_asked_for_again_with_growing_pauses(authority: Any, status: int) -> None:
    """A connection that is cut, too."""
    with Scripted(*[(status, {})] * 3) as server:
        authority(server).initialize(SLOT)
    first, *_, before_last, last = server.times
    assert len(server.asked) == 4
    assert last - before_last >= 0.4
    assert last - first < 4


def test_it_gives_up_before_the_locks_lease_is_over(authority: Any) -> None:
    """Somebody else's turn comes with the lease; the flusher asks again in its own time."""
    with Scripted(*[(503, {})] * 50) as server:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="503"):
            authority(server, lock_lease=1.0).initialize(SLOT)
        assert time.monotonic() - began < 1.0


def test_a_gateway_that_hangs_is_unavailable(authority: Any) -> None:
    """Within ``socket_timeout``, however long it listens."""
    with Scripted() as server:
        server.shutdown()  # connections are accepted by the kernel, and nobody answers
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            authority(server, lock_lease=1.0, socket_timeout=0.2).initialize(SLOT)
        assert time.monotonic() - began < 1.5


class Dripping(socketserver.ThreadingTCPServer):
    """Answers with ``begin``, then with ``drop`` again and again, every ``pause`` seconds."""

    daemon_threads = True

    def __init__(self, begin: bytes, drop: bytes, pause: float = 0.02) -> None:
        self.begin, self.drop, self.pause = begin, drop, pause
        self.sent: list[int] = []  # bytes in each answer
        super().__init__(("127.0.0.1", 0), _Drops)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def server_port(self) -> int:
        return int(self.server_address[1])

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()


class _Drops(socketserver.BaseRequestHandler):
    server: Dripping

    def handle(self) -> None:
        self.request.recv(4096)
        sent = 0
        try:
            self.request.sendall(self.server.begin)
            while sent < 64 * 1024 * 1024:
                self.request.sendall(self.server.drop)
                sent += len(self.server.drop)
                time.sleep(self.server.pause)
        except OSError:
            self.server.sent.append(sent)


_STATUS = b"HTTP/1.1 201 Created\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "drop"),
    [(b"", b"H"), (_STATUS, b"x"), (_STATUS, b"A: b\r\n"), (_CONTINUE, _CONTINUE)],
    ids=["status", "name", "headers", "continue"],
)
def test_an_answer_that_comes_in_drops_has_no_longer(
    authority: Any, begin: bytes, drop: bytes
) -> None:
    """Each is well within ``socket_timeout``; all have the lease's time together."""
    with Dripping(begin, drop) as server:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="time"):
            authority(server, lock_lease=1.0, socket_timeout=0.5).initialize(SLOT)
        assert time.monotonic() - began < 1.0


def test_an_answers_body_is_not_waited_for(authority: Any) -> None:
    """The credentials are in the headers."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in MINTED.items())
    begin = _STATUS + headers.encode() + b"Content-Length: 100000\r\n\r\n"
    with Dripping(begin, b"x") as server:
        began = time.monotonic()
        assert authority(server, lock_lease=10.0).initialize(SLOT).mint_id == "mint-1"
        assert time.monotonic() - began < 5


def test_an_answer_without_end_is_not_read(authority: Any) -> None:
    """Beyond some headers; the rest is what the kernels' buffers have taken."""
    with Dripping(b"", _CONTINUE * 1000, pause=0) as server:
        with pytest.raises(StoreUnavailable, match="more than"):
            authority(server, lock_lease=1.0).initialize(SLOT)
        eventually(lambda: bool(server.sent), "it notices that nobody reads")
        assert max(server.sent) < 32 * 1024 * 1024


@pytest.mark.parametrize(
    ("status", "headers", "error", "message"),
    [
        (401, {}, ConfigurationError, "AUTHORITY_TOKEN"),
        (403, {}, ConfigurationError, "admin:runs"),
        (404, {}, ConfigurationError, "AUTHORITY_URL"),
        (302, {"Location": "http://127.0.0.1:1/"}, ConfigurationError, "AUTHORITY_URL"),
        (201, {}, ConfigurationError, "without credentials"),
        (409, {"Stream-Run-State": "REVOKED"}, RunFinished, "REVOKED"),
        (409, {}, ConfigurationError, "content type"),
    ],
)
def test_answers_that_no_retry_changes(
    authority: Any, status: int, headers: dict[str, str], error: type[Exception], message: str
) -> None:
    """Said at once, and never with the token."""
    with Scripted((status, headers)) as server, pytest.raises(error, match=message) as told:
        authority(server).initialize(SLOT)
    assert len(server.asked) == 1
    assert "worker token" not in str(told.value)


def test_certificates_are_verified(authority: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody vouches for is refused at once, before the token is sent."""
    ours = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    with Scripted() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(ConfigurationError, match="certificate"):
            authority(server, "https").initialize(SLOT)
        assert not server.asked
        with ours.cert_pem.tempfile() as path:
            monkeypatch.setenv("SSL_CERT_FILE", path)
            assert authority(server, "https").initialize(SLOT).mint_id == "mint-1"


def test_the_token_is_never_shown(authority: Any, settings_for: SettingsFor) -> None:
    """Neither is an authority made without one."""
    with Scripted() as server:
        asking = authority(server)
        assert "worker token" not in repr(vars(asking))
    with pytest.raises(ConfigurationError, match="AUTHORITY_TOKEN"):
        HttpAuthority(settings_for("redis://unused", authority_url="http://127.0.0.1"))


# -- a real gateway -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    """With tokens."""
    arguments = ("--host", "127.0.0.1")
    with serving(valkey.url, *arguments, CELERY_STREAMS_SECRET=SECRET) as gateway:
        yield gateway


def _token(valkey: ValkeyProcess, *scopes: str) -> str:
    return Streams(url=valkey.url, secret=SECRET).token(scopes)


def test_a_worker_writes_with_what_the_gateway_has_minted(
    gateway: Gateway, valkey: ValkeyProcess
) -> None:
    """For every slot one request; to the Redis store, too. A run that has ended is refused."""
    streams = Streams(
        url=valkey.url,
        secret=SECRET,
        authority_url=f"http://127.0.0.1:{gateway.port}",
        authority_token=_token(valkey, "admin:runs/*"),
    )
    with streams.write_to("minted", "key", create=True) as writer:
        for number in range(100):
            writer.write(number)
    assert streams.stats().initializes == 1
    assert streams.head("minted", "key").end == 100
    with pytest.raises(ConfigurationError, match="revoke"):
        streams.revoke("minted", "key")
    with pytest.raises(ConfigurationError, match="admin:sessions"):
        streams.session("chat").out.append("a")
    streams.close()


def test_only_administrators_get_credentials(gateway: Gateway, valkey: ValkeyProcess) -> None:
    """They hold without the gateway, so ``write`` is not enough; nor for clients' own streams."""
    ask = {"stream-credentials": "append"}
    path = "/v1/stream/runs/guarded/default"

    def status(path: str, *scopes: str, **headers: str) -> int:
        bearer = {"authorization": f"Bearer {_token(valkey, *scopes)}"}
        return gateway.request("PUT", path, b"", {**ask, **bearer, **headers}).status

    assert gateway.request("PUT", path, b"", ask).status == 401
    assert status(path, "write:runs/guarded", "read:*") == 403
    assert status(path, "admin:runs/other") == 403
    assert status("/v1/stream/own/path", "admin:*") == 400
    granted = gateway.request(
        "PUT", path, b"", {**ask, "authorization": f"Bearer {_token(valkey, 'admin:runs/guarded')}"}
    )
    assert granted.status == 201
    assert granted.headers["cache-control"] == "no-store"
    assert granted.headers["stream-credentials"] not in gateway.log.text
    exposed = granted.headers.get("access-control-expose-headers", "")
    assert "stream-credentials" not in exposed


@pytest.mark.parametrize("value", ["999999999", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_retry_after_beyond_reason_is_honoured_for_a_minute(value: str) -> None:
    """By mistake, or by a clock that is wrong: the process would mint nothing any more."""
    assert _retry_after(value) == 60.0
