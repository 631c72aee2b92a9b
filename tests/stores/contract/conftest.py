"""Fixtures of the store tests: every store on every kind of server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import SettingsFor
from tests.servers import Cluster, ServerProcess
from tests.stores.contract.backend import Backend

Connect = Callable[..., Backend]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is: one server or a cluster, emptied before the test."""

    url: str
    target: ServerProcess | Cluster

    def flush(self) -> None:
        self.target.flush()


@pytest.fixture(params=["valkey9", "redis7", "cluster"])
def place(request: pytest.FixtureRequest) -> Place:
    """An empty server of each kind in turn. Only its data may be changed."""
    fixture = {"valkey9": "valkey"}.get(request.param, request.param)
    target: Any = request.getfixturevalue(fixture)
    target.flush()
    return Place(target.url, target)


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two stores."""
    return str(request.param)


@pytest.fixture
def connect(place: Place, kind: str, settings_for: SettingsFor) -> Iterator[Connect]:
    """``connect(**settings)``: a store with connections of its own; closed at the end."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Backend:
            return stack.enter_context(Backend(settings_for(place.url, **settings), kind))

        yield make


@pytest.fixture
def backend(connect: Connect) -> Backend:
    """A store with the default settings."""
    return connect()
