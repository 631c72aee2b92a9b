"""The server with everything (streams, turns, broker, results) restarts under the chat page."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.chat_stage import addresses, ask, expect_whole_answer_once, serving
from tests.browser.conftest import Browse
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

#: What Chromium's console says of requests that found no gateway, or a gateway without a server.
EXPECTED = ("net::ERR_", "status of 5")


@pytest.fixture(scope="module")
def durable() -> Iterator[ValkeyProcess]:
    """A server that keeps its data when it is killed."""
    with ValkeyProcess(aof=True) as server:
        yield server


@pytest.fixture(scope="module")
def answering(durable: ValkeyProcess) -> Iterator[Worker]:
    with worker("example_project.app", durable, env=addresses(durable)) as started:
        yield started


@pytest.fixture(scope="module")
def site(durable: ValkeyProcess, built: Path, answering: Worker) -> Iterator[Gateway]:
    with serving(durable, built) as started:
        yield started


def wait_for_progress(page: Page, done: int) -> None:
    """Until the bar says that so many pieces of the answer have been written."""
    page.wait_for_function(
        "least => (document.querySelector('.assistant progress')?.value ?? 0) >= least", arg=done
    )


def test_a_server_restart_in_mid_answer_leaves_one_complete_answer(
    durable: ValkeyProcess,
    site: Gateway,
    browse: Browse,
    times: Callable[[int, int], int],
) -> None:
    """Killed at a known piece of the answer and started again: nothing lost, nothing twice.

    The reader does nothing: no reload, no click. The broker and the results are on it, too, so the
    next round also shows that the worker takes tasks again.
    """
    watched = browse()
    watched.expected = EXPECTED
    for number in range(times(3, 30)):
        page = watched.open(f"http://127.0.0.1:{site.port}/#{uuid.uuid4()}")
        page.evaluate("window.loadedOnce = true")
        ask(page)
        wait_for_progress(page, (number * 20) % 140)
        durable.kill()
        durable.start()
        expect_whole_answer_once(page)
        assert page.evaluate("window.loadedOnce"), "the page was loaded again"
        page.close()
