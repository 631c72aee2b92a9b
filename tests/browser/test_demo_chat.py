"""``make demo-chat`` on a model of one's own, until Ctrl+C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Browse
from tests.servers.children import spawn
from tests.unit.test_model import Completions, completions_server
from tests.workers import ROOT, Log

pytestmark = pytest.mark.usefixtures("built")

#: What a model might say, and what might be said through it.
MARKDOWN = """\
Use a **dict**, see [the docs](https://docs.python.org/3/library/stdtypes.html):

1. one
2. two
   - *nested* `code`

| a | b |
|---|---|
| 1 | 2 |

<img src="https://example.invalid/x" onerror="window.hurt = 1"><script>window.hurt = 2</script>

[click](javascript:window.hurt=3) ![a picture](https://example.invalid/leak?secret)

```python
print("<b>not bold</b>")
"""


@contextmanager
def demo(completions: Completions) -> Iterator[tuple[subprocess.Popen[bytes], Log]]:
    """``make demo-chat`` as the foreground job of a terminal: with a process group of its own."""
    ours = ("CELERY_", "OPENAI_", "EXAMPLE_", "MAKE", "MFLAGS")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    url = f"http://127.0.0.1:{completions.server_port}/v1"
    process = spawn(
        ["make", "demo-chat", "PORT=0"],
        cwd=ROOT,
        env={**environment, "OPENAI_BASE_URL": url, "OPENAI_MODEL": "a-model"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    log = Log(process)
    try:
        log.wait_for("Ctrl+C ends everything", timeout=90)
        yield process, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
        log.join()


def address(log: Log) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/", log.text)
    assert found is not None
    return found[0]


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")


@pytest.fixture
def completions() -> Iterator[Completions]:
    with completions_server() as server:
        server.pieces = re.findall(r"\S*\s+", MARKDOWN)
        yield server


def test_the_demo_shows_what_a_model_says(completions: Completions, browse: Browse) -> None:
    """Its Markdown, also while it comes, and nothing that it makes the page do or load; the second
    question goes with what was said before."""
    watched = browse()
    watched.expected = ("net::ERR_",)  # of the end
    with demo(completions) as (_, log):
        page = watched.open(address(log))
        wanted: list[str] = []
        page.on("request", lambda request: wanted.append(request.url))
        completions.may_end.clear()
        ask(page, "What is a dict?")
        answer = page.locator(".assistant .text")
        expect(answer.locator("pre code")).to_have_text('print("<b>not bold</b>")\n')
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(answer.locator("strong")).to_have_text("dict")
        expect(answer.locator("ol > li > ul > li em")).to_have_text("nested")
        expect(answer.locator("td")).to_have_text(["1", "2"])
        expect(answer.get_by_role("link")).to_have_text(["the docs", "a picture"])
        expect(answer.locator("img, script, b")).to_have_count(0)
        assert page.evaluate("window.hurt") is None
        assert not [each for each in wanted if "example.invalid" in each]
        completions.may_end.set()
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        ask(page, "And a set?")
        expect(answer).to_have_count(2)
        told = completions.requests[1]["messages"]
        assert [each["role"] for each in told] == ["system", "user", "assistant", "user"]
        assert told[2]["content"] == MARKDOWN
        assert completions.requests[1]["model"] == "a-model"


def test_ctrl_c_ends_the_demo_in_mid_answer(completions: Completions, browse: Browse) -> None:
    """Every process within seconds, pressed twice even, with its usual exit status, no traceback
    and no files."""
    watched = browse()
    watched.expected = ("net::ERR_",)
    completions.may_end.clear()
    with demo(completions) as (process, log):
        page = watched.open(address(log))
        ask(page, "What is a dict?")
        expect(page.locator(".assistant strong")).to_have_text("dict")
        directory = re.search(r"removes (\S+)\.\n", log.text)
        assert directory is not None
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 4, "a worker with its children, and the gateway"
        servers = servers_in(directory[1])
        assert servers, "Valkey"
        started += servers
        interrupted_at = time.monotonic()
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)  # somebody impatient
        status = process.wait(timeout=20)
        _, alive = psutil.wait_procs(started, timeout=5)
        took = time.monotonic() - interrupted_at
        log.join()
    assert alive == []
    assert status in (0, 130, -signal.SIGINT)
    assert took < 8
    assert "Traceback" not in log.text
    assert not Path(directory[1]).exists()


def servers_in(directory: str) -> list[psutil.Process]:
    """Processes that work there and are nobody's children: the embedded server."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(directory) or directory in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_model_that_fails_is_told_of_and_may_be_asked_again(
    completions: Completions, browse: Browse
) -> None:
    """The page says so without the error's words, offers to try again, and shows the answer."""
    completions.behaviour, completions.after_that = "busy", None
    watched = browse()
    watched.expected = ("net::ERR_",)
    with demo(completions) as (_, log):
        page = watched.open(address(log))
        ask(page, "What is a dict?")
        expect(page.get_by_role("alert")).to_contain_text("ended with an error", timeout=20_000)
        expect(page.get_by_text("slow down")).to_have_count(0)
        completions.behaviour = "complete"
        page.get_by_role("button", name="Regenerate").click()
        expect(page.locator(".assistant .text strong")).to_have_text("dict", timeout=20_000)
        expect(page.get_by_role("alert")).to_have_count(0)
