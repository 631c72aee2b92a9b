"""What the demo plays on: an embedded Valkey, a worker with two children, and a gateway."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import redis

from celery_streams import StreamError
from celery_streams.embedded import resolve
from example_project.counting import COUNT_VARIABLE
from example_project.gateway import GatewayProcess, serve_arguments

_ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT = 40.0
_OVERRIDING = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CELERY_STREAMS_URL")


class StageError(RuntimeError):
    """The server or the worker does not do what the demo needs."""


class Stage:
    """A server in a directory of its own, a worker and a gateway beside it; a context manager.

    The gateway is ``gateway`` (see :class:`GatewayProcess`), else one on any port. The
    worker's output goes to :attr:`worker_log`. After a success everything is removed; after a
    failure the directory stays, to be looked at.
    """

    def __init__(self, gateway: Sequence[str] | None = None) -> None:
        #: Of the gateway, a URL.
        self.address = ""
        self.directory = Path(tempfile.mkdtemp(prefix="celery-streams-demo-"))
        self.worker_log = self.directory / "worker.log"
        self._arguments = gateway or serve_arguments()
        self._gateway: GatewayProcess | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._server: redis.Redis | None = None

    def __enter__(self) -> Self:
        for name in _OVERRIDING:
            os.environ.pop(name, None)
        os.environ["EXAMPLE_SERVER"] = f"embedded://{self.directory}/valkey"
        os.environ["CELERY_STREAMS_SECRET"] = secrets.token_hex(16)
        os.environ[COUNT_VARIABLE] = "1"
        try:
            self._server = redis.Redis.from_url(resolve(os.environ["EXAMPLE_SERVER"]))
            log = self.directory / "gateway.log"
            self._gateway = GatewayProcess(log, _ROOT, self._arguments)
            self._start_worker()
            self.address = self._gateway.wait()
        except BaseException as error:
            with undisturbed():
                self._end(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with undisturbed():
            self._end(kind)

    def _end(self, kind: type[BaseException] | None) -> None:
        self._stop()
        if kind is None or issubclass(kind, KeyboardInterrupt | SystemExit):
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def server(self) -> redis.Redis:
        """A client of the server's database 0, where the streams are."""
        assert self._server is not None
        return self._server

    @property
    def server_version(self) -> str:
        """What the server calls itself."""
        info: Any = self.server.info("server")
        return f"Valkey {info.get('valkey_version', info['redis_version'])}"

    @property
    def worker_pid(self) -> int:
        """The process id of the worker's parent process."""
        assert self._worker is not None
        return self._worker.pid

    def dead(self) -> str | None:
        """Which process has ended by itself, if any has."""
        if self._worker is None or self._worker.poll() is not None:
            return "worker"
        if self._gateway is None or self._gateway.process.poll() is not None:
            return "gateway"
        return None

    def _start_worker(self) -> None:
        command = [
            *(sys.executable, "-m", "celery", "-A", "example_project.app", "worker"),
            *("--pool", "prefork", "--concurrency", "2", "--hostname", "demo@localhost"),
            *("--loglevel", "INFO", "--without-gossip", "--without-mingle"),
        ]
        with self.worker_log.open("wb") as log:
            self._worker = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while b"demo@localhost ready." not in self.worker_log.read_bytes():
            if self._worker.poll() is not None or time.monotonic() > deadline:
                tail = self.worker_log.read_text(errors="replace")[-1500:]
                raise StageError(f"the worker did not start; its log ends with:\n{tail}")
            time.sleep(0.05)

    def _stop(self) -> None:
        # Celery's results end their subscriptions when they are collected; without a server
        # Celery 5.6 would try that for long.
        gc.collect()
        if self._worker is not None:
            self._worker.terminate()
        if self._gateway is not None:
            self._gateway.stop()
        if self._worker is not None:
            try:
                self._worker.wait(timeout=1.5)  # its tasks are done, or nobody waits for them
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._worker.pid, signal.SIGKILL)
                self._worker.wait()
        if self._server is not None:
            with contextlib.suppress(redis.RedisError):
                self._server.shutdown(nosave=True)
            self._server.close()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no second Ctrl+C, by somebody impatient, leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def kill(pid: int) -> None:
    """SIGKILL a process and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise StageError(f"process {pid} survived SIGKILL")


class Recording(threading.Thread):
    """Reads a stream in a thread; what has come so far can be looked at meanwhile.

    ``stop_at`` ends it after that many chunks, ``until`` after the chunk it says yes to; ``into``
    is where the chunks go. Raises nothing: what went wrong is in ``error``.
    """

    def __init__(
        self,
        reader: Any,
        *,
        stop_at: int | None = None,
        until: Callable[[Any], bool] | None = None,
        into: list[Any] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.reader = reader
        self.chunks: list[Any] = [] if into is None else into
        self.error: Exception | None = None
        self._stop_at = stop_at
        self._until = until
        self.start()

    def run(self) -> None:
        """Read to the end."""
        try:
            for chunk in self.reader:
                self.chunks.append(chunk)
                if len(self.chunks) == self._stop_at or (self._until and self._until(chunk)):
                    return
        except StreamError as error:
            self.error = error

    def wait(self, timeout: float = 60.0) -> list[Any]:
        """All chunks. Raises :class:`StageError` if the stream could not be read to its end."""
        self.join(timeout)
        if self.error is not None:
            raise StageError(f"a reader failed: {self.error}")
        if self.is_alive():
            raise StageError(f"a stream did not end within {timeout:g} s")
        return self.chunks

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """Wait until ``count`` chunks have come (or the stream has ended)."""
        deadline = time.monotonic() + timeout
        while len(self.chunks) < count and self.is_alive():
            if time.monotonic() > deadline:
                raise StageError(f"only {len(self.chunks)} of {count} chunks in {timeout:g} s")
            time.sleep(0.01)
