"""The thread of a process on which S2's event loop runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_streams.stores.s2.loop import LoopThread


async def _done() -> str:
    return "done"


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_thread_that_was_not_started_is_started_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """There was none to be had, or a time limit struck just then: nobody waits for it for ever."""
    loop = LoopThread()

    def failing(thread: Any) -> None:
        monkeypatch.undo()
        raise error

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(type(error)):
        loop.run(_done())
    outcome: list[str] = []
    asking = threading.Thread(target=lambda: outcome.append(loop.run(_done())), daemon=True)
    asking.start()
    asking.join(10)
    assert outcome == ["done"]
    loop.stop(_nothing)


async def _nothing() -> None:
    pass
