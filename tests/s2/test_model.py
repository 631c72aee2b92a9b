"""The S2 store against the model of every store in plain Python: any operations, any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from celery_streams.contracts import Appended, Batch, Credentials, Producer
from celery_streams.slots import Slot
from tests.s2.conftest import Connect
from tests.stores.contract.test_model import StoreModel


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stores[0], name)


class WithoutRevoking(StoreModel):
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
    _run(type("Model", (StoreModel,), {"backend": backend}), times(8, 200))


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
