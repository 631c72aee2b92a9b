"""What projects do that know nothing of streams: early tasks, odd ids, long silences."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from celery import Celery

from celery_streams import InvalidName, ReadTimeout, Slot, Streams
from celery_streams.contracts import Attempt
from celery_streams.runtime import Ending
from celery_streams.writing.writers import AttemptWriters
from tests.servers import ValkeyProcess


def _app() -> Celery:
    app = Celery(f"strange-{uuid.uuid4().hex}", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    return app


@pytest.mark.parametrize("shared", [True, False])
def test_tasks_declared_before_streams_are_attached_stream(
    valkey: ValkeyProcess, shared: bool
) -> None:
    """An application factory attaches its extensions last."""
    app = _app()

    @app.task(bind=True, shared=shared, name=f"early-{uuid.uuid4().hex}")
    def early(self: Any) -> None:
        self.streams.write("hello")

    streams = Streams().init_app(app)
    streams._overrides = {"url": valkey.url, "secret": "test secret"}
    result = early.apply()
    assert list(streams.read(result.id, timeout=5)) == ["hello"]


@pytest.mark.parametrize("task_id", ["orders/42", "a{b}", " leading", "x" * 300])
def test_an_odd_task_id_fails_only_tasks_that_stream(valkey: ValkeyProcess, task_id: str) -> None:
    """A project's ids were its own before it added streams."""
    app = _app()
    Streams(app, url=valkey.url, secret="test secret")

    @app.task(bind=True, shared=False)
    def plain(self: Any) -> int:
        return 1

    @app.task(bind=True, shared=False)
    def streaming(self: Any) -> None:
        self.streams.write("x")

    assert plain.apply(task_id=task_id).get() == 1
    with pytest.raises(InvalidName):
        streaming.apply(task_id=task_id).get()


def test_a_reader_goes_on_after_a_timeout(valkey: ValkeyProcess) -> None:
    """Neither ReadTimeout nor a cancelled wait ends the iteration: the next chunk comes."""
    streams = Streams(url=valkey.url, secret="test secret")
    slot = Slot.run(uuid.uuid4().hex)
    writer = streams.open_writer(slot)
    writer.append("a")
    reader = streams.read(slot.owner, timeout=0.2)
    assert next(reader) == "a"
    with pytest.raises(ReadTimeout):
        next(reader)
    writer.append("b")
    assert next(reader) == "b"
    reader.close()
    with pytest.raises(StopIteration):
        next(reader)

    async def beat() -> list[str]:
        areader = streams.aread(slot.owner, offset=1, timeout=None)
        chunks = [await anext(areader)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(areader), 0.2)
        await asyncio.to_thread(writer.append, "c")
        chunks.append(await anext(areader))
        await areader.aclose()
        return chunks

    assert asyncio.run(beat()) == ["b", "c"]
    streams.close()


def test_a_silent_stream_lives_as_long_as_its_run_does(valkey: ValkeyProcess) -> None:
    """The lease's renewal keeps the chunks, too."""
    streams = Streams(url=valkey.url, secret="test secret", retention=100)
    attempt = Attempt(uuid.uuid4().hex, "attempt")
    slot = Slot.run(attempt.run_id)
    _write(streams, attempt)
    client, layout = valkey.client(), streams.runtime.layout
    for key in (layout.keys(slot), layout.meta(slot), layout.log(slot)):
        client.pexpire(key, 5000)
    assert streams.runtime.registry.renew([attempt]) == [True]
    for key in (layout.keys(slot), layout.meta(slot), layout.log(slot)):
        assert client.pttl(key) > 90_000, key
    streams.close()


def test_the_death_of_an_overtaken_attempt_does_not_end_its_successor(
    valkey: ValkeyProcess,
) -> None:
    """A worker's parent speaks for the delivery that died, not for one that came again."""
    streams = Streams(url=valkey.url, secret="test secret")
    run_id = uuid.uuid4().hex
    _write(streams, Attempt(run_id, "first"))
    _write(streams, Attempt(run_id, "second", redelivered=True))
    streams.runtime.end_run(Ending(Attempt(run_id, ""), "FAILURE", always=True))
    assert streams.head(run_id).closed is None
    streams.runtime.end_run(Ending(Attempt(run_id, "", redelivered=True), "FAILURE", always=True))
    assert streams.head(run_id).closed == "FAILURE"
    streams.close()


def _write(streams: Streams, attempt: Attempt) -> None:
    runtime = streams.runtime
    writers = AttemptWriters(
        attempt, runtime.open_channel, runtime.store, runtime.cache, runtime.settings
    )
    writers.writer(Slot.run(attempt.run_id)).append("x")
