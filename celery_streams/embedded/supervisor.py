"""The process that starts a directory's server, watches it, and stops it when it is idle."""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import redis
import redis.exceptions as rx

from celery_streams.embedded.directory import Directory
from celery_streams.embedded.resolving import START_TIMEOUT, answers, require_binary

#: Environment variable: seconds without a client after which the server stops.
IDLE_VARIABLE = "CELERY_STREAMS_EMBEDDED_IDLE"
_IDLE_DEFAULT = 30.0
_POLL = 0.02
_PR_SET_PDEATHSIG = 1
#: Starts of the server on another port, when somebody else was quicker to take one.
_PORT_TRIES = 5

Server = subprocess.Popen[bytes]


def supervise(path: Path) -> int:
    """Run the server of ``path`` until it is idle, dies, or this process gets SIGTERM."""
    directory = Directory(path)
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with directory.serving() as lock:
            if lock is not None:
                return _serve(directory, lock)
        # A predecessor is on its way out, or was too busy to answer and now does.
        if (address := directory.address) and answers(address):
            _say_ready()
            return 0
        time.sleep(_POLL)
    print(f"another server holds {path} and does not answer", file=sys.stderr)
    return 1


def _serve(directory: Directory, lock: int) -> int:
    started = _start(directory, lock)
    if started is None:
        return 1
    server, url = started
    try:
        directory.publish(url)
        _say_ready()
        _watch(server, url, directory, float(os.environ.get(IDLE_VARIABLE, _IDLE_DEFAULT)))
    finally:
        _stop(server)
    return 0


def _start(directory: Directory, lock: int) -> tuple[Server, str] | None:
    """A server that answers, on the port and with the password of its predecessor if it can."""
    last = urlsplit(directory.address or "")
    password = last.password or secrets.token_urlsafe(24)
    for attempt in range(_PORT_TRIES):
        port = last.port if attempt == 0 and last.port else _free_port()
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        server = _spawn(directory, lock, port, password)
        if _answered(server, url):
            return server, url
        _stop(server)
    return None


def _spawn(directory: Directory, lock: int, port: int, password: str) -> Server:
    """Start valkey-server. Its configuration goes through a pipe: a password is in no list."""
    with directory.open_log() as log:
        server = subprocess.Popen(
            [require_binary(), "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=directory.path,
            pass_fds=(lock,),
            preexec_fn=_dies_with_parent(),  # noqa: PLW1509 - there are no threads here
        )
    assert server.stdin is not None
    with suppress(BrokenPipeError), server.stdin:
        server.stdin.write(_configuration(directory.path, port, password).encode())
    return server


def _configuration(path: Path, port: int, password: str) -> str:
    quoted = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{quoted}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "",
        ]
    )


def _answered(server: Server, url: str) -> bool:
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        if answers(url):
            return server.poll() is None
        time.sleep(_POLL)
    return False


def _watch(server: Server, url: str, directory: Directory, idle: float) -> None:
    """Return when the server is to be stopped; it is then certain that nobody was given it."""
    asked, _wake = _on_signals()
    client = redis.Redis.from_url(url, socket_timeout=5.0, single_connection_client=True)
    activity = _Activity(client)
    quiet_since = time.monotonic()
    while server.poll() is None:
        readable, _, _ = select.select([asked], [], [], min(1.0, idle / 4))
        if readable:
            return
        try:
            if activity.seen():
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= idle:
                with directory.resolving(exclusive=True):
                    if not activity.seen():
                        _stop(server)
                        return
                    quiet_since = time.monotonic()
        except (rx.RedisError, OSError):
            # Busy, or stopped by hand: poll() tells which.
            quiet_since = time.monotonic()


class _Activity:
    """Whether anybody but us is connected, or has been since we last looked."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connections = 0

    def seen(self) -> bool:
        info = self._client.info("clients") | self._client.info("stats")
        connections = int(info["total_connections_received"])
        came = connections != self._connections
        self._connections = connections
        return came or int(info["connected_clients"]) > 1


def _stop(server: Server) -> None:
    """Let the server write out what it has, then end it for certain."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            server.kill()
    server.wait()


def _on_signals() -> tuple[socket.socket, socket.socket]:
    """A socket that becomes readable when this process is asked to end, and its other end."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake.fileno())
    return woken, wake


def _say_ready() -> None:
    """Tell whoever started us, then let go of the pipe: they must not wait for our end."""
    print("ready", flush=True)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _dies_with_parent() -> Callable[[], object] | None:
    """A killed supervisor takes the server along (Linux); elsewhere its lock tells of it."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
