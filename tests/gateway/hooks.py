"""What the tests of subscriptions share: gateways on one event loop, and a webhook's receiver."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from celery_streams import Streams
from celery_streams.gateway import create_app
from tests.gateway.serving import Answer, ask

CONTROL = "/v1/stream/__ds"
SUBS = f"{CONTROL}/subscriptions"


async def eventually(true: Callable[[], Any], what: str, *, timeout: float = 15.0) -> Any:
    """Wait until ``true()`` (or what it resolves to) is; for other processes' states."""
    end = asyncio.get_running_loop().time() + timeout
    while True:
        value = true()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.02)


@dataclass
class Receiver:
    """A webhook's receiver on 127.0.0.1; ``answer`` is called with each request's document."""

    answer: Callable[[dict[str, Any]], tuple[int, bytes]] = lambda _: (200, b'{"done": true}')
    port: int = 0
    delay: float = 0.0
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
            headers = {k.lower(): v.strip() for k, _, v in (e.partition(":") for e in head if e)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append((headers, body))
            if self.delay:
                await asyncio.sleep(self.delay)
            status, answer = self.answer(json.loads(body))
            more = b"location: http://127.0.0.1:1/\r\n" if 300 <= status < 400 else b""
            writer.write(
                b"HTTP/1.1 %d x\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, more, len(answer), answer)
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass
class Node:
    """One gateway, asked directly."""

    app: Any
    streams: Streams

    async def ask(self, method: str, path: str, document: Any = None, **headers: str) -> Answer:
        body = b"" if document is None else json.dumps(document).encode()
        headers = {"host": "gw.example", "content_type": "application/json", **headers}
        return await ask(self.app, method, path, body, **headers)

    async def put(self, path: str, *values: Any) -> None:
        answer = await self.ask("PUT", f"/v1/stream/{path}", list(values))
        assert answer.status in (200, 201), answer

    async def post(self, path: str, *values: Any) -> None:
        answer = await self.ask("POST", f"/v1/stream/{path}", list(values))
        assert answer.status in (200, 204), answer

    async def read(self, path: str) -> Any:
        return (await self.ask("GET", f"/v1/stream/{path}")).document

    async def subscribe(self, name: str, status: Any = 201, **document: Any) -> Any:
        document = {"lease_ttl_ms": 1000, **document}
        answer = await self.ask("PUT", f"{SUBS}/{name}", document)
        assert answer.status == status, answer
        return answer.document

    async def describe(self, name: str) -> Any:
        answer = await self.ask("GET", f"{SUBS}/{name}")
        assert answer.status == 200, answer
        return answer.document

    async def acked(self, name: str) -> dict[str, int]:
        found = await self.describe(name)
        return {each["path"]: int(each["acked_offset"]) for each in found["streams"]}

    async def act(self, name: str, what: str, token: str = "", **document: Any) -> Answer:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.ask("POST", f"{SUBS}/{name}/{what}", document, **headers)


@asynccontextmanager
async def nodes(url: str, count: int = 1, **settings: Any) -> AsyncIterator[list[Node]]:
    """Gateways that know nothing of each other but their Redis."""
    settings = {"gateway_webhook_localhost": True, "secret": "test secret of 32 bytes .......",
                **settings}  # fmt: skip
    insecure = settings.pop("insecure", True)
    all_of_them = []
    for _ in range(count):
        streams = Streams(url=url, **settings)
        all_of_them.append(Node(create_app(streams, insecure=insecure), streams))
    try:
        yield all_of_them
    finally:
        for node in all_of_them:
            await node.app.aclose()
            node.streams.close()


def verified(headers: dict[str, str], body: bytes, jwks: Any) -> bool:
    """Whether the request carries a good signature by one of the keys."""
    parts = dict(part.split("=", 1) for part in headers["webhook-signature"].split(","))
    (jwk,) = [key for key in jwks["keys"] if key["kid"] == parts["kid"]]
    key = Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"]))
    key.verify(_bytes(parts["ed25519"]), parts["t"].encode() + b"." + body)
    return True


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
