"""Attempts: a later one shuts the earlier ones out, on one node in one step."""

from __future__ import annotations

import random
import threading

import pytest

from celery_streams.contracts import Attempt
from celery_streams.errors import StreamFenced
from celery_streams.slots import Slot
from tests.stores.faults.bench import Bench, delivered, redelivered, retry


def test_a_retry_fences_the_attempt_before_it(bench: Bench) -> None:
    """From its first append on; the zombie's chunks before that stay."""
    slot = bench.slot()
    old = bench.writer(slot, delivered(slot.owner))
    new = bench.writer(slot, retry(slot.owner, 1))
    assert old.append("old").epoch == 1
    assert new.append("new").epoch == 2
    for fenced in (lambda: old.append("zombie"), old.close):
        with pytest.raises(StreamFenced, match="later attempt"):
            fenced()
    assert new.append("new").epoch == 2
    assert bench.values(slot) == [b'"old"', b'"new"', b'"new"']


def test_all_writers_of_an_attempt_share_its_epoch(bench: Bench) -> None:
    """The claim is idempotent by the attempt's id."""
    slot = bench.slot()
    attempt = delivered(slot.owner)
    assert [bench.writer(slot, attempt).append(n).epoch for n in range(3)] == [1, 1, 1]


def test_a_first_delivery_cannot_claim_after_a_retry(bench: Bench) -> None:
    """A zombie that wakes up before its first write cannot fence its successor."""
    slot = bench.slot()
    zombie = bench.writer(slot, delivered(slot.owner))
    successor = bench.writer(slot, retry(slot.owner, 1))
    successor.append(1)
    with pytest.raises(StreamFenced):
        zombie.append(2)
    assert successor.append(3).offset == 1


def test_a_first_delivery_cannot_claim_after_a_redelivery(bench: Bench) -> None:
    """Of one generation, the one that is not marked as redelivered is the older one."""
    slot = bench.slot()
    zombie = bench.writer(slot, delivered(slot.owner))
    successor = bench.writer(slot, redelivered(slot.owner))
    successor.append(1)
    with pytest.raises(StreamFenced):
        zombie.append(2)
    assert successor.append(3).epoch == 1


def test_a_second_first_delivery_cannot_claim(bench: Bench) -> None:
    """Nobody can tell which of the two is the later one, so the first to write keeps it."""
    slot = bench.slot()
    holder, other = (bench.writer(slot, delivered(slot.owner)) for _ in range(2))
    holder.append(1)
    with pytest.raises(StreamFenced):
        other.append(2)
    assert holder.append(3).offset == 1


def test_a_redelivery_takes_over_from_a_redelivery(bench: Bench) -> None:
    """Each is later than the one that holds the fence."""
    slot = bench.slot()
    writers = [bench.writer(slot, redelivered(slot.owner)) for _ in range(3)]
    assert [writer.append(1).epoch for writer in writers] == [1, 2, 3]


@pytest.mark.parametrize("zombie", [delivered, redelivered, lambda run: retry(run, 1)])
def test_a_superseded_attempt_cannot_claim_again(bench: Bench, zombie) -> None:
    """Whatever it is: it held the fence once."""
    slot = bench.slot()
    old = bench.writer(slot, zombie(slot.owner))
    old.append(1)
    bench.writer(slot, redelivered(slot.owner, 1)).append(2)
    for _ in range(2):
        with pytest.raises(StreamFenced):
            old.append(3)


def test_an_earlier_generation_cannot_claim_even_redelivered(bench: Bench) -> None:
    """Celery's own order (replacement, retries) comes first."""
    slot = bench.slot()
    bench.writer(slot, retry(slot.owner, 2)).append(1)
    with pytest.raises(StreamFenced):
        bench.writer(slot, redelivered(slot.owner, 1)).append(2)


def test_an_attempt_that_wrote_to_one_stream_of_its_run_fences_them_all(bench: Bench) -> None:
    """A run's own streams share one fence."""
    slot = bench.slot("a")
    other = Slot.run(slot.owner, "b")
    old, new = delivered(slot.owner), retry(slot.owner, 1)
    bench.writer(slot, old).append(1)
    bench.writer(other, new).append(2)
    with pytest.raises(StreamFenced):
        bench.writer(slot, old).append(3)


def test_a_fence_is_the_writing_runs_own(bench: Bench) -> None:
    """A sub-task's retry does not fence the root run, nor another sub-task."""
    slot = bench.slot()
    root = bench.writer(slot, delivered(slot.owner))
    child, grandchild = bench.writer(slot, delivered("c")), bench.writer(slot, delivered("g"))
    for writer in (root, child, grandchild):
        writer.append(1)
    bench.writer(slot, retry("c", 1)).append(2)
    with pytest.raises(StreamFenced):
        child.append(3)
    assert [root.append(4).offset, grandchild.append(5).offset] == [4, 5]


def test_a_claim_by_closing_counts(bench: Bench) -> None:
    """A retry that only closes fences the attempt before it as well."""
    slot = bench.slot("a")
    old, new = delivered(slot.owner), retry(slot.owner, 1)
    writer = bench.writer(Slot.run(slot.owner, "b"), old)
    writer.append(1)
    bench.writer(slot, new).close()
    with pytest.raises(StreamFenced):
        writer.append(2)


def test_attempts_never_interleave_in_a_race(bench: Bench, times) -> None:
    """Redeliveries start while the one before writes: in the log, epochs only ever rise."""
    for _ in range(times(3, 50)):
        slot = bench.slot()
        seen: list[tuple[int, int]] = []

        def write(attempt: Attempt, slot: Slot = slot, seen: list = seen) -> None:
            writer = bench.writer(slot, attempt)
            try:
                for number in range(random.randrange(5, 30)):
                    appended = writer.append(number)
                    seen.append((appended.offset, appended.epoch))
            except StreamFenced:
                pass

        threads = [
            threading.Thread(target=write, args=(redelivered(slot.owner),)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen.sort()
        assert [offset for offset, _ in seen] == list(range(bench.store.head(slot).end))
        epochs = [epoch for _, epoch in seen]
        assert epochs == sorted(epochs)
