"""One server, one worker and one gateway for the chat's tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.chat.client import Gates, Page, serving_agents
from tests.chat.sink import Sink
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

# `make test-oldest` has no model libraries: they want newer versions than it is about.
collect_ignore = [] if find_spec("pydantic_ai") else ["test_pipes.py", "test_pipes_failing.py"]

APP = "tests.apps.chat_app"
SETTINGS = {
    "CELERY_STREAMS_ORPHAN_TIMEOUT": "3",
    "CELERY_STREAMS_RECHECK_INTERVAL": "0.5",
}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyProcess]:
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def agents(store: ValkeyProcess) -> Iterator[Worker]:
    with worker(APP, store, concurrency=2, env=SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(store: ValkeyProcess, agents: Worker) -> Iterator[Gateway]:
    with serving_agents(agents) as started:
        yield started


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def page(gateway: Gateway) -> Page:
    return Page(gateway)


@pytest.fixture
def gates(agents: Worker) -> Gates:
    return Gates(agents.broker_url)


@pytest.fixture
def gate() -> str:
    return uuid.uuid4().hex[:12]
