"""When credentials are renewed ahead of their expiry, and the one thread that does it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from celery_streams.credentials.sealing import Minted

Job = Callable[[], None]

_AFTER_FAILURE = 5.0
_WHILE_OTHERS_REFRESH = 1.0
_SHORTEST_PAUSE = 0.05


def due_at(minted: Minted, ahead: float) -> float:
    """When a refresh is due: once less than the fraction ``ahead`` of the life remains."""
    expires_at = minted.credentials.expires_at
    return expires_at - ahead * max(0.0, expires_at - minted.minted_at)


def retry_at(now: float, expires_at: float, *, failed: bool) -> float:
    """When to try again after a refresh that failed, or that somebody else is at.

    After a quarter of what remains, if that is soon, so that there are several tries however
    short the life is.
    """
    longest = _AFTER_FAILURE if failed else _WHILE_OTHERS_REFRESH
    pause = min(longest, (expires_at - now) / 4)
    return min(expires_at, now + max(_SHORTEST_PAUSE, pause))


class Refresher:
    """Runs jobs one after the other in a daemon thread that ends when none is left.

    One thread, whatever the number of slots: a process that serves thousands of sessions may
    find all of them due in one second. None while idle, so that a fork finds none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._running = False

    def submit(self, job: Job) -> None:
        """Run ``job`` soon; it must not raise.

        Raises:
            RuntimeError: no thread can be started (the interpreter is shutting down).
        """
        with self._lock:
            self._jobs.append(job)
            if self._running:
                return
            self._running = True
            try:
                threading.Thread(
                    target=self._work, name="celery-streams-credentials-refresh", daemon=True
                ).start()
            except BaseException:
                self._running = False
                self._jobs.clear()
                raise

    def after_fork(self) -> None:
        """Forget the parent's jobs and thread: the child has neither."""
        self._lock = threading.Lock()
        self._jobs = deque()
        self._running = False

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._running = False
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException:  # the thread is made to end, as a greenlet can be
                with self._lock:
                    self._running = False
                raise
