"""A message that is delivered again after its run has ended: nothing of the run may change.

That is what a visibility timeout, or a connection lost between result and acknowledgement, does
to ``acks_late`` tasks, and a publisher that tries again (``task_publish_retry``) to any.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from tests.lifecycle.client import Client
from tests.servers import Proxy, ValkeyProcess
from tests.servers.children import eventually
from tests.workers import worker

APP = "tests.lifecycle.repetition_app"
_WARNING = "its message was delivered twice"


class Message:
    """A message that is put into the worker's queue as often as a test likes."""

    def __init__(self, client: Client, task: str, *args: Any) -> None:
        self.run_id = uuid.uuid4().hex
        self._client = client
        aside = f"aside-{self.run_id}"
        client.app.send_task(f"{APP}.{task}", args, task_id=self.run_id, queue=aside)
        with self._broker() as broker:
            raw = broker.rpop(aside)
        assert isinstance(raw, bytes)
        self._content: dict[str, Any] = json.loads(raw)
        self._delivery = self._content["properties"]["delivery_info"]
        self._delivery["routing_key"] = client.worker.queue  # where a retry goes

    @property
    def result(self) -> AsyncResult[Any]:
        return self._client.app.AsyncResult(self.run_id)

    def send(self, *, again: bool) -> None:
        """Put it into the queue, marked as a broker marks it."""
        self._delivery["redelivered"] = again
        with self._broker() as broker:
            broker.lpush(self._client.worker.queue, json.dumps(self._content))

    def deliver(self, *, again: bool, until: str) -> str:
        """Send it; returns what the worker logs from then on ``until`` it says that."""
        log = self._client.worker.log
        offset = len(log.text)
        self.send(again=again)
        return log.wait_for(f"[{self.run_id}] {until}", after=offset)[offset:]

    def _broker(self) -> redis.Redis:
        return redis.Redis.from_url(self._client.worker.broker_url)


@pytest.fixture(scope="module")
def client(lifecycle_server: ValkeyProcess) -> Iterator[Client]:
    """A worker of one process, so that what it logs has an order."""
    with (
        worker(APP, lifecycle_server, queue="repetitions", concurrency=1) as running,
        Client.of(running) as client,
    ):
        yield client


def test_a_second_delivery_does_not_fail_a_run_that_has_succeeded(
    client: Client,
) -> None:
    """The task succeeds again; its chunks are dropped, which is said once for the run."""
    message = Message(client, "count", 5)
    message.deliver(again=False, until="succeeded")
    assert client.end(message.run_id) == "SUCCESS"
    before = client.streams.head(message.run_id)
    logs = [message.deliver(again=True, until="succeeded") for _ in range(3)]
    assert [log.count(_WARNING) for log in logs] == [1, 0, 0]
    assert "raised" not in "".join(logs)
    assert client.chunks(message.run_id) == list(range(5))
    assert client.streams.head(message.run_id) == before
    assert message.result.state == "SUCCESS"
    assert list(client.streams.read(message.run_id, timeout=5)) == list(range(5))


def test_every_way_to_write_says_that_nothing_was_written(client: Client) -> None:
    """``append()`` has no sequence number to return, ``wait()`` counts nothing, errors none."""
    elsewhere = Message(client, "count", 1)
    client.streams.write_to(elsewhere.run_id, create=True).append("there")
    message = Message(client, "everything", elsewhere.run_id)
    message.deliver(again=False, until="succeeded")
    assert message.result.get(timeout=10) == {
        "append": 0, "merge": 1, "flush": 3, "wait": [3, 2], "pipe": ["d"], "attempt": 1,
        "head": 4, "close": [4, 0],
    }  # fmt: skip
    client.end(message.run_id)
    log = message.deliver(again=True, until="succeeded")
    told = {
        "append": -1, "merge": 0, "flush": 0, "wait": [0, 0], "pipe": ["d"], "attempt": 2,
        "head": 4, "close": [4, 0],
    }  # fmt: skip
    assert repr(told) in log
    assert client.chunks(message.run_id) == ["a", "b", "c", "d"]
    assert client.chunks(elsewhere.run_id) == ["there", "e"]


def test_a_first_message_s_second_delivery_after_its_retry_has_succeeded(client: Client) -> None:
    """It retries once more, and that execution is a repetition, too: one warning for all."""
    message = Message(client, "retrying")
    message.deliver(again=False, until="succeeded")
    client.end(message.run_id)
    log = message.deliver(again=True, until="succeeded")
    assert log.count(_WARNING) == 1
    assert client.chunks(message.run_id) == [0, 1]
    assert message.result.state == "SUCCESS"


def test_a_run_that_has_failed_stays_failed(client: Client) -> None:
    """Its streams say FAILURE for good, so a second execution that writes fails, too."""
    message = Message(client, "failing")
    message.deliver(again=False, until="raised unexpected")
    assert client.end(message.run_id) == "FAILURE"
    log = message.deliver(again=True, until="raised unexpected")
    assert "RunFinished" in log
    assert _WARNING not in log
    assert client.chunks(message.run_id) == ["before"]


def test_a_message_that_was_published_twice_does_not_fail_a_run_that_has_succeeded(
    client: Client,
) -> None:
    """Nothing marks the second one as a repetition; it is one, with the same single warning."""
    message = Message(client, "count", 5)
    message.deliver(again=False, until="succeeded")
    assert client.end(message.run_id) == "SUCCESS"
    before = client.streams.head(message.run_id)
    logs = [message.deliver(again=again, until="succeeded") for again in (False, False, True)]
    assert [log.count(_WARNING) for log in logs] == [1, 0, 0]
    assert "raised" not in "".join(logs)
    assert client.chunks(message.run_id) == list(range(5))
    assert client.streams.head(message.run_id) == before
    assert message.result.state == "SUCCESS"


def test_every_way_to_write_of_a_message_that_was_published_twice(client: Client) -> None:
    """It is told the same as a redelivered one, but for the number of its attempt."""
    elsewhere = Message(client, "count", 1)
    client.streams.write_to(elsewhere.run_id, create=True).append("there")
    message = Message(client, "everything", elsewhere.run_id)
    message.deliver(again=False, until="succeeded")
    client.end(message.run_id)
    log = message.deliver(again=False, until="succeeded")
    told = {
        "append": -1, "merge": 0, "flush": 0, "wait": [0, 0], "pipe": ["d"], "attempt": 1,
        "head": 4, "close": [4, 0],
    }  # fmt: skip
    assert repr(told) in log
    assert client.chunks(message.run_id) == ["a", "b", "c", "d"]
    assert client.chunks(elsewhere.run_id) == ["there", "e"]


def test_a_failed_run_s_second_message_fails_too(client: Client) -> None:
    """Its streams say FAILURE for good: whoever writes to them is told."""
    message = Message(client, "failing")
    message.deliver(again=False, until="raised unexpected")
    assert client.end(message.run_id) == "FAILURE"
    log = message.deliver(again=False, until="raised unexpected")
    assert _WARNING not in log
    assert client.chunks(message.run_id) == ["before"]


def test_a_later_attempt_that_waits_for_its_retry_holds_no_lease(client: Client) -> None:
    """It took its run's fence without writing to it; nobody may take the run for lost."""
    elsewhere = Message(client, "count", 1)
    client.streams.write_to(elsewhere.run_id, create=True).append("there")
    message = Message(client, "waiting", elsewhere.run_id)
    message.deliver(again=False, until="retry: Retry in 600s")

    def let_go() -> bool:
        record = client.streams.runtime.registry.describe(message.run_id)
        return record.epoch == 1 and not record.leased and record.state is None

    eventually(let_go, "the end of the lease")
    assert client.chunks(elsewhere.run_id) == ["there", "waiting"]


def test_a_redelivered_attempt_writes_through_a_store_that_is_away_for_a_moment(
    lifecycle_server: ValkeyProcess,
) -> None:
    """Whether the run has ended cannot be asked then: the chunks wait, and arrive."""
    with (
        Proxy(lifecycle_server.port) as proxy,
        worker(
            APP,
            lifecycle_server,
            queue="repetitions-away",
            concurrency=1,
            streams_url=lifecycle_server.url_for(port=proxy.port),
        ) as running,
        Client.of(running, url=lifecycle_server.url) as client,
    ):
        message = Message(client, "count", 3)
        proxy.refuse()
        message.send(again=True)
        running.log.wait_for("again after")
        proxy.accept()
        running.log.wait_for(f"[{message.run_id}] succeeded")
        assert client.chunks(message.run_id) == [0, 1, 2]
        assert client.end(message.run_id) == "SUCCESS"
