"""What stands outside the worker: sends tasks, looks at their streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from celery import Celery
from celery.result import AsyncResult

from celery_streams import Slot, StreamNotFound, Streams
from celery_streams.chunks import decode, unframe
from tests.servers.children import eventually
from tests.workers import Worker

APP = "tests.apps.lifecycle_app"
SECRET = "test secret"


def chunks_of(streams: Streams, slot: Slot) -> list[Any]:
    """Every chunk the store holds of a stream; checks that offsets are dense."""
    chunks: list[Any] = []
    while (page := streams.runtime.store.read(slot, len(chunks), limit=500)).entries:
        assert page.head is not None
        for entry in page.entries:
            assert entry.start == len(chunks)
            kind = page.head.content_type
            chunks += [decode(data, kind) for data in unframe(entry.payload, kind)]
    return chunks


@dataclass(slots=True)
class Client:
    """A worker's client."""

    worker: Worker
    app: Celery
    streams: Streams

    @classmethod
    @contextmanager
    def of(cls, worker: Worker, **settings: Any) -> Iterator[Self]:
        """A client of ``worker``, on the same server, straight past any proxy."""
        app = Celery(f"client of {worker.name}", set_as_current=False)
        app.conf.update(broker_url=worker.broker_url, result_backend=worker.result_backend)
        settings = {
            "url": worker.streams_url,
            "secret": SECRET,
            "recheck_interval": 0.2,
            **settings,
        }
        streams = Streams(app, **settings)
        try:
            yield cls(worker, app, streams)
        finally:
            streams.close()
            app.close()

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Send a task of the app."""
        return self.app.send_task(f"{APP}.{task}", args, **options)

    def run(self, task: str, *args: Any, **options: Any) -> tuple[str, Any]:
        """Send a task and wait for its result; returns its run id, too."""
        result = self.send(task, *args, **options)
        return result.id, result.get(timeout=30)

    def chunks(self, run_id: str, key: str = "default") -> list[Any]:
        """What the store holds at this moment."""
        return chunks_of(self.streams, Slot.run(run_id, key))

    def closed(self, run_id: str, key: str = "default") -> str | None:
        """How the stream has ended, if it exists and has."""
        with suppress(StreamNotFound):
            return self.streams.head(run_id, key).closed
        return None

    def end(self, run_id: str, key: str = "default", *, timeout: float = 20.0) -> str:
        """Wait for the end of a stream without reading it; how it ended."""
        eventually(lambda: self.closed(run_id, key), f"the end of {run_id}/{key}", timeout=timeout)
        state = self.closed(run_id, key)
        assert state is not None
        return state

    def wait_chunks(self, run_id: str, count: int, key: str = "default") -> list[Any]:
        """Wait until the stream has so many chunks."""
        eventually(lambda: len(self._now(run_id, key)) >= count, f"{count} chunks of {run_id}")
        return self._now(run_id, key)

    def deliver_again(self, run_id: str) -> None:
        """Do what the broker does when a message's visibility timeout is over."""
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            for tag, message in channel.client.hgetall("unacked").items():
                if run_id.encode() in message:
                    channel.qos.restore_by_tag(tag.decode())

    def _now(self, run_id: str, key: str) -> list[Any]:
        with suppress(StreamNotFound):
            return self.chunks(run_id, key)
        return []
