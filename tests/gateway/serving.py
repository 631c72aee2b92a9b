"""Gateways as processes, and a client that notices how a connection ends."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.servers.children import end, eventually, spawn
from tests.workers import ROOT, Log

SERVE = ("-m", "celery", "-A", "tests.apps.gateway_app", "streams", "serve")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True, kw_only=True)
class Gateway:
    """A process that says ``http://127.0.0.1:<port>`` once it listens."""

    process: subprocess.Popen[bytes]
    log: Log
    port: int = 0

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def append(self, path: str, *values: Any) -> None:
        """POST JSON values."""
        body = json.dumps(list(values)).encode()
        answer = self.request("POST", path, body, {"content-type": "application/json"})
        assert answer.status in (200, 204), answer

    def answers(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self.request("GET", "/healthz").status == 200
        return False

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes of a supervisor."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []


def answer(connection: socket.socket) -> Answer:
    """The whole of the next answer, head and body, however many packets bring it.

    Without a length its body is all that comes until the connection ends.
    """
    received = bytearray()

    def more() -> bool:
        data = connection.recv(65536)
        received.extend(data)
        return bool(data)

    while (size := received.find(b"\r\n\r\n")) < 0:
        if not more():
            raise ConnectionError(f"the connection ended in {bytes(received)!r}")
    status, *lines = received[:size].decode("latin-1").split("\r\n")
    del received[: size + 4]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    code = int(status.split()[1])
    if code not in (204, 304):
        length = int(headers.get("content-length", -1))
        while len(received) != length and more():
            pass
    return Answer(code, headers, bytes(received))


async def ask(app: Any, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """One request straight to the application."""
    sent: list[Any] = []
    path, _, query = path.partition("?")
    packed = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(received, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "headers": packed, "scheme": "http",
    }  # fmt: skip
    await app(scope, receive, send)
    answered = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, b"".join(m["body"] for m in sent[1:]))


def start(command: tuple[str, ...], url: str, **env: str) -> Gateway:
    """Start ``python <command>`` with the store ``url``; returns at once."""
    ours = ("CELERY_STREAMS_", "CELERY_BROKER", "CELERY_RESULT")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    paths = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "CELERY_STREAMS_URL": url}
    process = spawn(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**kept, **paths, **env},
        cwd=ROOT,
    )
    return Gateway(process=process, log=Log(process))


@contextmanager
def running(
    url: str,
    *arguments: str,
    command: tuple[str, ...] = SERVE,
    env: Mapping[str, str] | None = None,
) -> Iterator[Gateway]:
    """A gateway that answers; ended, if it has not been, by SIGTERM."""
    gateway = start((*command, *arguments), url, **(env or {}))
    try:
        found = _ADDRESS.search(gateway.log.wait_for("http://127.0.0.1:"))
        while found is None:  # the line was not complete
            found = _ADDRESS.search(gateway.log.wait_for("http://127.0.0.1:"))
        gateway.port = int(found[1])
        yield gateway
    finally:
        end(gateway.process)
        gateway.log.join()


@contextmanager
def serving(url: str, *arguments: str, **env: str) -> Iterator[Gateway]:
    """``celery streams serve``, without tokens unless the arguments say otherwise."""
    arguments = ("--port", "0", *(arguments or ("--insecure",)))
    with running(url, *arguments, env=env) as gateway:
        eventually(gateway.answers, "the gateway answers")
        yield gateway


@dataclass(slots=True)
class Reading:
    """What one live read has brought so far."""

    values: list[Any] = field(default_factory=list)
    offset: str = "-1"
    #: The stream itself has ended.
    closed: bool = False
    #: The answer was complete when the connection ended.
    clean: bool = False
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


async def read_live(
    port: int,
    path: str,
    reading: Reading,
    *,
    token: str | None = None,
    changed: Callable[[], None] = lambda: None,
) -> None:
    """One SSE read of a JSON stream from ``reading.offset`` on, to the end of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        authorization = f"authorization: Bearer {token}\r\n" if token else ""
        writer.write(
            f"GET {path}?live=sse&offset={reading.offset} HTTP/1.1\r\n"
            f"host: 127.0.0.1:{port}\r\n{authorization}\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        reading.status = int(head[0].split()[1])
        reading.headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        reading.clean = False
        pending = b""
        while size := int((await reader.readline()).strip() or b"-1", 16):
            if size < 0:
                return
            pending += (await reader.readexactly(size + 2))[:-2]
            *events, pending = pending.split(b"\n\n")
            for event in events:
                _heard(reading, event.decode())
            changed()
        reading.clean = await reader.readline() == b"\r\n"
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


def _heard(reading: Reading, event: str) -> None:
    fields = dict(line.split(":", 1) for line in event.split("\n") if not line.startswith(":"))
    if fields.get("event") == " data":
        reading.values += json.loads(fields["data"])
    elif fields.get("event") == " control":
        control = json.loads(fields["data"])
        reading.offset = control["streamNextOffset"]
        reading.closed = control.get("streamClosed", False)
