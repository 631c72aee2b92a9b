"""The example's chat page: a stock useChat that outlives reloads, tabs, workers and servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from example_project import documentation
from example_project.chat_site import BUILT
from tests.browser.conftest import Browse
from tests.gateway.serving import Gateway, running
from tests.servers import ValkeyProcess
from tests.servers.children import end
from tests.workers import BROKER_DB, RESULT_DB, Worker, worker

SITE = ("-m", "uvicorn", "example_project.chat_site:app", "--timeout-graceful-shutdown", "1")
#: About four seconds for this answer: long enough for a test to come in between.
PACE = "40"
QUESTION = "zip?"


def answered() -> str:
    """What the page shows of the whole answer, once."""
    return documentation.answer(QUESTION)


@pytest.fixture(scope="module")
def built() -> Path:
    """The page, which `make test-browser` has built."""
    if not (BUILT / "index.html").exists():
        pytest.skip("the chat page is not built: make chat-page")
    return BUILT


def addresses(server: ValkeyProcess) -> dict[str, str]:
    return {
        "CELERY_BROKER_URL": server.url_for(db=BROKER_DB),
        "CELERY_RESULT_BACKEND": server.url_for(db=RESULT_DB),
        "EXAMPLE_TOKENS_PER_SECOND": PACE,
    }


@pytest.fixture(scope="module")
def answering(valkey: ValkeyProcess) -> Iterator[Worker]:
    """A worker of the example, at the pace of these tests."""
    with worker("example_project.app", valkey, env=addresses(valkey)) as started:
        yield started


@contextmanager
def serving(server: ValkeyProcess, built: Path, port: int = 0) -> Iterator[Gateway]:
    """The page's application."""
    env = {**addresses(server), "EXAMPLE_CHAT_PAGE": str(built)}
    arguments = ("--host", "127.0.0.1", "--port", str(port))
    with running(server.url, *arguments, command=SITE, env=env) as started:
        yield started


@pytest.fixture(scope="module")
def chat_site(valkey: ValkeyProcess, built: Path, answering: Worker) -> Iterator[Gateway]:
    with serving(valkey, built) as started:
        yield started


@pytest.fixture
def address(chat_site: Gateway) -> str:
    """A chat of the test's own."""
    return f"http://127.0.0.1:{chat_site.port}/#{uuid.uuid4()}"


def ask(page: Page) -> None:
    """Ask, and wait until some of the answer is there."""
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .text")).not_to_be_empty()


def expect_whole_answer_once(*pages: Page) -> None:
    """One question, one answer, all of its parts; nothing is being received."""
    for page in pages:
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=30_000)
        expect(page.locator(".user")).to_have_count(1)
        expect(page.locator(".assistant")).to_have_count(1)
        expect(page.locator(".assistant .tool")).to_have_count(1)
        expect(page.locator(".assistant progress")).to_have_count(1)
        assert page.locator(".assistant .text").text_content() == answered()
        bar = page.get_by_label("Progress of the answer")
        assert bar.get_attribute("value") == bar.get_attribute("max")


def test_a_reload_in_mid_answer_shows_the_whole_answer_once(address: str, browse: Browse) -> None:
    """Text, tool call and progress, without the part before the reload coming twice."""
    page = browse().open(address)
    ask(page)
    page.reload()
    expect(page.locator(".assistant[data-live=true] .text")).not_to_be_empty()
    expect_whole_answer_once(page)


def test_two_tabs_are_in_step(address: str, browse: Browse) -> None:
    """The second tab shows the question and the growing answer without being touched."""
    watched = browse()
    other, page = watched.open(address), watched.open(address)
    expect(other.get_by_text("Ask about anything")).to_be_visible()
    ask(page)
    expect(other.locator(".assistant[data-live=true] .text")).not_to_be_empty()
    expect_whole_answer_once(page, other)


def test_stop_ends_the_answer_for_everybody_and_regenerate_replaces_it(
    address: str, browse: Browse
) -> None:
    """The stopped answer stays as far as it came, also after a reload; then comes a whole one."""
    page = browse().open(address)
    ask(page)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    stopped = page.locator(".assistant .text").text_content()
    assert stopped
    assert stopped != answered()
    assert answered().startswith(stopped)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".assistant[data-live=true]")).to_be_visible()
    expect_whole_answer_once(page)


def test_a_killed_worker_process_leaves_one_complete_answer(
    address: str, answering: Worker, browse: Browse
) -> None:
    """The next attempt's answer stands in the place of the dead one's."""
    page = browse().open(address)
    ask(page)
    before = answering.wait_children()
    for child in before:
        answering.kill_child(child.pid)
    expect_whole_answer_once(page)
    page.reload()
    expect_whole_answer_once(page)


def test_a_gateway_restart_in_mid_answer_is_waited_for(
    valkey: ValkeyProcess, built: Path, answering: Worker, browse: Browse
) -> None:
    """The page says that it reconnects, then goes on with the answer by itself."""
    watched = browse()
    watched.expected = ("net::ERR_", "status of 5")
    with serving(valkey, built) as first:
        port = first.port
        page = watched.open(f"http://127.0.0.1:{port}/#{uuid.uuid4()}")
        ask(page)
        end(first.process)
        expect(page.get_by_text("Reconnecting…")).to_be_visible()
    with serving(valkey, built, port):
        expect_whole_answer_once(page)
        page.close()
