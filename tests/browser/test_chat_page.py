"""The example's chat page: a stock useChat that outlives reloads, tabs, workers and servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat_stage import addresses, answered, ask, expect_whole_answer_once, serving
from tests.browser.conftest import Browse
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.servers.children import end
from tests.workers import Worker, worker


@pytest.fixture(scope="module")
def answering(valkey: ValkeyProcess) -> Iterator[Worker]:
    """A worker of the example, at the pace of these tests."""
    with worker("example_project.app", valkey, env=addresses(valkey)) as started:
        yield started


@pytest.fixture(scope="module")
def chat_site(valkey: ValkeyProcess, built: Path, answering: Worker) -> Iterator[Gateway]:
    with serving(valkey, built) as started:
        yield started


@pytest.fixture
def address(chat_site: Gateway) -> str:
    """A chat of the test's own."""
    return f"http://127.0.0.1:{chat_site.port}/#{uuid.uuid4()}"


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
