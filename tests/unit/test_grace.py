"""How long a run may wait for its message to be delivered again: ``Streams.redelivery_grace``."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_streams import Streams

HOUR = 3600.0


def _grace(broker: str, options: dict[str, Any] | None = None, **task_options: Any) -> float:
    app = Celery("grace", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = options or {}
    streams = Streams(app)

    @app.task(name="grace.task", shared=False, **task_options)
    def task() -> None:
        pass

    return streams.redelivery_grace(app.tasks["grace.task"])


@pytest.mark.parametrize("broker", ["redis://host", "rediss://host", "sqs://", "sentinel://host"])
def test_a_broker_that_hides_messages_delivers_a_lost_one_after_its_timeout(broker: str) -> None:
    """The transport's visibility timeout, or the hour that Celery documents as its default."""
    assert _grace(broker, acks_late=True) == HOUR
    assert _grace(broker, {"visibility_timeout": 90}, acks_late=True) == 90.0


@pytest.mark.parametrize("broker", [["redis://a", "redis://b"], "redis+socket:///run/a.sock"])
def test_every_spelling_of_a_broker_counts(broker: str) -> None:
    """A list for failover; a transport with the way to reach it."""
    assert _grace(broker, acks_late=True) == HOUR


def test_a_broker_that_sees_the_connection_go_delivers_at_once() -> None:
    """AMQP returns a lost worker's messages by itself, whatever the options say."""
    assert _grace("amqp://host", {"visibility_timeout": 90}, acks_late=True) == 0.0


@pytest.mark.parametrize("broker", ["redis://host", "sqs://", "amqp://host"])
def test_a_message_acknowledged_early_never_comes_again(broker: str) -> None:
    """Without ``acks_late`` there is nothing to wait for."""
    assert _grace(broker, {"visibility_timeout": 90}) == 0.0


def test_the_app_s_default_for_late_acknowledgement_counts() -> None:
    """``task_acks_late`` of the configuration is as good as the task's own option."""
    app = Celery("grace", broker="redis://host", set_as_current=False)
    app.conf.task_acks_late = True
    streams = Streams(app)

    @app.task(name="grace.task", shared=False)
    def task() -> None:
        pass

    assert streams.redelivery_grace(app.tasks["grace.task"]) == HOUR


def test_a_task_that_is_retried_on_a_lost_worker_waits_for_its_retry() -> None:
    """Whoever sends it again does so after the task's retry delay."""
    grace = _grace("amqp://host", retry_on_worker_lost=True, default_retry_delay=7)
    assert grace == 7.0


def test_streams_without_an_app_wait_for_nobody() -> None:
    """There is no broker that could deliver again."""

    class Late:
        acks_late = True

    assert Streams(url="redis://host", secret="test secret").redelivery_grace(Late()) == 0.0
