"""``make serve``: the example project with its gateway, as its first lines say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from example_project import documentation, gateway, tokens
from tests.servers.children import spawn
from tests.workers import ROOT, Log


def test_what_it_prints_works_and_everything_ends_with_it() -> None:
    """The URL and the token of its curl command bring the whole answer; Ctrl+C leaves nothing."""
    process = spawn(
        [sys.executable, "-m", "example_project.serve", "--port", "0", "--topic", "zip"],
        cwd=ROOT,
        env={**os.environ, "EXAMPLE_TOKENS_PER_SECOND": "500", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    log = Log(process)
    try:
        text = log.wait_for("Ctrl+C ends everything", timeout=60)
        (url,) = re.findall(r"'(http://127\.0\.0\.1:\d+/v1/stream/runs/[^?]+)\?live=sse", text)
        (token,) = re.findall(r"curl -N -H 'Authorization: Bearer (\S+)'", text)
        assert list(gateway.read(url, token)) == tokens.split(documentation.answer("zip"))
        directory = Path(re.findall(r"removes (\S+)\.$", log.wait_for("removes "), re.M)[0])
        assert directory.is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert not directory.exists()
        log.join()
        assert "Traceback" not in log.text
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
