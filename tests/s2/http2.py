"""HTTP/2 as a server speaks it, without TLS: what the S2 SDK needs to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings


@dataclass(slots=True)
class Request:
    """A request, with its whole body; or, of a session, with the pieces as they come."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    pieces: asyncio.Queue[bytes | None] | None = None

    @property
    def is_session(self) -> bool:
        """Whether its body is answered while it still comes."""
        return self.method == "POST" and self.headers.get("content-type", "").startswith("s2s/")


@dataclass(slots=True)
class Answer:
    """An answer; ``status`` 0 cuts the connection instead."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | bytes = b""


Handler = Callable[[Request], Awaitable[Answer]]


class Connection:
    """One client's connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
    ) -> None:
        self._reader, self._writer, self._handler = reader, writer, handler
        configuration = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(configuration)
        self._requests: dict[int, Request] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._window = asyncio.Event()

    async def serve(self) -> None:
        """Until the client goes."""
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self._flush()
        except (OSError, h2.exceptions.ProtocolError):
            pass
        finally:
            for task in self._tasks.values():
                task.cancel()
            self._writer.close()

    def cut(self) -> None:
        """Reset it."""
        self._writer.transport.abort()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                request = Request(headers[":method"], headers[":path"], headers)
                self._requests[event.stream_id] = request
                if request.is_session:
                    request.pieces = asyncio.Queue()
                    self._start(event.stream_id, request)
            case h2.events.DataReceived():
                request = self._requests[event.stream_id]
                if request.pieces is None:
                    request.body += event.data
                else:
                    request.pieces.put_nowait(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                request = self._requests.pop(event.stream_id)
                if request.pieces is None:
                    self._start(event.stream_id, request)
                else:
                    request.pieces.put_nowait(None)
            case h2.events.StreamReset():
                self._requests.pop(event.stream_id, None)
                if reset := self._tasks.get(event.stream_id):
                    reset.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window.set()

    def _start(self, stream_id: int, request: Request) -> None:
        task = asyncio.create_task(self._answer(stream_id, request))
        self._tasks[stream_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(stream_id, None))

    async def _answer(self, stream_id: int, request: Request) -> None:
        with suppress(OSError, h2.exceptions.ProtocolError):
            answer = await self._handler(request)
            if answer.status == 0:
                self.cut()
                return
            headers = [(":status", str(answer.status)), *answer.headers.items()]
            self._h2.send_headers(stream_id, headers)
            self._flush()
            if isinstance(answer.body, bytes):
                await self._send(stream_id, answer.body)
            else:
                try:
                    async for piece in answer.body:
                        await self._send(stream_id, piece)
                except ConnectionAbortedError:
                    self.cut()
                    return
                except Exception:
                    self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                    self._flush()
                    return
            self._h2.end_stream(stream_id)
            self._flush()

    async def _send(self, stream_id: int, data: bytes) -> None:
        while data:
            room = self._h2.local_flow_control_window(stream_id)
            room = min(room, self._h2.max_outbound_frame_size)
            if room <= 0:
                self._window.clear()
                await self._window.wait()
                continue
            self._h2.send_data(stream_id, data[:room])
            data = data[room:]
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
