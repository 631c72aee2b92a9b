"""A stop, and what the turn is waiting for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from celery_streams import StopRequested
from tests.chat.sink import Sink


def test_a_stopped_turn_ends_its_source(sink: Sink) -> None:
    """The generator is closed, so what it has open is, too."""
    closed = []

    def words() -> Iterator[str]:
        try:
            for _ in range(3):
                yield "a"
                sink.response.stopping.set()
        finally:
            closed.append(True)

    assert sink.pipe(words()) == "a"
    assert closed == [True]


@pytest.mark.parametrize("way", ["pipe", "awaited", "text_stream"])
def test_a_stop_ends_the_wait_for_a_silent_source(sink: Sink, way: str) -> None:
    """Another thread asks while the source is waited for, which is closed then; the caller's
    task goes on."""
    silent, closed = threading.Event(), []

    async def word() -> AsyncIterator[str]:
        try:
            yield "a"
            asyncio.get_running_loop().call_soon(silent.set)
            await asyncio.Event().wait()
        finally:
            closed.append(asyncio.current_task())

    async def inside() -> str:
        consuming = sink.response.atext_stream if way == "text_stream" else sink.pipe
        text = str(await consuming(word()))
        await asyncio.sleep(0)
        assert closed == [asyncio.current_task()]
        return text

    def stop() -> None:
        silent.wait()
        sink.response.stopping.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    began = time.monotonic()
    assert (sink.pipe(word()) if way == "pipe" else asyncio.run(inside())) == "a"
    assert time.monotonic() - began < 10
    stopper.join()
    assert len(closed) == 1


@pytest.mark.parametrize("way", ["pipe", "text_stream"])
def test_a_stop_that_has_come_before_is_heeded(sink: Sink, way: str) -> None:
    """Nothing is waited for then."""

    async def nothing() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "a"

    sink.response.stopping.set()
    if way == "pipe":
        assert sink.pipe(nothing()) == ""
    else:
        assert asyncio.run(sink.response.atext_stream(nothing())) == ""


def test_a_source_s_own_timeout_is_no_stop(sink: Sink) -> None:
    """Nor is the cancellation of whoever waits."""

    async def late() -> AsyncIterator[str]:
        yield "a"
        raise TimeoutError("the model's")

    with pytest.raises(TimeoutError, match="the model's"):
        sink.pipe(late())


def test_text_stream_ends_with_a_stop(sink: Sink) -> None:
    """At the next piece, and closes its source; with raise_on_stop it raises, in both ways."""
    closed = []

    def words() -> Iterator[str]:
        try:
            yield "a"
            sink.response.stopping.set()
            yield "b"
        finally:
            closed.append(True)

    assert sink.response.text_stream(words()) == "a"
    assert closed == [True]
    raising = Sink(stopping=sink.response.stopping, raise_on_stop=True).response
    with pytest.raises(StopRequested):
        raising.text_stream(words())

    async def nothing() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "a"

    with pytest.raises(StopRequested):
        asyncio.run(raising.atext_stream(nothing()))
