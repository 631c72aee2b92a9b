"""Real Celery workers as child processes.

::

    with worker("tests.apps.plain_app", valkey, pool="prefork", concurrency=2) as running:
        assert running.app.send_task("tests.apps.plain_app.add", (1, 2)).get(timeout=10) == 3
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from celery import Celery

from tests.servers import ServerProcess
from tests.servers.children import end, eventually, spawn

Pool = Literal["prefork", "threads", "gevent", "eventlet", "solo"]

ROOT = Path(__file__).resolve().parent.parent
BROKER_DB, RESULT_DB = 14, 15
_READY = "ready."


class Log:
    """A child's output as it comes: the whole text, and waiting for a piece of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, piece: str, *, timeout: float = 30.0, after: int = 0) -> str:
        """Wait until the text from position ``after`` on contains ``piece``; returns the text."""
        with self._changed:

            def there() -> bool:
                return piece in "".join(self._lines)[after:]

            self._changed.wait_for(lambda: self._ended or there(), timeout)
            if not there():
                how = "the process ended" if self._ended else f"{timeout:g} s went by"
                text = "".join(self._lines)
                raise TimeoutError(f"{how} without {piece!r} in the log:\n{text[-4000:]}")
            return "".join(self._lines)

    def join(self) -> None:
        self._reader.join(timeout=10)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    self._lines.append(line.decode(errors="replace"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@dataclass(slots=True, kw_only=True)
class Worker:
    """One ``celery worker`` process of the app module ``module``; a context manager.

    The module finds the addresses in ``TEST_BROKER_URL``, ``TEST_RESULT_BACKEND`` and
    ``CELERY_STREAMS_URL``. ``ready_line`` is what its log says once it takes tasks.
    """

    module: str
    broker_url: str
    result_backend: str
    streams_url: str
    pool: Pool = "prefork"
    concurrency: int = 2
    queue: str = "celery"
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"worker-{uuid.uuid4().hex[:8]}")
    loglevel: str = "INFO"
    process: subprocess.Popen[bytes] | None = None
    _log: Log | None = None
    _app: Celery | None = None
    _directory: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> Log:
        assert self._log is not None
        return self._log

    @property
    def app(self) -> Celery:
        """A client of the same broker and result backend, without the worker's tasks."""
        if self._app is None:
            self._app = Celery(f"client of {self.name}", set_as_current=False)
            self._app.conf.update(
                broker_url=self.broker_url,
                result_backend=self.result_backend,
                task_default_queue=self.queue,
            )
        return self._app

    @property
    def children(self) -> list[psutil.Process]:
        """The pool's processes, oldest first."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.pid).children(), key=lambda each: each.create_time())
        return []

    def command(self) -> list[str]:
        """The command line, as a user would type it."""
        return [
            sys.executable, "-m", "celery", "-A", self.module, "worker",
            "--pool", self.pool, "--concurrency", str(self.concurrency),
            "--loglevel", self.loglevel, "--hostname", f"{self.name}@localhost",
            "--queues", self.queue, "--without-gossip", "--without-mingle",
            *self.arguments,
        ]  # fmt: skip

    def start(self) -> None:
        """Start (again) and wait until it takes tasks."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "TEST_BROKER_URL": self.broker_url,
            "TEST_RESULT_BACKEND": self.result_backend,
            "CELERY_STREAMS_URL": self.streams_url,
            "CELERY_STREAMS_SECRET": "test secret",
            **self.env,
        }
        self.process = spawn(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self._directory,
        )
        self._log = Log(self.process)
        self._log.wait_for(f"{self.name}@localhost {_READY}", timeout=60)

    def stop(self, *, patience: float = 20.0) -> None:
        """SIGTERM (a warm shutdown), then SIGKILL; its children are gone afterwards, too."""
        if self.process is None:
            return
        children = self.children
        end(self.process, patience=patience)
        self._reap(children)

    def kill(self) -> None:
        """SIGKILL the parent and its children: what a lost host looks like."""
        children = self.children
        os.kill(self.pid, signal.SIGKILL)
        self._reap(children)
        assert self.process is not None
        self.process.wait()

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL one pool process (the oldest, or the one given); returns its process id."""
        pid = self.children[0].pid if pid is None else pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_children(self, count: int | None = None) -> list[psutil.Process]:
        """Wait until the pool has its (or ``count``) processes again."""
        wanted = self.concurrency if count is None else count
        eventually(lambda: len(self.children) == wanted, f"{wanted} pool processes")
        return self.children

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="worker-"))
        try:
            self.start()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._discard()

    def _discard(self) -> None:
        self.stop()
        if self._log is not None:
            self._log.join()
        if self._app is not None:
            self._app.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @staticmethod
    def _reap(children: list[psutil.Process]) -> None:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=10)


@contextmanager
def worker(module: str, server: ServerProcess, **options: Any) -> Iterator[Worker]:
    """A running worker whose broker, result backend and streams are databases of ``server``."""
    options.setdefault("broker_url", server.url_for(db=BROKER_DB))
    options.setdefault("result_backend", server.url_for(db=RESULT_DB))
    options.setdefault("streams_url", server.url)
    with Worker(module=module, **options) as running:
        yield running
