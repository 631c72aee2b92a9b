"""What a topic does for followers that were reading the log while it heard of entries."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from celery_streams import Slot
from celery_streams.contracts import Entry, Head
from celery_streams.gateway.followers import Follower
from celery_streams.gateway.topics import Counts, Topic
from celery_streams.protocol import Ended, RunStateChanged

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


def _states(follower: Follower) -> list[str]:
    """The run's states that the follower has been sent."""
    sent = follower.take().decode() if follower.pending else ""
    return re.findall(r'"runState":"(\w+)"', sent)


def test_an_answer_that_was_overtaken_takes_no_state_back() -> None:
    """A look at the head was answered before the run retried, and arrives after the message."""

    async def play() -> None:
        slot = Slot.run("overtaken")
        topic = Topic(_Hub(), slot)
        started = Head(slot, 0, epoch=1, run_state="STARTED")
        topic.announce(started)
        follower = topic.follow(0, deadline=float("inf"))
        topic.settle(follower, topic.version)
        topic.deliver(RunStateChanged(1, "RETRY"))
        topic.announce(started)
        assert (_states(follower), topic.run_state) == (["RETRY"], "RETRY")
        topic.announce(Head(slot, 0, epoch=2, run_state="STARTED"))
        topic.deliver(RunStateChanged(1, "RETRY"))
        topic.deliver(RunStateChanged(2, "STARTED"))
        assert _states(follower) == ["STARTED"]
        # After an interruption the head is believed, whatever it says: chunks may be lost, too.
        topic.deliver(None)
        topic.announce(started)
        topic.announce(Head(slot, 0, epoch=0, run_state="PENDING"))
        assert topic.run_state == "STARTED"
        topic.deliver(None)
        topic.announce(Head(slot, 0, epoch=0, run_state="PENDING"))
        assert topic.run_state == "PENDING"

    asyncio.run(play())


def test_a_state_that_is_told_while_a_page_is_sent_is_not_missed() -> None:
    """Whoever is not live looks at the log once more, and finds it."""

    async def play() -> None:
        slot = Slot.run("sent")
        topic = Topic(_Hub(), slot)
        topic.announce(Head(slot, 0, epoch=1, run_state="STARTED"))
        follower = topic.follow(0, deadline=float("inf"))
        version = topic.version
        topic.deliver(RunStateChanged(1, "RETRY"))
        topic.settle(follower, version)
        assert (follower.stale, follower.pending) == (True, False)

    asyncio.run(play())


def test_closing_a_stream_early_leaves_its_run_as_it_is() -> None:
    """A client with the right to may close the stream of a run that has not started."""

    async def play() -> None:
        slot = Slot.run("closed")
        topic = Topic(_Hub(), slot)
        topic.announce(Head(slot, 0, run_state="PENDING"))
        follower = topic.follow(0, deadline=float("inf"))
        topic.settle(follower, topic.version)
        topic.deliver(Ended(0, "CLOSED"))
        assert _states(follower) == ["PENDING"]

    asyncio.run(play())
