"""How an answer leaves ``streams serve``: in few packets, and as its client can read it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from celery_streams.gateway.replies import Send

#: Bytes of an answer that take several packets anyway.
_LARGE = 64 * 1024


class Sending:
    """The ``send`` of one answer, in place of uvicorn's own.

    uvicorn writes an answer's head as soon as it has it, which makes two packets, and two system
    calls, of the smallest answer. Here it leaves with what comes after it: the gateway never
    sends a head before it has something to say.

    Without ``chunks`` (HTTP/1.0, which knows none) an answer without a length ends with its
    connection instead (RFC 9112, 6.1 and 6.3).
    """

    __slots__ = ("_chunks", "_cycle", "_endless", "_gathered", "_head", "_on_response", "_send")

    def __init__(self, cycle: RequestResponseCycle, *, chunks: bool) -> None:
        self._cycle = cycle
        self._send: Send = cycle.send  # type: ignore[assignment]
        self._on_response = cycle.on_response
        cycle.on_response = self._complete
        self._chunks = chunks
        self._endless = False
        self._head: Any = None
        self._gathered: _Gathered | None = None

    async def __call__(self, message: Any) -> None:
        """Send a message, as ASGI has it."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if not self._cycle.keep_alive:  # older versions of uvicorn do not say so
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            if not self._chunks:
                self._endless = all(name.lower() != b"content-length" for name, _ in headers)
                if self._endless:
                    self._cycle.chunked_encoding = False
            self._head = message
            return
        if self._endless:  # so that uvicorn neither misses nor minds anything
            self._cycle.expected_content_length = len(message.get("body", b""))
        if self._head is None:
            await self._send(message)
            return
        head, self._head = self._head, None
        if self._cycle.flow.write_paused:  # nothing may be held back while waiting
            await self._send(head)
            await self._send(message)
            return
        self._gathered = _Gathered(self._cycle.transport)
        self._cycle.transport = cast("asyncio.Transport", self._gathered)
        try:
            await self._send(head)
            await self._send(message)
        finally:
            self._flush()

    def _complete(self) -> None:
        """The last message: what it has written must be on its way before the next request is."""
        self._flush()
        self._on_response()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            self._cycle.transport = gathered.transport
            gathered.flush()


class _Gathered:
    """A transport that holds back what is written to it, and that it is to be closed."""

    __slots__ = ("_closed", "_parts", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._parts: list[bytes] = []
        self._closed = False

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        self._closed = True

    def is_closing(self) -> bool:
        return self._closed or self.transport.is_closing()

    def flush(self) -> None:
        if sum(map(len, self._parts)) > _LARGE:
            for part in self._parts:  # copying it costs more than a packet does
                self.transport.write(part)
        elif self._parts:
            self.transport.write(b"".join(self._parts))
        if self._closed:
            self.transport.close()
