"""What a browser needs: a gateway process with its page, writers elsewhere, and Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from celery_streams import Streams
from tests.servers import Proxy, ServerProcess
from tests.servers.children import end, spawn
from tests.workers import RESULT_DB, ROOT, Log

SECRET = "the secret of the tests in a browser"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 820}

_ARGUMENTS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

_WRITER = """
import sys, time
from celery_streams import Streams
run_id, key, count, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
streams = Streams()
with streams.write_to(run_id, key, create=True) as writer:
    for number in range(count):
        writer.write(f"{number} " + ("\\n" if number % 25 == 24 else ""))
        if pause:
            time.sleep(pause)
streams.close()
"""


def chromium_missing() -> str | None:
    """Why no browser can be started here; ``None`` if one can."""
    return None if shutil.which("chromium") else "chromium is not installed"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The distribution's Chromium."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*_ARGUMENTS, *sandbox]
        )
        yield browser
        browser.close()


@dataclass(slots=True)
class Gateway:
    """A gateway process, and this process's way to the store behind it."""

    port: int
    server: ServerProcess
    streams: Streams
    log: Log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def gateway(server: ServerProcess, *, insecure: bool = True, **env: str) -> Iterator[Gateway]:
    """A gateway process that serves the page."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "CELERY_STREAMS_URL": server.url,
        "CELERY_STREAMS_SECRET": SECRET,
        "TEST_RESULT_BACKEND": server.url_for(db=RESULT_DB),
        **({"TEST_INSECURE": "1"} if insecure else {}),
        **env,
    }
    command = [
        sys.executable, "-m", "uvicorn", "tests.browser.app:app",
        "--host", "127.0.0.1", "--port", "0", "--timeout-graceful-shutdown", "1",
    ]  # fmt: skip
    process = spawn(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=ROOT,
    )
    log = Log(process)
    streams = Streams(url=server.url, secret=SECRET)
    try:
        text = log.wait_for("on http://127.0.0.1:", timeout=60)
        found = re.search(r"on http://127\.0\.0\.1:(\d+)", text)
        assert found is not None
        yield Gateway(int(found[1]), server, streams, log)
    finally:
        streams.close()
        end(process, patience=5)
        log.join()


class Network(Proxy):
    """A proxy that looks for no Redis commands in what passes."""

    def _count_commands(self, connection: Any, data: bytes) -> None:
        pass

    def _until_doomed(self, connection: Any, data: bytes) -> tuple[bytes, None]:
        return data, None


@contextmanager
def writer(
    server: ServerProcess, run_id: str, count: int, *, key: str = "default", pause: float = 0.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that writes ``count`` numbers to a run's stream, as strings."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CELERY_STREAMS_URL": server.url,
        "CELERY_STREAMS_SECRET": SECRET,
    }
    command = [sys.executable, "-c", _WRITER, run_id, key, str(count), str(pause)]
    process = spawn(command, env=environment, cwd=ROOT)
    try:
        yield process
    finally:
        end(process)


@dataclass(slots=True)
class Watched:
    """Pages, and what they complained about."""

    context: BrowserContext
    complaints: list[str] = field(default_factory=list)
    #: What a test provokes (a refused connection): complaints that contain it are expected.
    expected: tuple[str, ...] = ()

    def open(self, url: str) -> Page:
        """A new page that shows ``url``."""
        page = self.context.new_page()
        # A function of its own: Playwright sets an attribute on what it is given.
        page.on("console", lambda message: self._console(message))  # noqa: PLW0108
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.goto(url)
        return page

    @property
    def unexpected(self) -> list[str]:
        return [each for each in self.complaints if not any(part in each for part in self.expected)]

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(f"{message.type}: {message.text}")


#: A violation of the content security policy becomes a console error that tests see.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI}`));
"""
