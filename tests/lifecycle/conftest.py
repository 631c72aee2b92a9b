"""One server and one prefork worker for all tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps import lifecycle_app
from tests.lifecycle.client import APP, Client
from tests.servers import ValkeyProcess
from tests.workers import worker


@pytest.fixture(scope="session")
def lifecycle_server() -> Iterator[ValkeyProcess]:
    """A server of the workers' own: nobody empties it."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="session")
def prefork(lifecycle_server: ValkeyProcess) -> Iterator[Client]:
    """A prefork worker with two processes, and a client of it."""
    with worker(APP, lifecycle_server, concurrency=2) as running, Client.of(running) as client:
        yield client


@pytest.fixture
def eager(lifecycle_server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app's own module in this process, every task executed where it is called."""
    monkeypatch.setenv("CELERY_STREAMS_URL", lifecycle_server.url)
    monkeypatch.setenv("CELERY_STREAMS_SECRET", "test secret")
    monkeypatch.setattr(lifecycle_app.streams, "_settings", None)
    lifecycle_app.app.conf.task_always_eager = True
    yield lifecycle_app
    lifecycle_app.app.conf.task_always_eager = False
    lifecycle_app.streams.close()
