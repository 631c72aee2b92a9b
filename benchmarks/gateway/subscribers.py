"""The load, in a process of its own: many SSE connections, and appends by POST.

It shares the machine with the server, so it does as little as it can: one epoll loop, one
buffer, no parsing. A chunk is counted by a marker in it; one subscriber in ten of each stream
is looked at in full (order, gaps, latency).

The functions are called through a :class:`~concurrent.futures.ProcessPoolExecutor` of one.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from benchmarks.gateway.pace import Pace

_MARKER = b'"t":'
_CHUNK = re.compile(rb'"n": ?(\d+), ?"t": ?(\d+)')
_SAMPLED = 10
_AT_ONCE = 64
_BUFFER = 1 << 18
_READ = select.EPOLLIN | select.EPOLLRDHUP


@dataclass(slots=True)
class Report:
    """What a load came to. Latencies are nanoseconds, of the sampled subscribers."""

    received: int
    lost: int
    refused: int
    closed: int
    seconds: float
    cpu: float
    late_ms: float
    chunks_per_read: float
    latencies: list[int] = field(repr=False)


@dataclass(slots=True)
class _Subscriber:
    sock: socket.socket
    stream: int
    sampled: bool
    ready: bool = False
    count: int = 0
    next: int = 0
    carry: bytes = b""


@dataclass(slots=True)
class _Poster:
    sock: socket.socket
    head: bytes
    queue: deque[bytes] = field(default_factory=deque)
    busy: bool = False
    reply: bytes = b""


class _Load:
    def __init__(self, port: int) -> None:
        self.port = port
        self.poll = select.epoll()
        self.subscribers: dict[int, _Subscriber] = {}
        self.posters: dict[int, _Poster] = {}
        self.of_stream: list[_Poster] = []
        self.appended: list[int] = []
        self.received = self.refused = self.closed = self.answered = self.posted = 0
        self.disorder = self.reads = 0
        self.latencies: list[int] = []
        self.buffer = bytearray(_BUFFER)
        self.view = memoryview(self.buffer)

    def subscribe(self, paths: list[str], each: int) -> None:
        self.appended = [1] * len(paths)  # the chunk that made them
        wanted = [(stream, turn) for turn in range(each) for stream in range(len(paths))]
        for at in range(0, len(wanted), _AT_ONCE):
            batch = []
            for stream, turn in wanted[at : at + _AT_ONCE]:
                sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
                sock.sendall(
                    f"GET {paths[stream]}?offset=-1&live=sse HTTP/1.1\r\n"
                    "Host: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
                )
                sock.setblocking(False)
                # Not always the same place in the order of delivery.
                sampled = turn % _SAMPLED == stream % min(each, _SAMPLED)
                subscriber = _Subscriber(sock, stream, sampled)
                self.subscribers[sock.fileno()] = subscriber
                self.poll.register(sock.fileno(), _READ)
                batch.append(subscriber)
            deadline = time.monotonic() + 30
            # Each has received the stream's first chunk: it is subscribed.
            while any(each.count == 0 for each in batch):
                if time.monotonic() > deadline or self.closed:
                    raise RuntimeError("the server does not answer its subscribers")
                self.turn(0.05)

    def connect_posters(self, paths: list[str]) -> None:
        for path in paths:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode()
            poster = _Poster(self.writing_socket(), head)
            self.posters[poster.sock.fileno()] = poster
            self.of_stream.append(poster)

    def writing_socket(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.poll.register(sock.fileno(), _READ)
        return sock

    def run(self, pace: Pace, patience: float) -> Report:
        """Append at this pace (if there are posters), and receive until nothing is missing."""
        self.latencies = []
        self.received = self.refused = self.posted = self.answered = self.reads = 0
        numbers = list(self.appended)
        for stream in range(pace.streams):
            self.appended[stream] += pace.appends
        expected = self.missing()  # with what an earlier run left behind
        late: list[int] = []
        schedule = pace.schedule() if self.of_stream else iter(())
        due = next(schedule, None)
        cpu, start = time.process_time(), time.monotonic_ns()
        deadline = start + int((pace.seconds + patience) * 1e9)
        while self.received < expected or due or self.answered < self.posted:
            now = time.monotonic_ns()
            while due is not None and start + due[0] <= now:
                stream = due[1]
                late.append(now - start - due[0])
                self.post(stream, numbers[stream], time.monotonic_ns())
                numbers[stream] += 1
                due = next(schedule, None)
            if now > deadline or self.closed > len(self.subscribers) // 2:
                break
            self.turn(max(0.0, (start + due[0] - now) / 1e9) if due else 0.05)
        seconds, cpu = (time.monotonic_ns() - start) / 1e9, time.process_time() - cpu
        self.settle()
        late.sort()
        lost = abs(self.missing()) + self.disorder
        return Report(
            self.received, lost, self.refused, self.closed, seconds, cpu,
            late[len(late) * 99 // 100] / 1e6 if late else 0.0,
            len(self.latencies) / max(self.reads, 1), self.latencies,
        )  # fmt: skip

    def missing(self) -> int:
        return sum(self.appended[each.stream] - each.count for each in self.subscribers.values())

    def settle(self) -> None:
        """A moment for what must not come: chunks that were delivered twice."""
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            self.turn(0.05)

    def turn(self, timeout: float) -> None:
        subscribers = self.subscribers
        for fd, _ in self.poll.poll(timeout, 512):
            subscriber = subscribers.get(fd)
            if subscriber is not None:
                self.receive(subscriber)
            else:
                self.answer(self.posters[fd])

    def receive(self, subscriber: _Subscriber) -> None:
        carry = subscriber.carry
        start = len(carry)
        if start:
            self.buffer[:start] = carry
        try:
            size = subscriber.sock.recv_into(self.view[start:])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self.poll.unregister(subscriber.sock.fileno())
            self.closed += 1
            return
        end = start + size
        if not subscriber.ready:
            if not self.buffer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a subscriber was told: {bytes(self.buffer[:300])!r}")
            subscriber.ready = True
        if subscriber.sampled:
            self.examine(subscriber, bytes(self.view[:end]))
            return
        found = self.buffer.count(_MARKER, 0, end)
        subscriber.count += found
        self.received += found
        subscriber.carry = b"" if self.buffer[end - 1] == 10 else bytes(self.view[end - 3 : end])

    def examine(self, subscriber: _Subscriber, data: bytes) -> None:
        now = time.monotonic_ns()
        cut = data.rfind(b"\n") + 1
        found = _CHUNK.findall(data, 0, cut)
        self.reads += bool(found)
        for number, sent in found:
            if int(number) != subscriber.next:
                self.disorder += 1
            subscriber.next = int(number) + 1
            self.latencies.append(now - int(sent))
        subscriber.count += len(found)
        self.received += len(found)
        subscriber.carry = data[cut:]

    def post(self, stream: int, number: int, now: int) -> None:
        poster = self.of_stream[stream]
        body = b'{"type":"text","n":%d,"t":%d}' % (number, now)
        poster.queue.append(b"%b%d\r\n\r\n%b" % (poster.head, len(body), body))
        self.posted += 1
        if not poster.busy:
            self.send(poster)

    def send(self, poster: _Poster) -> None:
        poster.busy = bool(poster.queue)
        if poster.busy:
            poster.sock.send(poster.queue.popleft())  # small: the kernel takes it at once

    def answer(self, poster: _Poster) -> None:
        try:
            data = poster.sock.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.reconnect(poster)
            return
        poster.reply += data
        if not _complete(poster.reply):
            return
        if poster.reply[9:10] != b"2":
            self.refused += 1
        poster.reply = b""
        self.answered += 1
        self.send(poster)

    def reconnect(self, poster: _Poster) -> None:
        """Servers close connections that were idle for seconds."""
        del self.posters[poster.sock.fileno()]
        self.poll.unregister(poster.sock.fileno())
        poster.sock.close()
        poster.sock = self.writing_socket()
        self.posters[poster.sock.fileno()] = poster
        if poster.busy:  # nobody knows whether it was appended
            self.refused += 1
            self.answered += 1
        poster.reply = b""
        self.send(poster)


def _complete(reply: bytes) -> bool:
    head, blank, body = reply.partition(b"\r\n\r\n")
    if not blank:
        return False
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length:
        return len(body) >= int(length[1])
    return not re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head) or body.endswith(
        b"0\r\n\r\n"
    )


_load: _Load | None = None


def subscribe(port: int, paths: list[str], each: int, post: bool) -> None:
    """Open ``each`` subscribers on every path, and with ``post`` one connection that appends."""
    global _load
    gc.disable()
    _load = _Load(port)
    _load.subscribe(paths, each)
    if post:
        _load.connect_posters(paths)
    gc.freeze()


def run(pace: Pace, patience: float) -> Report:
    """Appends and deliveries, until all have come or ``patience`` seconds after the last."""
    assert _load is not None
    return _load.run(pace, patience)


def idle(seconds: float) -> tuple[int, int]:
    """Nothing but keep-alives: how many subscribers there are, and how many were sent away."""
    assert _load is not None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _load.turn(0.1)
    return len(_load.subscribers), _load.closed


def leave() -> None:
    """Close everything."""
    global _load
    if _load is not None:
        for subscriber in _load.subscribers.values():
            subscriber.sock.close()
        for poster in _load.posters.values():
            poster.sock.close()
        _load.poll.close()
    _load = None
