"""HTTP connections of ``streams serve``: uvicorn's, with the bounds that it leaves out.

A client that opens a connection and says nothing, or sends its request a byte at a time, holds
it for ever under uvicorn's httptools parser, which also takes headers of any size. Here a
request's head has a time and a size. And the application can cut a connection off: uvicorn has
no other end for an answer that will not be completed than an error in its log.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from celery_streams.gateway.replies import CUT_OFF, WRITE

#: Seconds for a request's line and headers, from the connection or the request's first byte on.
HEAD_TIMEOUT = 10.0
#: Seconds an idle connection is kept for its client's next request: longer than the 60 s of
#: most load balancers, which must be the ones to close it.
KEEP_ALIVE = 75
#: Line ends, the method and the version, beside what the settings bound.
_SLACK = 4096
#: Silence on a connection is looked into after this many seconds, every so many, so often; a
#: peer that acknowledges nothing for ``_UNACKNOWLEDGED`` seconds is gone.
_IDLE, _INTERVAL, _PROBES, _UNACKNOWLEDGED = 30, 10, 3, 60

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request heads are bounded; make a subclass with :func:`bounded`.

    One timer runs while the client owes a head, or the rest of a body whose request has been
    answered already. A body that is still wanted is the application's to bound.
    """

    head_timeout = HEAD_TIMEOUT
    head_bytes = 64 * 1024

    _timer: asyncio.TimerHandle | None = None
    _head_read = 0
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: the time for its request runs."""
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        if self._timer is None and not self._in_body and self._answered():
            self._start()
        super().data_received(data)
        if self._timer is None or self._in_body:
            return
        self._head_read += len(data)
        if self._head_read > self.head_bytes and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop()
        self._in_body = True
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            scope: Any = self.cycle.scope
            scope[CUT_OFF] = partial(self.cut_off, self.cycle)
            scope[WRITE] = partial(self.write_part, self.cycle)

    def on_message_complete(self) -> None:
        """The body is there, too."""
        super().on_message_complete()
        self._in_body = False
        if self._timer is not None:  # it had been answered before
            self._stop()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """The answer is sent, perhaps to a request that is not."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._start()

    def cut_off(self, cycle: RequestResponseCycle | None = None) -> None:
        """Break the connection now, dropping what is unsent; the answer ``cycle`` ends here."""
        for ended in (cycle, self.cycle):
            if ended is not None:
                ended.disconnected = True
                ended.message_event.set()
        self.transport.abort()

    def write_part(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Send a part of the answer ``cycle`` now; false if that is not possible."""
        if (
            cycle is not self.cycle
            or cycle.disconnected
            or cycle.response_complete
            or not (cycle.response_started and cycle.chunked_encoding)
            or self.flow.write_paused
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _start(self) -> None:
        self._head_read = 0
        self._timer = self.loop.call_later(self.head_timeout, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.close()


def bounded(head_bytes: int, head_timeout: float = HEAD_TIMEOUT) -> type[BoundedProtocol]:
    """The protocol for heads of about ``head_bytes`` in ``head_timeout`` seconds."""
    bounds: dict[str, Any] = {"head_bytes": head_bytes + _SLACK, "head_timeout": head_timeout}
    return type("GatewayProtocol", (BoundedProtocol,), bounds)


def listen(host: str, port: int, *, backlog: int = 2048) -> socket.socket:
    """A listening socket whose connections notice peers that have vanished.

    Accepted connections inherit its options.

    Raises:
        OSError: the address is taken, or is none of this host.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set(listener, "TCP_KEEPIDLE" if sys.platform != "darwin" else "TCP_KEEPALIVE", _IDLE)
        _set(listener, "TCP_KEEPINTVL", _INTERVAL)
        _set(listener, "TCP_KEEPCNT", _PROBES)
        _set(listener, "TCP_USER_TIMEOUT", _UNACKNOWLEDGED * 1000)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _set(listener: socket.socket, name: str, value: int) -> None:
    option = getattr(socket, name, None)
    if option is not None:
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
