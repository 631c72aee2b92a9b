"""A server that is far away: every byte takes its time, and as many as like are under way."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Self

_CHUNK = 64 * 1024
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class Distance:
    """Forwards ``port`` (its own) to ``target``; a context manager, usable from sync tests.

    Half of ``round_trip`` (seconds) passes in each direction. Unlike :meth:`Proxy.delay` it
    limits no rate: what follows is under way meanwhile.
    """

    def __init__(self, target: int, round_trip: float, *, host: str = "127.0.0.1") -> None:
        self.target = target
        self.round_trip = round_trip
        self.port = 0
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="distance", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accepted, self._host, 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            back, forth = await asyncio.open_connection(self._host, self.target)
            try:
                await asyncio.gather(
                    self._carry(reader, writer, forth), self._carry(back, forth, writer)
                )
            finally:
                forth.close()
        writer.close()

    async def _carry(
        self, source: asyncio.StreamReader, its: asyncio.StreamWriter, sink: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        last = 0.0
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if _QUICKACK is not None:  # a server without TCP_NODELAY waits for it
                    its.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
                last = max(last + 1e-6, loop.time() + self.round_trip / 2)  # in order
                loop.call_at(last, sink.write, data)
        await asyncio.sleep(self.round_trip / 2)
        with suppress(OSError):
            sink.close()
