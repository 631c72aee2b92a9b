"""Fixtures of the readers' tests: both readers, on both kinds of server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import SettingsFor
from tests.servers import ServerProcess
from tests.stores.contract.backend import Backend

Connect = Callable[..., Backend]


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two readers."""
    return str(request.param)


@pytest.fixture
def connect_to(kind: str, settings_for: SettingsFor) -> Iterator[Connect]:
    """``connect_to(url, **settings)``: a store with connections of its own; closed at the end."""
    with ExitStack() as stack:

        def make(url: str, **settings: Any) -> Backend:
            return stack.enter_context(Backend(settings_for(url, **settings), kind))

        yield make


@pytest.fixture
def connect(server: ServerProcess, connect_to: Connect) -> Connect:
    """``connect(**settings)``: the same, on ``server``."""
    return lambda **settings: connect_to(server.url, **settings)


@pytest.fixture
def writing(connect: Connect) -> Backend:
    """The store that a test writes with. Reading uses another: each belongs to one thread."""
    return connect()


@pytest.fixture
def reading(connect: Connect) -> Backend:
    """The store that a test reads with."""
    return connect()
