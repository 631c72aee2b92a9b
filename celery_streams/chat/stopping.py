"""Whether a turn is to stop, for those who ask and for those who wait for something else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Stopping:
    """Set once, from any thread. Asking costs no round trip."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._calls: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Whether somebody has asked to stop."""
        return self._set

    def set(self) -> None:
        """The turn is to stop."""
        with self._lock:
            self._set = True
            for call in self._calls:
                call()
            self._calls.clear()

    @asynccontextmanager
    async def cut_off(self) -> AsyncGenerator[None, None]:
        """Cancel what the block awaits once the turn is to stop; the block then just ends.

        It stays in the task of its caller, as with :func:`asyncio.timeout`: a source may hold
        cancel scopes and context variables that belong to that task.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as timeout:
                inside = True

                def end() -> None:
                    if inside and not timeout.expired():
                        timeout.reschedule(loop.time())

                def wake() -> None:
                    loop.call_soon_threadsafe(end)

                self._call(wake)
                try:
                    yield
                finally:
                    inside = False
                    self._forget(wake)
        except TimeoutError:
            if not timeout.expired():
                raise

    def _call(self, call: Callable[[], object]) -> None:
        with self._lock:
            if self._set:
                call()
            else:
                self._calls.append(call)

    def _forget(self, call: Callable[[], object]) -> None:
        # The lock keeps a loop open for whoever is calling into it.
        with self._lock:
            if call in self._calls:
                self._calls.remove(call)
