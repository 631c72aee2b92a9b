"""Without a mouse: everything can be reached, and the focus is where one expects it."""

from __future__ import annotations

import uuid

from playwright.sync_api import expect

from tests.browser.conftest import Browse
from tests.browser.stage import Gateway


def test_find_open_switch_and_go_back(site: Gateway, browse: Browse) -> None:
    """/ to search, arrows in the list, Enter to open, arrows over the tabs, Escape back."""
    stem = uuid.uuid4().hex[:6]
    for name in ("one", "two", "three"):
        with site.streams.write_to(f"{stem}-{name}", create=True) as chunks:
            chunks.write(f"this is {name}")
    with site.streams.write_to(f"{stem}-two", "other", create=True) as chunks:
        chunks.write("the other stream")
    page = browse().open(site.url)
    expect(page.get_by_role("link", name=f"{stem}-one")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type(stem)
    shown = page.locator("nav a[title]:visible")
    expect(shown).to_have_count(3)
    page.keyboard.press("ArrowDown")
    expect(shown.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(shown.nth(2)).to_be_focused()
    page.keyboard.press("Home")
    expect(shown.nth(0)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type("-two")
    expect(shown).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#blocks")).to_have_text("this is two")
    expect(page.get_by_role("heading", name=f"{stem}-two")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="default")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="other")).to_be_focused()
    expect(page.locator("#blocks")).to_have_text("the other stream")
    page.keyboard.press("Escape")
    expect(page.get_by_text("Nothing is open")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).to_have_value("")


def test_an_id_that_is_not_listed_can_be_entered(site: Gateway, browse: Browse) -> None:
    """As a run, a session, or with its kind before it."""
    session = f"session-{uuid.uuid4().hex[:6]}"
    watched = browse()
    watched.expected = ("status of 404",)
    page = watched.open(site.url)
    page.keyboard.press("/")
    page.keyboard.type(session)
    suggestions = page.get_by_role("navigation").get_by_role("link")
    expect(suggestions).to_have_count(2)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(suggestions.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{site.url}#/sessions/{session}")
    expect(page.locator("#foot")).to_have_text("Nothing has been written yet.")
    page.keyboard.press("/")
    page.keyboard.press("Control+A")
    page.keyboard.type("streams/mine/notes")
    expect(suggestions).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="mine/notes")).to_be_visible()


def test_everything_has_a_name_and_a_role(site: Gateway, browse: Browse) -> None:
    """No button, link, field or image is without a name for those who do not see it."""
    run_id = f"names-{uuid.uuid4().hex[:6]}"
    with site.streams.write_to(run_id, create=True) as chunks:
        chunks.write({"done": 1, "total": 4})
    page = browse().open(f"{site.url}#/runs/{run_id}")
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute(
        "aria-valuenow", "25"
    )
    expect(page.get_by_role("tabpanel")).to_be_visible()
    expect(page.locator("[role=status]")).to_have_count(1)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, img, nav, [role]")]
        .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.id
            || e.getAttribute("alt") !== null || e.labels?.length))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []
