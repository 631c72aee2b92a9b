"""Of which delivery a worker's parent process tells an end: :class:`Deliveries`.

``task_failure`` and ``task_revoked`` name a task, and a worker may have several deliveries of one
task at once. What sends them is a method of the delivery's request, as a rule; so these methods
are noticed, on each request that the worker receives.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery_streams.task.identity import process_name

#: What a worker calls of a request whose process was lost, took too long or was terminated.
_VERDICTS = ("on_failure", "on_timeout", "terminate")


class Deliveries:
    """The requests that this worker has received and not done with yet."""

    def __init__(self) -> None:
        self._latest: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._judged: ContextVar[Any] = ContextVar("celery_streams_judged", default=None)
        self._forks = False

    def received(self, request: Any, pool: Any) -> None:
        """The worker will execute ``request`` (Celery's, of the worker) in its ``pool``."""
        prefork = sys.modules.get("celery.concurrency.prefork")
        self._forks = prefork is not None and isinstance(pool, prefork.TaskPool)
        self._latest[request.id] = request
        for name in _VERDICTS:
            method = getattr(type(request), name, None)
            if method is not None:
                setattr(request, name, self._noticed(weakref.ref(request), method))

    def judged(self, task_id: str) -> Any | None:
        """The delivery of the task whose end is being told; if unknown, the latest there is."""
        request = self._judged.get()
        if request is not None and request.id == task_id:
            return request
        return self._latest.get(task_id)

    def ended_process(self, task_id: str) -> str | None:
        """The name of the process that executed the delivery whose end is being told.

        ``None`` where that is not known: the delivery had not begun, or there are no processes
        that could end before the one that tells.
        """
        request = self._judged.get()
        if request is None or request.id != task_id or not self._forks:
            return None  # elsewhere Celery's worker_pid is not a process
        return None if request.worker_pid is None else process_name(request.worker_pid)

    def _noticed(self, whose: weakref.ref[Any], method: Callable[..., Any]) -> Callable[..., Any]:
        # A reference that counts would keep the request until the garbage collector comes.
        @functools.wraps(method)
        def judging(*args: Any, **kwargs: Any) -> Any:
            request = whose()
            token = self._judged.set(request)
            try:
                return method(request, *args, **kwargs)
            finally:
                self._judged.reset(token)

        return judging
