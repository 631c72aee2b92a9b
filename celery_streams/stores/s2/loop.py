"""The one thread of a process on which S2's event loop runs."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

from celery_streams.errors import StoreUnavailable

T = TypeVar("T")

#: Seconds that closing connections may take.
_PATIENCE = 2.0


class LoopThread:
    """Runs coroutines for threads that have no event loop. Starts at its first use.

    Belongs to the process that started it: a forked child finds it not started. The thread is
    a daemon; at exit what is still running is abandoned, so whoever must not lose anything
    waits for it before.
    """

    def __init__(self) -> None:
        self._after_fork()
        _after_fork_in_child(self)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. If the caller is interrupted, the coroutine is cancelled."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise StoreUnavailable("the connection to S2 was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def call(self, work: Callable[[], object]) -> None:
        """Have the loop call something, soon.

        Raises:
            StoreUnavailable: it is being stopped.
        """
        try:
            self._running().call_soon_threadsafe(work)
        except RuntimeError:
            raise StoreUnavailable("the connection to S2 was closed meanwhile") from None

    def stop(self, closing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """End the loop, if it runs here, with ``closing`` first; the next use starts another."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        # At exit nobody must wait for a server that does not say goodbye.
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(closing(), loop).result(_PATIENCE)
        loop.call_soon_threadsafe(loop.stop)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            loop = self._loop
            if loop is None:
                loop = asyncio.new_event_loop()
                # There may be no thread to be had, or a time limit strikes: then it is not running.
                threading.Thread(
                    target=_run, args=(loop,), name="celery-streams-s2", daemon=True
                ).start()
                self._loop = loop
            return loop


def _after_fork_in_child(thread: LoopThread) -> None:
    if not hasattr(os, "register_at_fork"):
        return
    reference = weakref.ref(thread)

    def forget() -> None:
        if (still_there := reference()) is not None:
            still_there._after_fork()

    os.register_at_fork(after_in_child=forget)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()  # and so whoever waits for it is told
            loop.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
    finally:
        loop.close()
