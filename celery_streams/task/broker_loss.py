"""A worker outlives the loss of its broker while a task is running: :class:`CloseOnce`."""

from __future__ import annotations

from typing import Any

from celery import bootsteps


class CloseOnce(bootsteps.StartStopStep):
    """Keeps Celery from closing a lost connection's channel a second time.

    Celery 5.7 closes the lost connection twice, the second time without its transport. If the
    broker is Redis and refuses connections at that moment, the first time leaves the channel
    open, the second wants to give unacknowledged messages back through it, and the worker ends
    with ``AttributeError: 'NoneType' object has no attribute 'hostname'``. Chat agents are
    acknowledged late, so a restart of Redis in mid-answer would end every worker that answers.

    The channel stays as earlier versions left it: the running task acknowledges over it.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        """The consumer has a connection (again)."""
        connection = consumer.connection
        close = connection.close

        def close_once() -> None:
            if connection._transport is None:
                connection._default_channel = None
            close()

        connection.close = close_once
