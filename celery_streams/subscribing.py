"""Have Celery tasks sent when streams grow: what :class:`~celery_streams.Streams` offers of it."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery_streams.errors import ConfigurationError
from celery_streams.runtime import Runtime
from celery_streams.subscriptions.config import Configuration, check_id
from celery_streams.subscriptions.store import run_alone
from celery_streams.subscriptions.tasks import header_of

if TYPE_CHECKING:
    from celery import Celery


class Subscribing:
    """Subscriptions whose subscriber is a task."""

    @property
    @abstractmethod
    def runtime(self) -> Runtime:
        """This process's connections."""

    @abstractmethod
    def _celery(self) -> Celery | None:
        """The app that sends tasks."""

    def subscribe(
        self,
        pattern: str | None,
        task: Any,
        *,
        streams: Iterable[str] = (),
        subscription_id: str | None = None,
        queue: str | None = None,
        lease: float = 30.0,
        description: str | None = None,
    ) -> str:
        """Have a gateway send a Celery task whenever a matching stream has received chunks.

        ::

            @app.task
            def archive(wake):
                for stream in wake["streams"]:
                    ...  # stream["path"], from ["acked_offset"] to ["tail_offset"]

            streams.subscribe("runs/*/default", archive)

        The task's success acknowledges the streams up to their ``tail_offset``, its failure has
        it sent again later (after 1 s at first, up to 60 s). It may be executed twice for the
        same chunks. What exists counts as processed when the subscription is made. Saying the
        same again changes nothing.

        Args:
            pattern: over the streams' paths (``runs/<id>/<key>``, ``sessions/<id>/out``, or what
                clients chose); ``*`` is one segment, ``**`` any number.
            task: the task, or its name; it is called with the wake, a dictionary.
            streams: paths besides those of the pattern.
            subscription_id: its name; without one it follows from task and pattern.
            queue: the queue for the task.
            lease: seconds after which a worker that shows no sign of life counts as lost.
            description: for people.

        Returns:
            The subscription's id, for :meth:`unsubscribe`.

        Raises:
            InvalidSubscription: an argument cannot be.
            SubscriptionConflict: there is another one of that id.
            StoreUnavailable: the store cannot be reached.
        """
        name = str(getattr(task, "name", task))
        configuration = Configuration.parse(
            {
                "type": "celery",
                "pattern": pattern,
                "streams": list(streams),
                "task": name,
                "queue": queue,
                "lease_ttl_ms": round(lease * 1000),
                "description": description,
            }
        )
        if subscription_id is None:
            subject = "\0".join((configuration.pattern or "", *configuration.streams))
            subscription_id = f"{name}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"
        known = check_id(subscription_id)
        run_alone(self.runtime.subscription_store, lambda store: store.create(known, configuration))
        return subscription_id

    def unsubscribe(self, subscription_id: str) -> bool:
        """Delete a subscription; ``False`` if there was none of that id."""
        known = check_id(subscription_id)
        return run_alone(self.runtime.subscription_store, lambda store: store.remove(known))

    def send_wake(self, task: str, queue: str | None, body: dict[str, Any]) -> None:
        """Send the task of a subscription. Raises what the broker's client raises."""
        app = self._celery()
        if app is None:
            raise ConfigurationError("this Streams is attached to no Celery app to send tasks with")
        options = {} if queue is None else {"queue": queue}
        app.send_task(task, args=(body,), headers=header_of(body), **options)
