"""One HTTP request whose answer ends by a deadline, however slowly it comes."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Bytes of an answer that are read: its headers have a few hundred.
_LONGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its body. ``headers`` by their names in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """``deadline``, by the monotonic clock, for all of it; ``pause`` in seconds between two
    packets."""

    deadline: float
    pause: float

    def left(self) -> float:
        """Seconds that the next step may take.

        Raises:
            TimeoutError: none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        return min(left, self.pause)


@dataclass(frozen=True, slots=True)
class Host:
    """Where to ask. ``tls`` ``None``: without."""

    name: str
    port: int | None
    tls: ssl.SSLContext | None

    def ask(self, method: str, path: str, headers: Mapping[str, str], limits: Limits) -> Answer:
        """The answer to a request without a body.

        The answer's own body is not waited for: what it says is in its headers. Only the
        resolver, which Python cannot interrupt, has time limits of its own.

        Raises:
            OSError, http.client.HTTPException: there was none, or none in time.
        """
        kind = http.client.HTTPConnection if self.tls is None else http.client.HTTPSConnection
        connection = kind(self.name, self.port)
        try:
            connection.sock = self._connected(connection.port, limits)
            connection.response_class = _bounded(limits)
            connection.request(method, path, b"", dict(headers))
            with connection.getresponse() as response:
                found = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, found)
        finally:
            connection.close()

    def _connected(self, port: int, limits: Limits) -> socket.socket:
        sock = self._reached(port, limits)
        try:
            sock.settimeout(limits.left())
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_hostname=self.name)  # in all, not a packet
                sock.settimeout(limits.left())
        except BaseException:
            sock.close()
            raise
        return sock

    def _reached(self, port: int, limits: Limits) -> socket.socket:
        """A connection to the first of its addresses that has one."""
        failure: OSError = OSError(f"{self.name} has no address")
        for *_, address in socket.getaddrinfo(self.name, port, type=socket.SOCK_STREAM):
            left = limits.left()
            try:
                return socket.create_connection((str(address[0]), port), left)
            except OSError as error:
                failure = error
        raise failure


def _bounded(limits: Limits) -> Any:
    """The standard library's response, over a socket that knows the limits."""

    def response(sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Socket(sock, limits), **options)  # type: ignore[arg-type]

    return response


class _Socket:
    """As much of a socket as a response uses."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._received = _Received(sock, limits)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._received)


class _Received(io.RawIOBase):
    """What a socket receives. Each byte would begin its own timeout anew; here none is given more
    than what is left for all."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        self._room = _LONGEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._room <= 0:
            raise http.client.HTTPException(f"its headers have more than {_LONGEST} bytes")
        self._sock.settimeout(self._limits.left())
        count = self._sock.recv_into(buffer)
        self._room -= count
        return count
