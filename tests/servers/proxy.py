"""A TCP proxy on 127.0.0.1 that breaks connections exactly where a test asks for it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

from tests.servers.frames import Frames

Direction = Literal["up", "down"]
T = TypeVar("T")

_CHUNK = 64 * 1024
_HEAD = 4096
#: close() resets the connection at once, and drops what was not sent yet.
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _ReplyCut:
    """Cut before the reply to the ``nth`` command (from now) that contains ``marker``."""

    marker: bytes
    nth: int
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _ByteCut:
    """Cut once ``left`` more bytes have passed."""

    left: int
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class Held:
    """Commands that a proxy holds back; see :meth:`Proxy.hold`."""

    marker: bytes
    #: Set once there is one.
    caught: threading.Event = field(default_factory=threading.Event)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    commands: int = 0
    replies: int = 0
    head: bytes = b""
    #: Number of the command whose reply must not pass, and whom to tell.
    doomed: tuple[int, _ReplyCut] | None = None
    command_frames: Frames = field(default_factory=Frames)
    reply_frames: Frames = field(default_factory=Frames)

    def reset(self) -> None:
        """Reset both sides, but let one that is closing in order finish."""
        for writer in (self.client, self.server):
            if not writer.is_closing():
                with suppress(OSError):
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()


class Proxy:
    """Forwards ``port`` (its own) to ``target``; a context manager, usable from sync tests.

    Every method has taken effect when it returns. ``up`` is client to server, ``down`` the
    other way. Triggers fire once; each returns an event that is set when it has fired.
    ``connections`` counts the accepted ones, ``bytes`` what was forwarded. ``resp``: what is
    spoken is Redis's protocol, so that there are commands and replies.
    """

    def __init__(self, target: int, *, host: str = "127.0.0.1", resp: bool = True) -> None:
        self.target = target
        self._resp = resp
        self.port = 0
        self.connections = 0
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self._host = host
        self._delay: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._open: set[_Connection] = set()
        self._reply_cuts: list[_ReplyCut] = []
        self._byte_cuts: dict[Direction, list[_ByteCut]] = {"up": [], "down": []}
        self._holds: list[Held] = []
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._flowing: dict[Direction, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- faults ---------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset every connection now; returns how many there were."""

        def cut_all() -> int:
            count = len(self._open)
            for connection in list(self._open):
                self._drop(connection)
            return count

        return self._do(cut_all)

    def cut_after(self, count: int, direction: Direction) -> threading.Event:
        """Let ``count`` more bytes pass in ``direction``, then reset the connection they use."""
        cut = _ByteCut(count)
        self._do(lambda: self._byte_cuts[direction].append(cut))
        return cut.done

    def cut_reply_to(self, marker: bytes, *, nth: int = 1) -> threading.Event:
        """Reset a connection when the server has answered the ``nth`` command from now on that
        contains ``marker`` (in its first 4096 bytes): it was applied, the client cannot know.

        Replies to commands before it pass. Not for connections that subscribe.
        """
        cut = _ReplyCut(marker, nth)
        self._do(lambda: self._reply_cuts.append(cut))
        return cut.done

    def stall(self, direction: Direction | None = None) -> None:
        """Forward nothing (in one direction), keep connections open."""

        def stop() -> None:
            for each in self._directions(direction):
                self._flowing[each].clear()

        self._do(stop)

    def resume(self, direction: Direction | None = None) -> None:
        """Forward again, what was held back included."""

        def flow() -> None:
            for each in self._directions(direction):
                self._flowing[each].set()

        self._do(flow)

    def hold(self, marker: bytes) -> Held:
        """Hold back what contains ``marker``, and what comes after it on the same connection.

        Until :meth:`release`, even if the client has given up meanwhile. Other connections go on.
        """
        held = Held(marker)
        self._do(lambda: self._holds.append(held))
        return held

    def release(self, held: Held) -> None:
        """Let what was held back arrive, and hold nothing any more."""

        def let_go() -> None:
            self._holds.remove(held)
            held.flowing.set()

        self._do(let_go)

    def refuse(self) -> None:
        """Reset every connection, and each new one as soon as it is made."""
        self._do(lambda: setattr(self, "_refusing", True))
        self.cut()

    def accept(self) -> None:
        """Undo :meth:`refuse`."""
        self._do(lambda: setattr(self, "_refusing", False))

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Hold each piece of data for ``seconds`` before it passes. 0: no more."""

        def set_delay() -> None:
            for each in self._directions(direction):
                self._delay[each] = seconds

        self._do(set_delay)

    @property
    def open_connections(self) -> int:
        return self._do(lambda: len(self._open))

    # -- life -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._server = started.result(timeout=10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> asyncio.Server:
        for direction in ("up", "down"):
            event = self._flowing[direction] = asyncio.Event()
            event.set()
        server = await asyncio.start_server(self._accepted, self._host, 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _shut_down(self) -> None:
        self._server.close()
        for connection in list(self._open):
            self._drop(connection)
        for event in (*self._flowing.values(), *(held.flowing for held in self._holds)):
            event.set()
        self._delay = {"up": 0.0, "down": 0.0}
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            result = action()
            await asyncio.sleep(0)  # an aborted transport closes in the loop's next turn
            return result

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(timeout=10)

    def _directions(self, direction: Direction | None) -> tuple[Direction, ...]:
        return ("up", "down") if direction is None else (direction,)

    # -- forwarding -----------------------------------------------------------------------

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self.target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, to_server)
        self._open.add(connection)
        try:
            pumps = (
                self._pump(connection, reader, "up"),
                self._pump(connection, from_server, "down"),
            )
            await asyncio.gather(*pumps)
        finally:
            self._drop(connection)

    async def _pump(
        self, connection: _Connection, source: asyncio.StreamReader, direction: Direction
    ) -> None:
        sink = connection.server if direction == "up" else connection.client
        try:
            while data := await source.read(_CHUNK):
                if self._delay[direction]:
                    await asyncio.sleep(self._delay[direction])
                await self._flowing[direction].wait()
                if direction == "up":
                    await self._held_back(data)
                allowed, cut = self._allowed(connection, data, direction)
                self.bytes[direction] += len(allowed)
                sink.write(allowed)
                await sink.drain()
                if cut is not None:
                    self._drop(connection, after=sink)
                    cut.set()
                    return
            self._drop(connection, after=sink)
        except OSError:
            self._drop(connection)

    async def _held_back(self, data: bytes) -> None:
        for held in list(self._holds):
            if held.marker in data:
                held.caught.set()
                await held.flowing.wait()

    def _allowed(
        self, connection: _Connection, data: bytes, direction: Direction
    ) -> tuple[bytes, threading.Event | None]:
        """How much of ``data`` passes, and the trigger that cuts after it."""
        if not self._resp:
            pass
        elif direction == "up":
            self._count_commands(connection, data)
        else:
            data, fired = self._until_doomed(connection, data)
            if fired is not None:
                return data, fired
        for cut in self._byte_cuts[direction]:
            if cut.left <= len(data):
                self._byte_cuts[direction].remove(cut)
                return data[: cut.left], cut.done
            cut.left -= len(data)
        return data, None

    def _count_commands(self, connection: _Connection, data: bytes) -> None:
        start = 0
        for end in connection.command_frames.ends(data):
            head = (connection.head + data[start:end])[:_HEAD]
            connection.head, start = b"", end
            self._match(connection, head)
            connection.commands += 1
        connection.head = (connection.head + data[start:])[:_HEAD]

    def _match(self, connection: _Connection, head: bytes) -> None:
        for cut in list(self._reply_cuts):
            if cut.marker in head:
                cut.nth -= 1
                if cut.nth == 0:
                    self._reply_cuts.remove(cut)
                    connection.doomed = connection.doomed or (connection.commands, cut)

    def _until_doomed(
        self, connection: _Connection, data: bytes
    ) -> tuple[bytes, threading.Event | None]:
        passed = 0
        for end in connection.reply_frames.ends(data):
            if connection.doomed is not None and connection.replies == connection.doomed[0]:
                return data[:passed], connection.doomed[1].done
            connection.replies += 1
            passed = end
        if connection.doomed is not None and connection.replies == connection.doomed[0]:
            return data[:passed], None  # hold back the beginning of the doomed reply
        return data, None

    def _drop(self, connection: _Connection, *, after: asyncio.StreamWriter | None = None) -> None:
        """Reset the connection; what was written to ``after`` still arrives."""
        if after is not None:
            after.close()
        self._open.discard(connection)
        connection.reset()
