"""The server with everything (streams, turns, broker, results) restarts under the chat page."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat_stage import QUESTION, addresses, ask, expect_whole_answer_once, serving
from tests.browser.conftest import Browse
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

#: What Chromium's console says of requests that found no gateway, or a gateway without a server.
EXPECTED = ("net::ERR_", "status of 5")


@pytest.fixture(scope="module")
def durable() -> Iterator[ValkeyProcess]:
    """A server that keeps its data when it is killed."""
    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
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


def test_a_server_that_is_away_for_seconds_is_waited_for(
    durable: ValkeyProcess, site: Gateway, browse: Browse
) -> None:
    """Away when the answer should end: it ends when the server is back. What is asked meanwhile
    comes back to where it was typed, the page says what it waits for, and then takes it."""
    watched = browse()
    watched.expected = EXPECTED
    page = watched.open(f"http://127.0.0.1:{site.port}/#{uuid.uuid4()}")
    other = watched.open(f"http://127.0.0.1:{site.port}/#{uuid.uuid4()}")
    expect(other.get_by_text("Ready")).to_be_visible()
    ask(page)
    wait_for_progress(page, 100)
    durable.kill()
    other.get_by_label("Your question").fill("And int?")
    other.keyboard.press("Enter")
    expect(other.get_by_text("Reconnecting…")).to_be_visible()
    page.wait_for_timeout(3000)  # the answer's last chunks, and its end, wait in the worker
    durable.start()
    expect_whole_answer_once(page)
    expect(other.get_by_text("Ready")).to_be_visible()
    expect(other.get_by_label("Your question")).to_have_value("And int?")
    expect(other.locator(".user")).to_have_count(0)
    other.get_by_label("Your question").focus()
    other.keyboard.press("Enter")
    expect(other.locator(".assistant .text")).not_to_be_empty(timeout=20_000)


def test_a_question_whose_turn_is_about_to_begin_when_the_server_restarts_is_answered(
    durable: ValkeyProcess, site: Gateway, browse: Browse, times: Callable[[int, int], int]
) -> None:
    """The worker has not taken it, or has just, or is about to begin: whatever Redis and Celery
    make of the message then, it is sent again."""
    watched = browse()
    watched.expected = EXPECTED
    for number in range(times(2, 20)):
        page = watched.open(f"http://127.0.0.1:{site.port}/#{uuid.uuid4()}")
        expect(page.get_by_text("Ready")).to_be_visible()
        page.get_by_label("Your question").fill(QUESTION)
        with page.expect_response(lambda response: response.request.method == "POST"):
            page.keyboard.press("Enter")
        page.wait_for_timeout(number * 8)  # milliseconds: somewhere on the way
        durable.kill()
        durable.start()
        expect_whole_answer_once(page)
        page.close()
