"""One browser, one gateway and one worker for all tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.chat_stage import BUILT
from tests.browser.stage import (
    DESK,
    REPORT_VIOLATIONS,
    Gateway,
    Network,
    Watched,
    chromium,
    chromium_missing,
    gateway,
)
from tests.servers import ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, Worker, worker

Browse = Callable[..., Watched]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    if reason := chromium_missing():
        pytest.skip(reason)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def site(valkey: ValkeyProcess) -> Iterator[Gateway]:
    """A gateway that asks for no tokens."""
    with gateway(valkey) as running:
        yield running


@pytest.fixture
def secured(valkey: ValkeyProcess) -> Iterator[Gateway]:
    """A gateway that does."""
    with gateway(valkey, insecure=False) as running:
        yield running


@pytest.fixture(scope="session")
def assistant(valkey: ValkeyProcess) -> Iterator[Worker]:
    """A worker of the example project."""
    env = {
        "CELERY_BROKER_URL": valkey.url_for(db=BROKER_DB),
        "CELERY_RESULT_BACKEND": valkey.url_for(db=RESULT_DB),
    }
    with worker("example_project.app", valkey, env=env) as running:
        yield running


@pytest.fixture
def network(site: Gateway) -> Iterator[Network]:
    """A way to the gateway that can be cut."""
    with Network(site.port) as running:
        yield running


@pytest.fixture
def browse(browser: Browser) -> Iterator[Browse]:
    """``browse(viewport=...)``: a browser of the test's own, which must not complain."""
    made: list[Watched] = []

    def make(**options: Any) -> Watched:
        options.setdefault("viewport", DESK)
        options.setdefault("permissions", ["clipboard-read", "clipboard-write"])
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        context.add_init_script(REPORT_VIOLATIONS)
        made.append(Watched(context))
        return made[-1]

    yield make
    for watched in made:
        watched.context.close()
    assert [each for watched in made for each in watched.unexpected] == []


@pytest.fixture(scope="session")
def built() -> Path:
    """The page, which `make test-browser` has built."""
    if not (BUILT / "index.html").exists():
        pytest.skip("the chat page is not built: make chat-page")
    return BUILT
