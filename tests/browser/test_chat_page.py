"""The example's chat page: a stock useChat that outlives reloads, tabs, workers and servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat_stage import (
    QUESTION,
    addresses,
    answered,
    ask,
    expect_whole_answer_once,
    serving,
    shown,
)
from tests.browser.conftest import Browse
from tests.browser.stage import DESK, PHONE
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
    stopped = shown(page)
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


def test_an_edit_keeps_the_former_version_which_can_be_gone_on_with(
    address: str, browse: Browse
) -> None:
    """It is shown, also after a reload; what is sent then goes on from it; the other is kept."""
    page = browse().open(address)
    ask(page)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("And bool?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("2 / 2")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Former version").click()
    expect(page.get_by_text("This is a former version.")).to_be_visible()
    expect(page.locator(".user .text")).to_have_text([QUESTION])
    page.get_by_label("Your question").fill("And int?")
    page.keyboard.press("Enter")
    expect(page.locator(".user .text")).to_have_text([QUESTION, "And int?"])
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_have_count(2)
    page.reload()
    expect(page.locator(".user .text")).to_have_text([QUESTION, "And int?"])
    page.get_by_role("button", name="Former version").first.click()
    expect(page.locator(".user .text")).to_have_text(["And bool?"])
    page.get_by_role("button", name="Back to the latest").click()
    expect(page.locator(".user .text")).to_have_text([QUESTION, "And int?"])


def test_the_page_is_used_with_the_keyboard_alone(address: str, browse: Browse) -> None:
    """Ask, stop, reach what can be done with an answer, and a line break in a question."""
    page = browse().open(address)
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("What is")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("zip?")
    page.keyboard.press("Enter")
    expect(page.locator(".user .text")).to_have_text("What is\nzip?", use_inner_text=True)
    expect(page.locator(".assistant .text")).not_to_be_empty(timeout=20_000)
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    regenerate = page.get_by_role("button", name="Regenerate")
    expect(regenerate).to_be_enabled()  # once the end of the answer has come
    page.keyboard.press("Shift+Tab")
    expect(regenerate).to_be_focused()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(address: str, browse: Browse, viewport: dict[str, int], scheme: str) -> None:
    """Nothing is wider than the page, and what is written can be read on what it stands on."""
    page = browse(viewport=viewport, color_scheme=scheme).open(address)
    ask(page)
    expect(page.locator(".assistant .code pre")).to_be_visible(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in (".assistant .text p", ".user .text", ".tool summary", ".code pre code"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


#: The contrast of an element's colour with the one behind it, as WCAG has it.
CONTRAST = """element => {
  const rgb = colour => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = colour => {
    const [r, g, b] = rgb(colour).map(c => (c /= 255) <= 0.04045 ? c / 12.92
      : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const both = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
    .map(luminance).sort();
  return (both[1] + 0.05) / (both[0] + 0.05);
}"""
