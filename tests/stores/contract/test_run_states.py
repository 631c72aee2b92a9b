"""What the live channels of a run's streams say of the run, on every kind of server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_streams.contracts import Attempt
from celery_streams.redis.calls import Call
from celery_streams.slots import Slot
from celery_streams.stores.subscription import Subscription
from tests.servers.children import eventually
from tests.stores.contract.backend import NEVER, RUN, SLOT, Backend, Background, chunks_of
from tests.stores.contract.conftest import Connect

FIRST = Attempt(RUN, "first")
RETRY = Attempt(RUN, "retry", generation=1)
OTHER = Slot.run(RUN, "progress")

sync_only = pytest.mark.parametrize("kind", ["sync"], indirect=True)


@contextmanager
def hearing(backend: Backend, slot: Slot) -> Iterator[Subscription]:
    """Somebody on the stream's channel."""
    with Subscription(backend.link, backend.layout.live(slot)) as live:
        yield live


def heard(live: Subscription) -> str:
    """The next message, without what an entry holds."""
    message = live.get(10)
    assert message is not None
    return message.partition(b"\n")[0].decode()


@sync_only
def test_every_change_of_a_runs_state_is_told_on_all_its_streams(backend: Backend) -> None:
    """By the script that records it; an entry of another run's is no sign of life of this one."""
    first, foreign = backend.writer(SLOT, FIRST), backend.writer(OTHER, Attempt("run-2", "other"))
    with hearing(backend, SLOT) as default, hearing(backend, OTHER) as progress:
        foreign.append("from run 2")
        assert heard(progress) == "e1-1"
        first.append("a")
        first.append("b")
        backend.runs.suspend(FIRST)
        backend.runs.suspend(FIRST)
        backend.runs.begin(RETRY)
        backend.runs.finish(RETRY, "SUCCESS")
        told = [heard(default) for _ in range(6)]
        assert told == ["s1 STARTED", "e1-1", "e2-1", "s1 RETRY", "s2 STARTED", "c2 SUCCESS"]
        told = [heard(progress) for _ in range(4)]
        assert told == ["s1 STARTED", "s1 RETRY", "s2 STARTED", "c1 SUCCESS"]


@sync_only
def test_whoever_awaits_the_default_stream_is_told(backend: Backend) -> None:
    """Most runs have it, so most readers that come first wait for it."""
    with hearing(backend, SLOT) as live:
        backend.writer(OTHER, FIRST).append("a")
        backend.runs.suspend(FIRST)
        backend.runs.finish(RETRY, "FAILURE")
        assert [heard(live) for _ in range(3)] == ["s1 STARTED", "s1 RETRY", "c0 FAILURE"]


@sync_only
def test_a_run_that_was_taken_for_stalled_is_told_to_live(connect: Connect) -> None:
    """Its lease had run out, and nobody had looked."""
    backend = connect(orphan_timeout=0.001)
    backend.writer(SLOT, FIRST).append("a")
    eventually(lambda: backend.store.head(SLOT).run_state == "STALLED", "the lease runs out")
    with hearing(backend, SLOT) as live:
        backend.runs.renew([FIRST])
        assert heard(live) == "s1 STARTED"


@sync_only
def test_a_run_that_closes_a_stream_first_has_started(backend: Backend) -> None:
    """Closing claims the run as writing does."""
    first = backend.writer(SLOT, FIRST)
    with hearing(backend, SLOT) as live:
        first.close()
        assert [heard(live), heard(live)] == ["s1 STARTED", "c0 CLOSED"]
    assert backend.store.head(SLOT).run_state == "STARTED"


def test_what_a_reader_does_not_know_costs_it_no_chunk(connect: Connect) -> None:
    """Nor does it yield anything: not for a run's state, not for what a later version may say."""
    backend, reader = connect(), connect()
    backend.writer(SLOT, FIRST).append("a")
    pages = reader.store.follow(SLOT, 0, idle=NEVER)
    assert chunks_of(next(pages).entries) == ["a"]
    following = Background(next, pages)
    unknown: Call[int] = Call("SPUBLISH", (backend.layout.live(SLOT),), ("x1 a later version's",))
    eventually(lambda: backend.link.call(unknown), "it listens")
    backend.runs.suspend(FIRST)
    backend.writer(SLOT, RETRY).append("b")
    assert chunks_of(following.result().entries, offset=1) == ["b"]
