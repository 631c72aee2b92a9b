"""Several processes for one address: :class:`Supervisor`.

Each worker process is this program started anew, with the listening socket and a pipe handed
down: it has its own Celery app, connections and event loop, and nothing of it crosses a fork.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

logger = logging.getLogger("celery_streams.gateway")

#: A worker that lives for less than so many seconds is not replaced at once...
_SHORT_LIFE = 5.0
#: ...but after one second, then two, up to so many.
_LONGEST_PAUSE = 30.0
#: Seconds that workers have to end, beyond what they give their requests.
_GRACE = 7.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Supervisor:
    """Keeps ``count`` worker processes running until SIGTERM or SIGINT.

    Args:
        command: what a worker is started with, to be followed by its file descriptors.
        listener: what the workers accept connections from.
        count: how many.
        patience: seconds that a worker gives its requests when it is told to stop.
    """

    def __init__(
        self, command: Sequence[str], listener: socket.socket, count: int, patience: float
    ) -> None:
        self._command = command
        self._listener = listener
        self._count = count
        self._patience = patience + _GRACE
        self._workers: dict[int, _Worker] = {}
        self._stopping = False
        # A worker whose end of this pipe closes has lost its supervisor, and ends.
        self._lifeline, self._alive = os.pipe()

    def run(self) -> None:
        """Start the workers, replace those that die, stop them in the end."""
        woken, wake = socket.socketpair()
        with woken, wake:
            woken.setblocking(False)
            wake.setblocking(False)
            before = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            try:
                for place in range(self._count):
                    self._workers[place] = self._started(place)
                while not self._stopping:
                    self._sleep(woken, self._next_start())
                    self._replace_dead()
                self._stop(woken)
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in before.items():
                    signal.signal(number, handler)
                for worker in self._workers.values():
                    worker.kill()
                os.close(self._lifeline)
                os.close(self._alive)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stopping = True

    def _sleep(self, woken: socket.socket, seconds: float | None) -> None:
        if select.select([woken], [], [], seconds)[0]:
            with suppress(BlockingIOError):
                woken.recv(4096)

    def _started(self, place: int, pause: float = 0.0) -> _Worker:
        files = (self._listener.fileno(), self._lifeline)
        process = subprocess.Popen(
            [*self._command, *map(str, files)],
            stdin=subprocess.DEVNULL,
            pass_fds=files,
            process_group=0,  # Ctrl+C is for the supervisor, who tells them
        )
        logger.info("worker %d is process %d", place + 1, process.pid)
        return _Worker(process, pause)

    def _next_start(self) -> float | None:
        """Seconds until a dead worker is to be replaced."""
        waits = [each.restart_at for each in self._workers.values() if each.restart_at is not None]
        return max(0.0, min(waits) - time.monotonic()) if waits else None

    def _replace_dead(self) -> None:
        now = time.monotonic()
        for place, worker in self._workers.items():
            status = worker.process.poll()
            if status is None or self._stopping:
                continue
            if worker.restart_at is None:
                if now - worker.since > _SHORT_LIFE:
                    worker.pause = 0.0
                worker.restart_at = now + worker.pause
                logger.error(
                    "worker %d, process %d, ended with status %d; a new one starts%s",
                    place + 1,
                    worker.process.pid,
                    status,
                    f" in {worker.pause:g} s" if worker.pause else "",
                )
            if worker.restart_at <= now:
                pause = min(_LONGEST_PAUSE, max(1.0, 2 * worker.pause))
                self._workers[place] = self._started(place, pause)

    def _stop(self, woken: socket.socket) -> None:
        self._listener.close()  # else the kernel would still take connections for nobody
        for worker in self._workers.values():
            worker.process.terminate()
        deadline = time.monotonic() + self._patience
        while any(worker.process.poll() is None for worker in self._workers.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                logger.error("workers have not ended after %g s: killed", self._patience)
                return
            self._sleep(woken, left)


class _Worker:
    """One place: its process, and when the next one may start if that is dead."""

    def __init__(self, process: subprocess.Popen[bytes], pause: float) -> None:
        self.process = process
        self.since = time.monotonic()
        self.pause = pause
        self.restart_at: float | None = None

    def kill(self) -> None:
        """End it, if need be."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def own_command(option: str) -> list[str]:
    """How this program was started, with ``option`` for a worker in the end."""
    return [sys.executable, *sys.orig_argv[1:], option]
