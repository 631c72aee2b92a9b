"""The example's chat page, served; and what a reader does with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect

from example_project import documentation
from tests.gateway.serving import Gateway, running
from tests.servers import ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, ROOT

#: Where `make chat-page` puts the page.
BUILT = ROOT / "build" / "chat_page"

SITE = ("-m", "uvicorn", "example_project.chat_site:app", "--timeout-graceful-shutdown", "1")
#: About four seconds for this answer: long enough for a test to come in between.
PACE = "40"
QUESTION = "zip?"


def bare(text: str) -> str:
    """A text's letters and digits, without what Markdown adds: the same for both forms of it."""
    return re.sub(r"[\W_]", "", re.sub(r"```\w*", "", text))


def answered() -> str:
    """What the page shows of the whole answer, once, :func:`bare`."""
    return bare(documentation.answer(QUESTION))


def shown(page: Page) -> str:
    """What it shows now, :func:`bare`."""
    return bare(page.locator(".assistant .text").text_content() or "")


def addresses(server: ValkeyProcess) -> dict[str, str]:
    return {
        "CELERY_BROKER_URL": server.url_for(db=BROKER_DB),
        "CELERY_RESULT_BACKEND": server.url_for(db=RESULT_DB),
        "EXAMPLE_TOKENS_PER_SECOND": PACE,
    }


@contextmanager
def serving(server: ValkeyProcess, built: Path, port: int = 0) -> Iterator[Gateway]:
    """The page's application."""
    env = {**addresses(server), "EXAMPLE_CHAT_PAGE": str(built)}
    arguments = ("--host", "127.0.0.1", "--port", str(port))
    with running(server.url, *arguments, command=SITE, env=env) as started:
        yield started


def ask(page: Page) -> None:
    """Ask, and wait until some of the answer is there."""
    page.get_by_label("Your question").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .text")).not_to_be_empty(timeout=20_000)


def expect_whole_answer_once(*pages: Page) -> None:
    """One question, one answer, all of its parts; nothing is being received."""
    for page in pages:
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=30_000)
        expect(page.locator(".user")).to_have_count(1)
        expect(page.locator(".assistant")).to_have_count(1)
        expect(page.locator(".assistant .tool")).to_have_count(1)
        expect(page.locator(".assistant progress")).to_have_count(1)
        assert shown(page) == answered()
        bar = page.get_by_label("Progress of the answer")
        assert bar.get_attribute("value") == bar.get_attribute("max")
