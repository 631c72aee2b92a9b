"""Fixtures of the tests that break things: a store, and more of them, on a server of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.servers import ServerProcess
from tests.stores.faults.bench import Bench

Open = Callable[..., Bench]


@pytest.fixture(params=["valkey9", "redis7", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """URL of an empty server of each kind, and of a cluster."""
    name = {"valkey9": "valkey"}.get(request.param, request.param)
    server = request.getfixturevalue(name)
    server.flush()
    return str(server.url)


@pytest.fixture
def open_bench() -> Iterator[Open]:
    """``open_bench(url, **settings)``: a store; closed at the end of the test."""
    with ExitStack() as stack:

        def make(url: str, **overrides: Any) -> Bench:
            return stack.enter_context(Bench(url, **overrides))

        yield make


@pytest.fixture
def bench(url: str, open_bench: Open) -> Bench:
    """A store on each kind of server in turn."""
    return open_bench(url)


@pytest.fixture
def single(server: ServerProcess, open_bench: Open) -> Bench:
    """A store on each kind of single server in turn."""
    return open_bench(server.url)
