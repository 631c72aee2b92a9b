"""Writers that belong to no run: those of an app, in a task and outside: :class:`OwnWriters`."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any

from celery_streams.contracts import Attempt
from celery_streams.errors import ChunksLost
from celery_streams.slots import Slot
from celery_streams.task.attempt import RunningAttempt
from celery_streams.task.current import running
from celery_streams.writing.writers import AppWriters

if TYPE_CHECKING:
    from celery_streams.app import Streams
    from celery_streams.runtime import Runtime

#: Streams that the writers which a process shares know at most; then come others.
_MOST_SHARED = 1000


class OwnWriters:
    """Opens the writers of one :class:`~celery_streams.Streams` that are not a run's."""

    def __init__(self, owner: Streams) -> None:
        self._owner = owner
        self.forget()

    def forget(self) -> None:
        """Start anew: the runtime is another one from now on."""
        self._lock = threading.Lock()
        self._shared: AppWriters | None = None

    def here(self) -> AppWriters:
        """The running task's; outside a task new ones, each with a fence of its own."""
        return self._of_task() or self._new(self._owner.runtime)

    def append(self, slot: Slot, chunk: Any, timeout: float | None) -> int:
        """Append one chunk and wait for it, without a fence of its own for each call."""
        try:
            return self._to_share().writer(slot).append(chunk, timeout=timeout)
        except ChunksLost:
            # The store has forgotten what was appended before, which is not this caller's; of
            # this chunk it has taken nothing. What has ended is replaced.
            return self._to_share().writer(slot).append(chunk, timeout=timeout)

    def _of_task(self) -> AppWriters | None:
        attempt = running.get()
        if not isinstance(attempt, RunningAttempt):
            return None
        return attempt.app_writers(self._owner, lambda: self._new(self._owner.runtime))

    def _to_share(self) -> AppWriters:
        """The running task's; outside a task those of this process."""
        if (writers := self._of_task()) is not None:
            return writers
        runtime = self._owner.runtime
        with self._lock:
            shared = self._shared
            if shared is None or len(shared.slots) >= _MOST_SHARED:
                shared = self._shared = self._new(runtime)
            return shared

    def _new(self, runtime: Runtime) -> AppWriters:
        attempt = Attempt(f"writer-{secrets.token_hex(8)}", secrets.token_hex(8))
        return AppWriters(
            attempt, runtime.open_channel, runtime.store, runtime.cache, runtime.settings
        )
