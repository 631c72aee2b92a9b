"""The other end of a ``celery`` subscription: a task that was sent as a wake.

Its message is to a worker what a wake event is to a ``pull-wake`` one: whoever starts the task
claims the wake first. A copy of it (sent again because nobody had started it, or delivered twice
by the broker) finds the wake taken and is ignored. While the task runs its lease is renewed; its
success acknowledges the streams as far as the message named them, its failure has it sent again
later. A retry is the same wake: Celery sends it with the same header, and it takes the wake that
the attempt before it has put back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import states
from celery.exceptions import Ignore

from celery_streams.errors import StreamError
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.subscriptions.commands import Outcome, SubscriptionCommands, Wake

logger = logging.getLogger("celery_streams.subscriptions")

#: The message header that makes a task a wake; a Celery message has no other place for it.
HEADER = "celery_streams_wake"
#: Milliseconds after which a task that no worker has started is sent again.
RESEND_MS = 60_000


def header_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a task that gets ``body`` as its argument."""
    return {
        HEADER: {
            "subscription_id": body["subscription_id"],
            "wake_id": body["wake_id"],
            "generation": body["generation"],
        }
    }


@dataclass(slots=True)
class WakeTask:
    """One execution of a task that was sent as a wake."""

    wake: Wake
    acks: Mapping[str, int]
    link: RedisLink
    commands: SubscriptionCommands
    claimed: bool = False
    passed_on: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, request: Any, connect: Callable[[], tuple[RedisLink, Layout]]) -> WakeTask | None:
        """The wake that a task's request is; ``None``: it is an ordinary task."""
        given = getattr(request, HEADER, None)
        if given is None and request.headers:
            given = request.headers.get(HEADER)
        if not isinstance(given, dict):
            return None
        try:
            wake = Wake(given["subscription_id"], given["wake_id"], given["generation"])
            acks = {each["path"]: int(each["tail_offset"]) for each in request.args[0]["streams"]}
        except (LookupError, TypeError, ValueError) as error:
            logger.warning(
                "the header %s of a task cannot be read (%r); it runs as an ordinary task",
                HEADER, error,
            )  # fmt: skip
            return None
        link, layout = connect()
        return cls(wake, acks, link, SubscriptionCommands(layout))

    def claim(self, worker: str) -> None:
        """Take the wake.

        Raises:
            Ignore: somebody else has, or it is over.
            StoreUnavailable: it cannot be told; the task fails, and is sent again.
        """
        call = self.commands.claim(self.wake.subscription_id, worker, "celery", self.wake)
        outcome = self.link.call(call)
        if outcome.verdict != "OK":
            logger.info(
                "wake %d of subscription %s is not for this task any more (%s)",
                self.wake.generation, self.wake.subscription_id, outcome.verdict,
            )  # fmt: skip
            raise Ignore
        self.claimed = True
        renewing = threading.Thread(
            target=self._renew,
            args=((outcome.due_ms or 1000) / 3000,),
            name="celery-streams-wake",
            daemon=True,
        )
        renewing.start()

    def put_back(self) -> None:
        """Let the task's next attempt take the wake; call it before that is sent."""
        if self.claimed:
            self._over.set()
            self.passed_on = True
            self._pass_on(RESEND_MS, back=True)

    def expect(self, seconds: float) -> None:
        """The next attempt, which has been sent, starts so many seconds from now."""
        if self.passed_on and seconds > 0:
            self._pass_on(round(seconds * 1000) + RESEND_MS, back=False)

    def _pass_on(self, again_ms: int, *, back: bool) -> None:
        try:
            self.link.call(self.commands.sent(self.wake, again_ms, back=back))
        except StreamError as error:
            logger.warning(
                "subscription %s: a task could not put back its wake for its retry, which may be "
                "ignored; then the task is sent again: %s",
                self.wake.subscription_id, error,
            )  # fmt: skip

    def finish(self, state: str | None) -> None:
        """The task is over; its outcome is stored."""
        self._over.set()
        if not self.claimed or (self.passed_on and state == states.RETRY):
            return
        if state == states.SUCCESS:
            acks = [(path, offset, None) for path, offset in self.acks.items()]
            call: Call[Outcome] = self.commands.ack(self.wake, acks, done=True, hand_over=False)
        else:
            call = self.commands.fail(self.wake)
        try:
            outcome = self.link.call(call)
            self.link.call(self.commands.stir())
        except StreamError as error:
            logger.warning(
                "subscription %s: the end of a task (%s) could not be noted; it is sent again: %s",
                self.wake.subscription_id, state, error,
            )  # fmt: skip
            return
        if outcome.verdict != "OK":
            logger.warning(
                "subscription %s: the lease had run out before the task ended (%s); "
                "its streams are processed again",
                self.wake.subscription_id, state,
            )  # fmt: skip

    def _renew(self, interval: float) -> None:
        while not self._over.wait(interval):
            try:
                outcome = self.link.call(self.commands.ack(self.wake, done=False))
            except StreamError as error:
                logger.info("a lease could not be renewed yet: %s", error)
                continue
            if outcome.verdict != "OK":
                return
