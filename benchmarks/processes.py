"""Child processes that begin together and hand back what they found."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.project"])


@contextmanager
def together(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[list[Future]]:
    """Run each call in a process of its own, all of them started before any begins.

    A call gets a function as its first argument, and must call it when it is ready to begin.
    Yields when all have; what they return is in the futures.
    """
    barrier = _context.Barrier(len(calls) + 1)
    with ProcessPoolExecutor(
        len(calls), mp_context=_context, initializer=_remember, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_begin, function, args) for function, args in calls]
        barrier.wait(timeout=120)
        yield futures


_barrier: Any = None


def _remember(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _begin(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(lambda: _barrier.wait(timeout=120), *args)
