"""HTTP connections of ``streams serve``: uvicorn's, with the bounds that it leaves out.

A client that opens a connection and says nothing, or sends its request a byte at a time, holds
it for ever under uvicorn's httptools parser, which also takes headers of any size. Here a
request's head has a time and a size, and what is refused before there is a request is refused
like everything else, with a problem document. And the application can cut a connection off:
uvicorn has no other end for an answer that will not be completed than an error in its log.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import CUT_OFF, FULL, WRITE, Receive
from celery_streams.gateway.sending import Sending

#: Seconds for a request's line and headers, from the connection or the request's first byte on.
HEAD_TIMEOUT = 10.0
#: Seconds for it on a connection that came when there were enough.
_LATE_HEAD_TIMEOUT = 2.0
#: Seconds an idle connection is kept for its client's next request: longer than the 60 s of
#: most load balancers, which must be the ones to close it.
KEEP_ALIVE = 75
#: Line ends, the method, the version and a target's scheme, beside what the settings bound.
HEAD_SLACK = 4096
#: Requests of one connection that may wait for the answer before theirs.
_PIPELINED = 64
#: Bytes of a URL that its parser can count.
_COUNTABLE = 0xFFFF
#: What a client still sends after a refusal is read for so many seconds, up to so many bytes:
#: closing at once would reset the connection, perhaps before the client has read why.
_LINGER, _LINGER_BYTES = 2.0, 1 << 20
#: Silence on a connection is looked into after this many seconds, every so many, so often; a
#: peer that acknowledges nothing for ``_UNACKNOWLEDGED`` seconds is gone.
_IDLE, _INTERVAL, _PROBES, _UNACKNOWLEDGED = 30, 10, 3, 60


Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take, and what it is told beyond that.

    Args:
        refusal: a problem, and headers to send with it, as the bytes of a whole answer, after
            which the connection closes.
        head_bytes: of a request's line and headers.
        url_bytes: of its target.
        connections: how many are served at a time; later ones are told to come back.
        head_timeout: seconds for a request's line and headers.
    """

    refusal: Callable[[Problem, Headers], bytes]
    head_bytes: int
    url_bytes: int
    connections: int
    head_timeout: float = HEAD_TIMEOUT


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request heads are bounded; make a subclass with :func:`bounded`.

    One timer runs while the client owes a head, or the rest of a body whose request has been
    answered already. A body that is still wanted is the application's to bound.
    """

    bounds: Bounds

    _timer: asyncio.TimerHandle | None = None
    _head_read = 0
    _in_body = False
    #: Bytes of a body's framing (trailers, chunk extensions) since its last content.
    _framing_read = 0
    #: A request has ended in what is being parsed.
    _ended = False
    #: It came when there were enough.
    _late = False
    #: What is wrong with the head that is being parsed, if that is known.
    _problem: Problem | None = None
    #: Bytes read since a refusal; ``None``: nothing has been refused.
    _refused: int | None = None
    #: The client sends nothing more, but may still read.
    _half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: the time for its request runs."""
        super().connection_made(transport)
        #: Requests in the order in which they came; only the first is being answered.
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._late = len(self.connections) > self.bounds.connections
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop()
        for cycle in self._unanswered:  # uvicorn tells the last one only
            _disconnect(cycle)
        super().connection_lost(exc)
        for cycle in self._unanswered:
            _release(cycle)

    def eof_received(self) -> bool:  # type: ignore[override]
        """It will send nothing more: it may have gone, or it waits for its answers.

        Both look the same. So whatever ends by itself is still answered; who waits for the
        client to go (a live read) is told that it has.
        """
        if self._answered() or self._in_body:
            return False
        self._half_closed = True
        for cycle in self._unanswered:
            cycle.message_event.set()
        return True

    def left(self, cycle: RequestResponseCycle) -> None:
        """The client of a live read has gone, as far as can be told: end its connection."""
        _disconnect(cycle)
        self.transport.close()

    @property
    def half_closed(self) -> bool:
        """Whether the client has said that it sends nothing more."""
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        if self._refused is not None:
            self._refused += len(data)
            if self._refused > _LINGER_BYTES and self._answered():
                self.transport.close()
            return
        if self._timer is None and not self._in_body and self._answered():
            self._start()
        self._ended = False
        self._framing_read += len(data)
        super().data_received(data)
        if self._in_body or self._ended:
            self._head_read = 0
            if self._ended:
                self._framing_read = 0
        else:
            self._head_read += len(data)
            self._framing_read = 0
        most = self.bounds.head_bytes
        if max(self._head_read, self._framing_read) > most:
            what = "body has trailers or chunk extensions of" if self._in_body else "head has"
            self._refuse(Problem(431, "headers-too-large", f"a request's {what} over {most} bytes"))

    def send_400_response(self, msg: str) -> None:
        """What has come is no request: answer with a problem document instead of uvicorn's."""
        error, problem = sys.exception(), self._problem
        if problem is None:
            ours = error is None or isinstance(error, httptools.HttpParserCallbackError)
            why = "its target cannot be read" if ours else str(error)
            problem = Problem(400, "bad-request", f"this is not a request of HTTP/1.1: {why}")
        self._refuse(problem)

    def on_url(self, url: bytes) -> None:
        """A part of the target is there."""
        super().on_url(url)
        most = min(self.bounds.url_bytes, _COUNTABLE)
        if len(self.url) > most:
            self._give_up(Problem(414, "url-too-long", f"the URL has more than {most} bytes"))

    def on_headers_complete(self) -> None:
        """The head is there."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._give_up(Problem(505, "http-version", "this server speaks HTTP/1.1 and 1.0"))
        if len(self._unanswered) > _PIPELINED:  # read no further; these are answered
            self._give_up(Problem(429, "pipelined", "too many requests wait on one connection"))
        before = self.cycle
        super().on_headers_complete()
        self._stop()
        self._in_body = True
        cycle = self.cycle
        if cycle is before:
            return
        self._unanswered.append(cycle)
        cycle.receive = Receiving(self, cycle)  # type: ignore[method-assign]
        scope: Any = cycle.scope
        scope[CUT_OFF] = self.cut_off
        scope[WRITE] = partial(self.write_part, cycle)
        cycle.send = Sending(cycle, chunks=version == "1.1")  # type: ignore[method-assign]
        if len(self.connections) > self.bounds.connections:
            scope[FULL] = self._late
            cycle.keep_alive = cycle.keep_alive and not self._late

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is there, or a trailer: nobody asks for these, so they are dropped.

        uvicorn would take them for headers, if they came before the application has looked.
        """
        if not self._in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        self._framing_read = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there, too."""
        super().on_message_complete()
        self._in_body = False
        self._ended = True
        if self._timer is not None:  # it had been answered before
            self._stop()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """The answer is sent, perhaps to a request that is not."""
        _release(self._unanswered.popleft())
        super().on_response_complete()
        if self._half_closed and not self._unanswered:
            self.transport.close()
        if self._in_body and self._refused is None and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._start()

    def cut_off(self) -> None:
        """Break the connection now, dropping what is unsent; answers end here."""
        for ended in self._unanswered:
            _disconnect(ended)
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

    def _give_up(self, problem: Problem) -> NoReturn:
        """End the parsing; the parser then asks for :meth:`send_400_response`."""
        self._problem = problem
        raise problem

    def _refuse(self, problem: Problem) -> None:
        """Read no more requests, and say why if that cannot be taken for another one's answer."""
        if self._refused is not None:
            return
        self._stop()
        self._refused = 0
        cycle = self.cycle
        if self._answered():
            if self._in_body:  # the rest of what has been answered
                self.transport.close()
                return
        elif self._in_body and not (cycle.response_started or self.pipeline):
            _disconnect(cycle)
        else:
            cycle.keep_alive = False  # what came before is answered, and nothing after it
            return
        if self.transport.is_closing():
            return
        headers = self.server_state.default_headers
        self.transport.write(self.bounds.refusal(problem, headers))
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER, self.transport.close)

    def _start(self) -> None:
        self._head_read = 0
        patience = self.bounds.head_timeout
        if self._late:
            patience = min(patience, _LATE_HEAD_TIMEOUT)
        self._timer = self.loop.call_later(patience, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.close()


class Receiving:
    """The ``receive`` of one request, in place of uvicorn's own.

    Whoever asks for more than the whole request waits for the client to go, and is told so when
    the client closes its side.
    """

    __slots__ = ("_cycle", "_protocol", "_receive", "_whole")

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._receive: Receive = cycle.receive  # type: ignore[assignment]
        self._whole = False

    async def __call__(self) -> Any:
        """The next message, as ASGI has it."""
        if self._left():
            return await self._receive()
        message = await self._receive()
        if self._left():
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body")
        return message

    def _left(self) -> bool:
        if not (self._whole and self._protocol.half_closed):
            return False
        self._protocol.left(self._cycle)
        return True


def _disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


def _release(cycle: RequestResponseCycle) -> None:
    """Give up what is ours of a request that is over, because that refers to the request.

    Garbage that goes round in circles stays until Python's collector looks for it, during which
    nothing is delivered. Whoever is still at it has the parts it needs.
    """
    del cycle.send, cycle.receive  # uvicorn's own are there again
    scope: Any = cycle.scope
    del scope[WRITE], scope[CUT_OFF]


def bounded(bounds: Bounds) -> type[BoundedProtocol]:
    """The protocol of connections with ``bounds``."""
    return type("GatewayProtocol", (BoundedProtocol,), {"bounds": bounds})


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
