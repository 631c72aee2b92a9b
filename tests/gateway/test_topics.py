"""What a topic does for followers that were reading the log while it heard of entries."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from celery_streams import Slot
from celery_streams.contracts import Entry, Head
from celery_streams.gateway.topics import Counts, Follower, Topic

SLOT = Slot.path("topics")


class _Hub:
    """Nothing is read here, so there is no store."""

    store = cast("Any", None)
    buffer = 1024 * 1024

    def __init__(self) -> None:
        self.counts = Counts()

    def abandon(self, topic: Topic) -> None:
        """Nobody follows the topic any more."""


def _caught_up(entries: list[Entry]) -> tuple[Topic, Follower]:
    """A follower that stands at 0, for whom the topic heard ``entries`` while it read the log."""

    async def play() -> tuple[Topic, Follower]:
        topic = Topic(_Hub(), SLOT)
        topic.head = Head(SLOT, 0)
        follower = topic.follow(0, deadline=float("inf"))
        version = topic.version
        for entry in entries:
            topic.deliver(entry)
        topic.settle(follower, version)
        return topic, follower

    return asyncio.run(play())


def test_what_was_heard_while_a_follower_read_the_log_is_not_read_again() -> None:
    """It goes live with the entries that continue where the log ended for it."""
    _, follower = _caught_up([Entry(1, 1, b'"a"'), Entry(2, 1, b'"b"')])
    assert (follower.stale, follower.offset) == (False, 2)
    assert follower.take().count(b"event: data") == 2


def test_a_gap_sends_a_follower_back_to_the_log() -> None:
    """The topic has not heard what comes between."""
    _, follower = _caught_up([Entry(2, 1, b'"b"')])
    assert (follower.stale, follower.offset, follower.pending) == (True, 0, False)
