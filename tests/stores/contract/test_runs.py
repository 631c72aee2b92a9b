"""The run's record: who holds it, whether it lives, how it ended, on every kind of server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_streams.contracts import Attempt
from celery_streams.errors import RunFinished, StreamClosed, StreamFenced
from celery_streams.runs.registry import RunRecord, RunRegistry
from celery_streams.slots import Slot
from tests.servers.children import eventually
from tests.stores.contract.backend import RUN, SLOT, Backend
from tests.stores.contract.conftest import Connect

FIRST = Attempt(RUN, "first")
RETRY = Attempt(RUN, "retry", generation=1)
REDELIVERED = Attempt(RUN, "redelivered", redelivered=True)


@pytest.fixture(params=["sync"])
def kind(request: pytest.FixtureRequest) -> str:
    """Workers keep the records: there is no asyncio registry."""
    return str(request.param)


@pytest.fixture
def runs(backend: Backend) -> RunRegistry:
    return backend.runs


def test_a_run_nobody_knows_has_an_empty_record(runs: RunRegistry) -> None:
    """Ending it leaves nothing behind, unless asked to."""
    assert runs.describe(RUN) == RunRecord(RUN, None, (), 0, False)
    assert runs.finish(FIRST, "SUCCESS") == "NONE"
    assert runs.describe(RUN).state is None
    assert runs.finish(FIRST, "SUCCESS", always=True) == "OK"
    assert runs.describe(RUN).state == "SUCCESS"


def test_the_first_append_claims_the_run_and_starts_its_lease(
    backend: Backend, runs: RunRegistry
) -> None:
    """No round trip of its own is needed."""
    backend.writer(SLOT, FIRST).append("a")
    assert runs.describe(RUN) == RunRecord(RUN, None, ("default",), 1, True)


def test_finishing_closes_every_stream_of_the_run_and_only_those(
    backend: Backend, runs: RunRegistry
) -> None:
    """Those that were closed before keep how they ended; another run's stay open."""
    slots = {key: Slot.run(RUN, key) for key in ("default", "done", "unused")}
    writers = {key: backend.writer(slot, FIRST) for key, slot in slots.items()}
    writers["default"].append("a")
    writers["done"].append("b")
    writers["done"].close()
    other = backend.writer(Slot.run("run-2"))
    foreign = backend.writer(Slot.run("run-2"), FIRST)
    foreign.append("of run 1, in run 2")
    assert runs.finish(FIRST, "FAILURE") == "OK"
    ends = {key: backend.store.head(slot).closed for key, slot in slots.items()}
    assert ends == {"default": "FAILURE", "done": "CLOSED", "unused": "FAILURE"}
    other.append("still open")
    with pytest.raises(StreamClosed, match="FAILURE"):
        writers["default"].append("late")
    with pytest.raises(RunFinished, match="FAILURE") as finished:
        backend.open(Slot.run(RUN, "new"))
    assert finished.value.state == "FAILURE"


def test_the_first_end_stays(backend: Backend, runs: RunRegistry) -> None:
    """Whoever says otherwise later, and however."""
    backend.writer(SLOT, FIRST).append("a")
    assert runs.finish(FIRST, "SUCCESS") == "OK"
    for attempt in (FIRST, RETRY, Attempt(RUN, "", generation=9)):
        assert runs.finish(attempt, "FAILURE", always=True) == "ALREADY"
    assert runs.finish_if_lost(RUN) == "SUCCESS"
    assert runs.describe(RUN).state == backend.store.head(SLOT).closed == "SUCCESS"
    with pytest.raises(RunFinished):
        runs.begin(RETRY)


def test_a_superseded_attempt_cannot_end_the_run(backend: Backend, runs: RunRegistry) -> None:
    """Nor can the parent of its dead worker speak for it; the attempt that holds the run can."""
    zombie = backend.writer(SLOT, FIRST)
    zombie.append("a")
    backend.writer(SLOT, RETRY).append("b")
    assert runs.finish(FIRST, "SUCCESS") == "SUPERSEDED"
    assert runs.finish(Attempt(RUN, ""), "FAILURE") == "SUPERSEDED"
    assert backend.store.head(SLOT).closed is None
    assert runs.finish(Attempt(RUN, "", generation=1), "FAILURE") == "OK"


def test_a_process_that_ended_speaks_for_its_own_attempt_only(
    backend: Backend, runs: RunRegistry
) -> None:
    """Among attempts of one generation the process decides; if a name is missing, the flag."""
    second = Attempt(RUN, "second@host/2", redelivered=True)
    third = Attempt(RUN, "third@host/3", redelivered=True, grace_ms=3_600_000)
    backend.writer(SLOT, second).append("a")
    backend.writer(SLOT, third).append("b")
    assert runs.finish(Attempt(RUN, "@host/1"), "FAILURE", always=True) == "SUPERSEDED"
    assert runs.finish(replace(second, attempt_id="@host/2"), "FAILURE") == "SUPERSEDED"
    assert backend.store.head(SLOT).closed is None
    assert runs.finish(replace(third, attempt_id="@host/3"), "FAILURE") == "OK"
    for unknown, name, speaker in (("run-2", "second", "@host/3"), ("run-3", "second@host/2", "")):
        runs.begin(Attempt(unknown, name, redelivered=True))
        assert runs.finish(Attempt(unknown, speaker), "FAILURE") == "SUPERSEDED"
        assert runs.finish(Attempt(unknown, speaker, redelivered=True), "FAILURE") == "OK"


def test_the_end_of_a_last_delivery_that_never_wrote_is_not_awaited_for_a_broker_s_patience(
    connect: Connect,
) -> None:
    """If the attempt on record is dead as well, its lease ends as if no message came again; one
    that was suspended has left the run to the delivery that ended.
    """
    runs = connect(orphan_timeout=0.15).runs
    dead = Attempt(RUN, "dead@host/1", redelivered=True, grace_ms=3_600_000)
    last = Attempt(RUN, "@host/2", redelivered=True)
    runs.begin(dead)
    assert runs.finish(last, "FAILURE", always=True) == "SUPERSEDED"
    eventually(lambda: runs.finish_if_lost(RUN, "FAILURE"), "the end of the lease", timeout=5)
    suspended = replace(dead, run_id="run-2")
    runs.begin(suspended)
    runs.suspend(suspended)
    assert runs.finish(replace(last, run_id="run-2"), "FAILURE", always=True) == "OK"


def test_entering_takes_the_fence_before_the_first_write(
    backend: Backend, runs: RunRegistry
) -> None:
    """Idempotent for one attempt; then the rules of every fence hold."""
    zombie = backend.writer(SLOT, FIRST)
    zombie.append("a")
    assert [runs.begin(REDELIVERED), runs.begin(REDELIVERED)] == [2, 2]
    with pytest.raises(StreamFenced):
        zombie.append("b")
    assert runs.begin(RETRY) == 3
    for late in (FIRST, REDELIVERED, Attempt(RUN, "other", generation=1)):
        with pytest.raises(StreamFenced, match="number 3"):
            runs.begin(late)


def test_only_the_attempt_that_holds_the_run_can_renew_it(
    backend: Backend, runs: RunRegistry
) -> None:
    """``False`` is for one that was replaced; a run without a record has nothing to renew."""
    backend.writer(SLOT, FIRST).append("a")
    unknown = Attempt("run-9", "a")
    assert runs.renew([FIRST, unknown]) == [True, True]
    assert not runs.describe("run-9").leased
    runs.begin(RETRY)
    assert runs.renew([FIRST, RETRY]) == [False, True]


def test_a_run_whose_worker_shows_no_life_is_lost(connect: Connect) -> None:
    """After the lease and not before; its streams end, and a late worker finds them ended."""
    backend = connect(orphan_timeout=0.15)
    writer = backend.writer(SLOT, FIRST)
    writer.append("a")
    assert backend.runs.finish_if_lost("run-9") is None
    eventually(lambda: backend.runs.finish_if_lost(RUN) == "LOST", "the lease runs out")
    assert backend.store.head(SLOT).closed == "LOST"
    with pytest.raises(StreamClosed, match="LOST"):
        writer.append("b")
    assert backend.runs.finish(FIRST, "SUCCESS") == "ALREADY"


def test_a_renewed_run_is_not_lost(connect: Connect) -> None:
    """Grace extends the lease; while it runs nobody may end the run for its worker."""
    patient = Attempt(RUN, "first", grace_ms=60_000)
    backend = connect(orphan_timeout=0.001)
    backend.writer(SLOT, patient).append("a")
    assert backend.runs.renew([patient]) == [True]
    assert backend.runs.finish_if_lost(RUN) is None
    assert backend.runs.describe(RUN).leased


def test_a_suspended_run_is_not_lost_while_nobody_runs_it(connect: Connect) -> None:
    """Between two retries; also if the suspended attempt's last heartbeat arrives late."""
    backend = connect(orphan_timeout=0.001)
    backend.writer(SLOT, FIRST).append("a")
    backend.runs.suspend(FIRST)
    assert backend.runs.renew([FIRST]) == [True]
    assert not backend.runs.describe(RUN).leased
    assert backend.runs.finish_if_lost(RUN) is None
    backend.runs.begin(RETRY)
    assert backend.runs.describe(RUN).leased
    backend.runs.suspend(FIRST)
    assert backend.runs.describe(RUN).leased, "only the attempt that holds the run suspends it"


def test_what_is_said_once_per_run_is_said_once(runs: RunRegistry) -> None:
    """Independently for each thing and run; and it is no sign of a run that has streams."""
    assert [runs.first_time(RUN), runs.first_time(RUN), runs.first_time(RUN, "b")] == [1, 0, 1]
    assert runs.first_time("run-2")
    assert runs.finish(FIRST, "SUCCESS") == "NONE"
