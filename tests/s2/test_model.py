"""The S2 store against the model of every store in plain Python: any operations, any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from celery_streams.contracts import Append, Appended, Batch, Credentials, Producer
from celery_streams.slots import Slot
from tests.s2.conftest import Connect
from tests.stores.contract.backend import Hand
from tests.stores.contract.test_model import StoreModel, names


@pytest.fixture(params=["sync"])
def kind(request: pytest.FixtureRequest) -> str:
    """What is decided does not depend on the shell."""
    return str(request.param)


class TwoProcesses:
    """One store to the model, two to the stream: each producer belongs to one of them.

    As in two processes, neither hears of the other's appends but through the stream.
    """

    def __init__(self, first: Any, second: Any) -> None:
        self._stores = (first, second)

    def append(self, slot: Slot, batch: Batch, producer: Producer, given: Credentials) -> Appended:
        store = self._stores[hash(producer.producer_id) % 2]
        return cast("Appended", store.append(slot, batch, producer, given))

    def append_many(self, appends: Sequence[Append]) -> list[Any]:
        """Of one producer."""
        store = self._stores[hash(appends[0].producer.producer_id) % 2]
        return cast("list[Any]", store.append_many(appends))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stores[0], name)


class Pipelining(StoreModel):
    """Several batches of a producer in flight at once, and all of them sent again."""

    @initialize()
    def remember(self) -> None:
        self.sent: dict[str, list[tuple[Append, Appended]]] = {}

    @rule(hand=StoreModel.hands, counts=st.lists(st.integers(1, 3), min_size=2, max_size=6))
    def append_ahead(self, hand: Hand, counts: list[int]) -> None:
        expected, appends, answers = self._refusal(hand), [], []
        before = hand.seq
        for count in counts:
            chunks = [next(names) for _ in range(count)]
            batch = hand.batch(*chunks)
            appends.append(Append(self.slot, batch, hand.producer, hand.credentials))
            if expected is None:
                answers.append(self.applied(hand, batch, chunks))
            hand.last, hand.seq = batch, hand.seq + 1
        results = hand.store.append_many(appends)
        if expected is not None:
            assert all(isinstance(result, expected) for result in results)
            hand.seq = before
            return
        assert results == answers
        self.sent[hand.producer.producer_id] = list(zip(appends, answers, strict=True))

    @rule(hand=StoreModel.hands)
    def send_all_again(self, hand: Hand) -> None:
        """Each is where it was put the first time, whatever was written since."""
        if sent := self.sent.get(hand.producer.producer_id):
            results = hand.store.append_many([append for append, _ in sent])
            for again, (_, first) in zip(results, sent, strict=True):
                assert isinstance(again, Appended)
                assert again.duplicate
                if first.end > self.first:  # else it has been trimmed
                    assert again == replace(first, duplicate=True)


class WithoutRevoking(Pipelining):
    """Whoever has not seen the end of a stream needs a valid token to see it."""

    def revoke(self, really: bool) -> None:
        """No rule."""


@pytest.mark.timeout(600)
def test_two_processes_do_what_the_model_does(
    connect: Connect, times: Callable[[int, int], int]
) -> None:
    """Fences, sequences, ends and trimming hold between stores that share only the stream."""
    backend, other = connect(max_chunks=7), connect(max_chunks=7)
    backend.store = TwoProcesses(backend.store, other.store)
    backend.store.shut = backend.store._stores[0].shut
    _run(type("Model", (WithoutRevoking,), {"backend": backend}), times(8, 200))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("max_chunks", [0, 5])
def test_the_store_does_what_the_model_does(
    connect: Connect, times: Callable[[int, int], int], max_chunks: int
) -> None:
    """Attempts that come in any order, resends, gaps, closes, revocations, reads from anywhere."""
    backend = connect(max_chunks=max_chunks)
    _run(type("Model", (Pipelining,), {"backend": backend}), times(8, 200))


def _run(machine: type[StoreModel], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            # Shrinking talks to a server: a failure would be found and then run out of time.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
