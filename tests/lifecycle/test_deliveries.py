"""A worker's parent tells of the end of one delivery, not of one that runs in another process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_streams import ReadTimeout
from tests.lifecycle.client import Client
from tests.servers import ValkeyProcess
from tests.workers import worker

APP = "tests.lifecycle.delivery_app"


@pytest.fixture(scope="module")
def client(lifecycle_server: ValkeyProcess) -> Iterator[Client]:
    with (
        worker(APP, lifecycle_server, queue="deliveries", concurrency=3) as running,
        Client.of(running) as client,
    ):
        running.wait_children()
        yield client


def test_a_killed_redelivery_does_not_end_the_next_redelivery(client: Client) -> None:
    """Both are redeliveries of one retry count; the third one's stream stays open until its own
    process is killed.
    """
    result = client.app.send_task(f"{APP}.hang", queue="deliveries")
    client.wait_chunks(result.id, 1)
    for delivery in (2, 3):
        client.deliver_again(result.id)
        client.wait_chunks(result.id, delivery)
    _, second, third = client.chunks(result.id)
    mark = len(client.worker.log.text)
    client.worker.kill_child(second)
    client.worker.log.wait_for("its streams stay open", after=mark)
    assert client.closed(result.id) is None
    client.worker.kill_child(third)
    assert client.end(result.id) == "FAILURE"
    client.worker.wait_children()


def test_a_time_limit_of_a_hung_delivery_does_not_end_its_redelivery(client: Client) -> None:
    """The first delivery's time runs out while the second one, which came later, still has some."""
    result = client.app.send_task(f"{APP}.hang", queue="deliveries", time_limit=8)
    client.wait_chunks(result.id, 1)
    with client.streams.read(result.id, offset=1, timeout=5) as reader, pytest.raises(ReadTimeout):
        next(reader)  # so that the second one's own limit is five seconds later
    client.deliver_again(result.id)
    client.wait_chunks(result.id, 2)
    mark = len(client.worker.log.text)
    client.worker.log.wait_for("its streams stay open", after=mark)
    assert client.closed(result.id) is None
    assert client.end(result.id) == "FAILURE"
