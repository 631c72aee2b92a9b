"""The floor: as little as a Python server can do for the same load.

It keeps nothing, checks nothing and bounds nothing. An append that is posted is written at once to
everybody who listens to its path, as events of the gateway's size: what that costs is uvloop's
and the kernel's, one system call for each event and subscriber.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from collections import defaultdict
from typing import cast

import uvloop

_REQUEST = re.compile(rb"(\w+) ([^ ?]+)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_EVENT = (
    b"event: data\ndata:[%b]\nid:%016d\n\n"
    b'event: control\ndata:{"streamNextOffset":"%016d","streamCursor":"3100000",'
    b'"upToDate":true}\nid:%016d\n\n'
)
_OPENED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_DONE = b"HTTP/1.1 204 No Content\r\n\r\n"

_listening: defaultdict[bytes, set[asyncio.Transport]] = defaultdict(set)
_ends: defaultdict[bytes, int] = defaultdict(int)


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._path: bytes | None = None
        self._data = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._path is not None:
            _listening[self._path].discard(self._transport)

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        head, blank, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        request = _REQUEST.match(head)
        if not blank or request is None or (length and len(body) < int(length[1])):
            self._data = data
            return
        self._data = b""
        method, path = request.groups()
        if method == b"GET":
            self._path = path
            self._transport.write(_OPENED + _event(b'{"n":0,"t":0}', _ends[path]))
            _listening[path].add(self._transport)
            return
        if method == b"POST":
            _ends[path] += 1
            event = _event(body, _ends[path])
            for listener in _listening[path]:
                listener.write(event)
        self._transport.write(_DONE)


def _event(body: bytes, end: int) -> bytes:
    event = _EVENT % (body, end, end, end)
    return b"%x\r\n%b\r\n" % (len(event), event)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", port, backlog=4096)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
