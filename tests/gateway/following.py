"""A live reader of the gateway that remembers everything, and gateways to read from."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from tests.gateway.serving import Gateway, running, serving
from tests.servers import Proxy
from tests.servers.children import eventually
from tests.workers import BROKER_DB, RESULT_DB

TOKEN_SECRET = "a secret of thirty-two bytes...."


class Follower:
    """One SSE read, from ``offset`` on; an async context manager.

    ``values`` are JSON values, or the decoded texts or bytes of the events; ``controls`` the
    control events; ``clean`` whether the answer was complete when the connection ended.
    """

    def __init__(self, port: int, path: str, offset: str = "-1", **headers: str) -> None:
        self.port, self.path, self.offset = port, path, offset
        self.headers = headers
        self.values: list[Any] = []
        self.controls: list[dict[str, Any]] = []
        self.answered: dict[str, str] = {}
        self.status = 0
        self.clean = self.over = False
        self.body = b""
        self._changed = asyncio.Condition()

    @property
    def closed(self) -> bool:
        return bool(self.controls) and self.controls[-1].get("streamClosed", False)

    @property
    def states(self) -> list[str]:
        """The run's states as they changed."""
        seen: list[str] = []
        for control in self.controls:
            if control.get("runState", seen[-1:]) not in ([], *seen[-1:]):
                seen.append(control["runState"])
        return seen

    async def until(self, true: Callable[[Self], object], what: str, timeout: float = 30) -> None:
        """Wait until ``true(self)`` is, or fail."""
        try:
            async with self._changed, asyncio.timeout(timeout):
                await self._changed.wait_for(lambda: true(self))
        except TimeoutError:
            raise AssertionError(
                f"not within {timeout:g} s: {what}; status {self.status}, over {self.over}, "
                f"{len(self.values)} values, {self.controls[-2:]}, {self.body[-300:]!r}"
            ) from None

    async def ready(self) -> Self:
        await self.until(lambda self: self.controls or self.over, "the first control event")
        return self

    async def ended(self, timeout: float = 30) -> Self:
        await self.until(lambda self: self.over, "the end of the answer", timeout)
        return self

    async def leave(self, *, reset: bool = True) -> None:
        """Break the connection, by a reset or in silence."""
        if reset:
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=1 << 25
        )
        query = "&" if "?" in self.path else "?"
        offset = f"&offset={self.offset}" if self.offset else ""
        head = [f"GET {self.path}{query}live=sse{offset} HTTP/1.1", f"host: 127.0.0.1:{self.port}"]
        head += [f"{name.replace('_', '-')}: {value}" for name, value in self.headers.items()]
        self._writer.write("\r\n".join([*head, "", ""]).encode())
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._writer.transport.abort()

    async def _read(self) -> None:
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            self.status = int(head[0].split()[1])
            self.answered = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            if "content-length" in self.answered:
                self.body = await self._reader.readexactly(int(self.answered["content-length"]))
                self.clean = True
            elif self.status != 204:
                await self._read_chunks()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.over = True
            await self._tell()

    async def _read_chunks(self) -> None:
        pending = b""
        while size := int((await self._reader.readline()).strip() or b"-1", 16):
            if size < 0:
                return
            pending += (await self._reader.readexactly(size + 2))[:-2]
            *events, pending = pending.split(b"\n\n")
            for event in events:
                self._take(event)
            await self._tell()
        self.clean = await self._reader.readline() == b"\r\n"

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _take(self, event: bytes) -> None:
        kind, lines = b"", []
        for line in event.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                kind = value
            elif field == b"data":
                lines.append(value)
        data = b"\n".join(lines)
        if kind == b"control":
            self.controls.append(json.loads(data))
            self.offset = self.controls[-1]["streamNextOffset"]
        elif kind == b"data" and "stream-sse-data-encoding" in self.answered:
            self.values.append(base64.b64decode(data, validate=True))
        elif kind == b"data":
            try:
                self.values += json.loads(data)
            except ValueError:
                self.values.append(data.decode())


@contextmanager
def serving_runs(url: str, **env: str) -> Iterator[Gateway]:
    """A gateway of the app whose workers write, so that it can ask the result backend."""
    with serving_app("tests.apps.lifecycle_app", url, **env) as gateway:
        yield gateway


@contextmanager
def serving_app(app: str, url: str, **env: str) -> Iterator[Gateway]:
    """A gateway of the app in the module ``app``."""
    database = url.rpartition("/")[0]
    env = {
        "TEST_BROKER_URL": f"{database}/{BROKER_DB}",
        "TEST_RESULT_BACKEND": f"{database}/{RESULT_DB}",
        "CELERY_STREAMS_RECHECK_INTERVAL": "0.5",
        **env,
    }
    command = ("-m", "celery", "-A", app, "streams", "serve")
    with running(url, "--port", "0", "--insecure", command=command, env=env) as gateway:
        eventually(gateway.answers, "the gateway answers")
        yield gateway


@contextmanager
def through(target: int, **env: str) -> Iterator[tuple[Proxy, Gateway]]:
    """A gateway whose Redis is behind a proxy."""
    with Proxy(target) as proxy, serving(f"redis://127.0.0.1:{proxy.port}/0", **env) as gateway:
        yield proxy, gateway


def create(gateway: Gateway, path: str, *values: Any, **headers: str) -> None:
    """PUT a JSON stream."""
    body = json.dumps(list(values)).encode() if values else None
    sent = {"content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    answer = gateway.request("PUT", path, body, sent)
    assert answer.status == 201, answer


def subscribed(client: Any) -> list[str]:
    """The sharded channels somebody listens to."""
    return [name.decode() for name in client.execute_command("PUBSUB SHARDCHANNELS")]
