"""What a page does: sends messages, reads the stream of the answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import redis

from tests.gateway.serving import Answer, Gateway, running
from tests.servers.children import eventually
from tests.workers import Worker


def message(text: str, **more: Any) -> dict[str, Any]:
    """A user's message."""
    part = {"type": "text", "text": text}
    return {"id": uuid.uuid4().hex, "role": "user", "parts": [part], **more}


@dataclass(slots=True)
class Stream:
    """One UI message stream, read so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[Any] = field(default_factory=list)
    done: bool = False
    #: The answer was complete when the connection ended; and whether it has ended.
    clean: bool = False
    over: bool = False
    #: Of a Durable Stream: where it goes on, and whether it does.
    offset: str = "-1"
    closed: bool = False
    body: bytes = b""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def types(self) -> list[str]:
        return [chunk["type"] for chunk in self.chunks]

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")

    async def until(self, there: Any) -> None:
        """Wait until ``there(self)``."""
        async with asyncio.timeout(20):
            while not there(self):
                self.changed.clear()
                await self.changed.wait()


@dataclass(slots=True)
class Page:
    """A page with one chat."""

    gateway: Gateway
    agent: str = "echo"
    token: str | None = None
    chat: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def path(self) -> str:
        return f"/chat/{self.agent}"

    def ask(self, method: str, what: str) -> Answer:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return self.gateway.request(method, f"{self.path}/{self.chat}/{what}", None, headers)

    async def messages(self) -> Any:
        return (await asyncio.to_thread(self.ask, "GET", "messages")).document

    async def branches(self) -> list[Any]:
        """What is listed of the session's branches."""
        answer = await asyncio.to_thread(self.ask, "GET", "branches")
        assert answer.status == 200
        return list(answer.document["branches"])

    async def branch(self, branch_id: str) -> list[Any]:
        """A branch's messages."""
        answer = await asyncio.to_thread(self.ask, "GET", f"branches/{branch_id}")
        assert answer.status == 200
        return list(answer.document["messages"])

    async def stop(self, reply: str | None = None) -> Answer:
        """Stop whichever turn is active, or that of one answer."""
        what = "stop" if reply is None else f"stop?message={quote(reply)}"
        return await asyncio.to_thread(self.ask, "POST", what)

    @asynccontextmanager
    async def sending(self, text: str | None, **body: Any) -> AsyncIterator[Stream]:
        """Send a message (or the body given), and read the answer meanwhile."""
        messages = [] if text is None else [message(text)]
        values = {"id": self.chat, "messages": messages, "trigger": "submit-message", **body}
        data = json.dumps(values).encode()
        async with self._request("POST", self.path, data) as stream:
            yield stream

    async def send(self, text: str | None, **body: Any) -> Stream:
        """Send a message and read the whole answer."""
        async with self.sending(text, **body) as stream:
            await stream.until(lambda s: s.done or (s.status != 200 and s.status))
        return stream

    @asynccontextmanager
    async def resuming(self) -> AsyncIterator[Stream]:
        """What ``useChat`` does when it is loaded."""
        async with self._request("GET", f"{self.path}/{self.chat}/stream", b"") as stream:
            yield stream

    def refer(self, text: str, **body: Any) -> str:
        """Send a message, and only hear where its answer will be: a path."""
        values = {"id": self.chat, "messages": [message(text)], **body}
        headers = {"content-type": "application/json"}
        answer = self.gateway.request(
            "POST", f"{self.path}/durable", json.dumps(values).encode(), headers
        )
        assert answer.status == 201, answer
        assert answer.document == {"streamUrl": answer.headers["location"]}
        return answer.headers["location"]

    @asynccontextmanager
    async def following(self, address: str, offset: str = "-1") -> AsyncIterator[Stream]:
        """Read an answer as a Durable Stream, live, on this page's gateway."""
        path = f"{address}&live=sse&offset={offset}"
        async with self._request("GET", path, b"") as stream:
            yield stream

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: bytes) -> AsyncIterator[Stream]:
        stream = Stream()
        reading = asyncio.create_task(
            _read(self.gateway.port, method, path, body, stream, self.token)
        )
        try:
            await stream.until(lambda s: s.status)
            yield stream
        finally:
            reading.cancel()


async def _read(
    port: int, method: str, path: str, body: bytes, stream: Stream, token: str | None
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        if token:
            head += f"authorization: Bearer {token}\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        stream.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        stream.status = int(lines[0].split()[1])
        stream.changed.set()
        if stream.headers.get("transfer-encoding") != "chunked":
            stream.body = await reader.read()
            return
        pending = b""
        while size := int((await reader.readline()).strip() or b"-1", 16):
            if size < 0:
                return
            pending += (await reader.readexactly(size + 2))[:-2]
            *events, pending = pending.split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    stream.done = True
                elif event.startswith(b"data: "):
                    stream.chunks.append(json.loads(event[6:]))
                elif event.startswith(b"event: "):
                    _hear(stream, event)
            stream.changed.set()
        stream.clean = await reader.readline() == b"\r\n"
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        stream.over = True
        stream.changed.set()
        writer.close()


def _hear(stream: Stream, event: bytes) -> None:
    """An event of a Durable Stream."""
    kind, data = event.split(b"\n")[:2]
    value = json.loads(data.removeprefix(b"data:"))
    if kind == b"event: data":
        stream.chunks += value
        return
    stream.offset = value["streamNextOffset"]
    stream.closed = stream.done = value.get("streamClosed", False)


def texts(messages: list[Any]) -> list[str]:
    """What the messages say, in a few characters: ``["hello", "hello"]``."""
    return ["".join(part.get("text", "") for part in each["parts"]).strip() for each in messages]


class Gates:
    """The test's side of :func:`tests.apps.chat_app.pass_gate`."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)

    def open(self, name: str) -> None:
        self._redis.rpush(f"open:{name}", 1)

    async def reached(self, name: str) -> int:
        """Wait until somebody is at the gate; its process id."""

        def take() -> Any:
            return self._redis.lpop(f"at:{name}")

        found: list[Any] = []

        def there() -> bool:
            found.append(take())
            return found[-1] is not None

        await asyncio.to_thread(eventually, there, f"somebody at the gate {name}")
        return int(found[-1])

    def turns(self, session_id: str) -> list[list[str]]:
        """What ``alone`` has said: enter or leave, the turn, and the attempt."""
        told = self._redis.lrange(f"turns:{session_id}", 0, -1)
        return [each.decode().split() for each in told]

    def hooks(self, session_id: str) -> list[str]:
        return [each.decode() for each in self._redis.lrange(f"hooks:{session_id}", 0, -1)]


SERVE = ("-m", "celery", "-A", "tests.apps.chat_app", "streams", "serve")


@contextmanager
def serving_agents(agents: Worker, *arguments: str, **env: str) -> Iterator[Gateway]:
    """A gateway of the app whose workers answer, without tokens unless the arguments say so."""
    environment = {
        "TEST_BROKER_URL": agents.broker_url,
        "TEST_RESULT_BACKEND": agents.result_backend,
        "CELERY_STREAMS_CHAT_AGENTS": (
            "echo=tests.apps.chat_app.echo,stubborn=tests.apps.chat_app.stubborn,"
            "slow=tests.apps.chat_app.slow,scripted=tests.apps.chat_app.scripted,"
            "keeper=tests.apps.chat_app.keeper,renamed=tests.apps.chat_app.renamed"
        ),
        **agents.env,
        **env,
    }
    arguments = ("--port", "0", *(arguments or ("--insecure",)))
    with running(agents.streams_url, *arguments, command=SERVE, env=environment) as gateway:
        eventually(gateway.answers, "the gateway answers")
        yield gateway
