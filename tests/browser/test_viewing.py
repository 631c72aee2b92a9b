"""The page shows what a stream holds: from a real worker, in every shape, however much."""

from __future__ import annotations

import itertools
import time
import uuid

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Browse
from tests.browser.stage import PHONE, Gateway, writer
from tests.workers import Worker


def copied(page: Page) -> str:
    """What "Copy text" puts on the clipboard."""
    page.get_by_role("button", name="Copy text").click()
    expect(page.get_by_role("button", name="Copy text")).to_have_text("Copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def stored(site: Gateway, run_id: str, key: str = "default") -> str:
    """The strings of a stream, as the store has them."""
    end = site.streams.head(run_id, key).end
    return "".join(itertools.islice(site.streams.read(run_id, key, timeout=10), end))


def numbers(count: int) -> str:
    """What the writer process writes."""
    return "".join(f"{n} " + ("\n" if n % 25 == 24 else "") for n in range(count))


def test_a_workers_answer_is_followed_live_to_its_end(
    site: Gateway, assistant: Worker, browse: Browse
) -> None:
    """From the list: tokens flow, progress moves, the state changes, the end is shown."""
    page = browse().open(site.url)
    asked = assistant.app.send_task("example_project.tasks.answer", ("json.dumps", 200.0))
    row = page.get_by_role("navigation").get_by_role("link").filter(has_text=asked.id[-6:])
    expect(row).to_be_visible()
    row.click()
    expect(page.get_by_role("heading", name=asked.id)).to_be_visible()
    expect(page.locator(".kind .state")).to_have_text("Started")
    expect(page.locator(".connection .word")).to_have_text("Live")
    bar = page.get_by_role("progressbar")
    expect(bar).to_be_visible()
    seen = int(bar.get_attribute("aria-valuenow") or 0)
    assert seen < 100
    expect(page.locator("#foot")).to_have_text("End of stream", timeout=30_000)
    expect(page.locator(".kind .state")).to_have_text("Success")
    expect(page.locator(".kind")).to_contain_text("1 attempt")
    expect(bar).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".connection .word")).to_have_text("Ended")
    text = asked.get(timeout=10)["text"]
    assert copied(page) == text == stored(site, asked.id)
    expect(page.locator("#blocks")).to_contain_text(text[-40:].strip().splitlines()[-1])


def test_a_chat_agents_parts_become_text(site: Gateway, assistant: Worker, browse: Browse) -> None:
    """Deltas flow together; the parts around them stay what they are."""
    session = f"chat-{uuid.uuid4().hex[:6]}"
    asked = assistant.app.send_task("example_project.tasks.agent", (session, "zip", 2000.0))
    text = asked.get(timeout=20)["text"]
    page = browse().open(f"{site.url}#/sessions/{session}")
    expect(page.locator("#blocks .text")).to_have_count(1)
    assert page.locator("#blocks .text").text_content() == text
    # The starts of turn, step and text, the ends of text and turn.
    expect(page.locator("#blocks .row")).to_have_count(5)
    expect(page.get_by_role("tab", name="out")).to_have_attribute("aria-selected", "true")


def test_values_are_trees_and_bytes_are_hexadecimal(site: Gateway, browse: Browse) -> None:
    """Each is closed until it is opened; long whole numbers keep their digits."""
    run_id = f"shapes-{uuid.uuid4().hex[:6]}"
    with site.streams.write_to(run_id, "values", create=True) as values:
        values.write({"name": "first", "inner": {"deep": [1, 2, 12345678901234567890]}})
        values.write([])
        values.write(None)
    with site.streams.write_to(
        run_id, "raw", create=True, content_type="application/octet-stream"
    ) as raw:
        raw.write(b"\x00\x01hello\xff" * 8)
    page = browse().open(f"{site.url}#/runs/{run_id}/values")
    expect(page.locator("#blocks .row")).to_have_count(3)
    for name in ("first", "deep", "deep:"):
        page.locator("#blocks summary").filter(has_text=name).last.click()
    expect(page.locator("#blocks")).to_contain_text("12345678901234567890")
    page.get_by_role("tab", name="raw").click()
    expect(page).to_have_url(f"{site.url}#/runs/{run_id}/raw")
    expect(page.locator("#blocks summary")).to_contain_text("64 bytes")
    page.locator("#blocks summary").click()
    expect(page.locator(".dump")).to_contain_text("00 01 68 65 6c 6c 6f ff")


def test_markup_in_a_stream_stays_text(site: Gateway, browse: Browse) -> None:
    """Whatever is written, in a chunk or as a name, nothing of it becomes part of the page."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    run_id = f"evil-{uuid.uuid4().hex[:6]} <b onclick=alert(3)>x"
    with site.streams.write_to(run_id, "default", create=True) as chunks:
        chunks.write(evil)
        chunks.write({evil: evil})
    page = browse().open(site.url)
    page.get_by_role("navigation").get_by_role("link", name=run_id).click()
    expect(page.locator("#blocks .text")).to_have_text(evil)
    assert page.locator("#blocks img, #blocks script, nav b").count() == 0


def test_fifty_thousand_chunks_stay_smooth(site: Gateway, browse: Browse) -> None:
    """All arrive, in order; the document stays small, and nothing blocks it for long."""
    run_id, count = f"many-{uuid.uuid4().hex[:6]}", 50_000
    page = browse().open(site.url)
    page.evaluate(
        """() => { window.longest = 0; new PerformanceObserver((list) => {
        for (const { duration } of list.getEntries())
            window.longest = Math.max(window.longest, duration);
        }).observe({ entryTypes: ["longtask"] }); }"""
    )
    page.evaluate("id => { location.hash = `#/runs/${id}` }", run_id)
    with writer(site.server, run_id, count) as process:
        expect(page.locator("#chunks")).to_have_text("50,000 chunks", timeout=30_000)
        assert process.wait(timeout=20) == 0
    expect(page.locator("#blocks .text").last).to_contain_text("49999")
    assert page.locator("#blocks > *").count() <= 400
    # Milliseconds; about 100 on a machine that has nothing else to do.
    assert page.evaluate("window.longest") < 1_000
    assert copied(page) == numbers(count) == stored(site, run_id)


def test_scrolling_back_through_many_values_loses_none(site: Gateway, browse: Browse) -> None:
    """The window moves over the values in both directions; "jump to end" follows again."""
    run_id, count = f"rows-{uuid.uuid4().hex[:6]}", 3_000
    with site.streams.write_to(run_id, create=True) as rows:
        for number in range(count):
            rows.write({"n": number})
    page = browse().open(f"{site.url}#/runs/{run_id}")
    expect(page.locator("#chunks")).to_have_text("3,000 chunks")
    expect(page.locator("#blocks .row").last).to_contain_text("n: 2999")
    seen = set(range(2_900, 3_000))
    log = page.locator("#log")
    deadline = time.monotonic() + 30
    while 0 not in seen and time.monotonic() < deadline:
        shown = page.eval_on_selector_all(
            "#blocks > *", "rows => [rows.length, ...rows.map((row) => +row.dataset.start)]"
        )
        assert shown[0] <= 400
        assert shown[1:] == list(range(shown[1], shown[-1] + 1))
        seen.update(shown[1:])
        log.evaluate("log => { log.scrollTop -= 2500 }")
        page.wait_for_timeout(20)
    assert seen == set(range(count))
    jump = page.get_by_role("button", name="Jump to end")
    expect(jump).to_be_visible()
    with site.streams.write_to(run_id) as rows:
        rows.write({"n": count})
    expect(page.locator("#chunks")).to_have_text("3,001 chunks")
    assert log.evaluate("log => log.scrollTop") < 5_000
    jump.click()
    expect(page.locator("#blocks .row").last).to_be_in_viewport()
    expect(page.locator("#blocks .row").last).to_contain_text("n: 3000")
    expect(jump).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True])
def test_it_fits_and_can_be_read(site: Gateway, browse: Browse, scheme: str, phone: bool) -> None:
    """In light and dark, on a desk and a phone: nothing overflows, text stands out."""
    run_id = f"look-{uuid.uuid4().hex[:6]}"
    with site.streams.write_to(run_id, create=True) as chunks:
        chunks.write("word " * 200 + "x" * 500)
        chunks.write({"long": "y" * 500})
    options = {"viewport": PHONE, "has_touch": True} if phone else {}
    page = browse(color_scheme=scheme, **options).open(site.url)
    link = page.get_by_role("navigation").get_by_role("link", name=run_id)
    link.click()
    expect(page.locator("#blocks .row")).to_be_visible()
    assert link.is_visible() is not phone
    overflow = "() => document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    assert page.locator("#log").evaluate("log => log.scrollWidth - log.clientWidth") <= 0
    dark = page.evaluate(
        "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((c) => c < 60)"
    )
    assert dark is (scheme == "dark")
    assert len(page.screenshot()) > 10_000
    if phone:
        page.get_by_role("link", name="Back to the list").click()
        expect(link).to_be_visible()
