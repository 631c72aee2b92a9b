"""The HTTP gateway of the stage, and what reads through it as a browser does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from celery_streams import StreamError
from celery_streams.tokens import scope

_START_TIMEOUT = 40.0
_ADDRESS = re.compile(rb"(http://127\.0\.0\.1:\d+) ")
_SILENCE = 45.0  #: seconds without even a heartbeat after which the gateway counts as gone


def serve_arguments(port: int = 0) -> tuple[str, ...]:
    """``celery streams serve`` with its page, on ``port`` (0: any)."""
    return (
        *("-m", "celery", "-A", "example_project.app", "streams", "serve"),
        *("--port", str(port), "--ui"),
    )


class GatewayProcess:
    """A gateway in a process of its own, which writes to ``log``.

    It is Python with ``arguments``, :func:`serve_arguments` or whatever else says its address.
    """

    def __init__(self, log: Path, directory: Path, arguments: Sequence[str]) -> None:
        self._log = log
        command = [sys.executable, *arguments]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> str:
        """Its address, once it listens. Raises :class:`StreamError`."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not (found := _ADDRESS.search(self._log.read_bytes())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-1500:]
                raise StreamError(f"the gateway did not start; its log ends with:\n{tail}")
            time.sleep(0.05)
        return found[1].decode()

    def stop(self) -> None:
        """SIGTERM: live readers are told to connect elsewhere."""
        self.process.terminate()
        try:
            self.process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_url(address: str, run_id: str, key: str = "default") -> str:
    """Where the gateway serves a stream of a run."""
    return f"{address}/v1/stream/runs/{quote(run_id, safe='')}/{quote(key, safe='')}"


def token_for(streams: Any, run_id: str, ttl: float = 600.0) -> str:
    """What lets its bearer read the run, as an application gives it to the run's user."""
    token: str = streams.token([scope("read", "runs", run_id)], ttl)
    return token


def read(url: str, token: str) -> Iterator[Any]:
    """A stream's chunks as server-sent events, live, to its end.

    Comes back with its offset when an answer ends before the stream does, as ``EventSource``
    does by itself.

    Raises:
        StreamError: the gateway refuses, or cannot be reached.
    """
    offset, closed = "-1", False
    while not closed:
        request = urllib.request.Request(
            f"{url}?live=sse&offset={offset}", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_SILENCE) as response:
                for kind, data in _events(response):
                    if kind == "data":
                        yield from data
                    elif kind == "control":
                        offset = data["streamNextOffset"]
                        closed = data.get("streamClosed", False)
        except urllib.error.HTTPError as error:
            with error:
                raise StreamError(f"the gateway answered {error.code}") from None
        except OSError as error:
            raise StreamError(f"the gateway at {request.host} failed: {error}") from None


def _events(lines: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
    kind, data = "", ""
    for line in lines:
        name, _, value = line.decode().rstrip("\r\n").partition(":")
        if name == "event":
            kind = value.strip()
        elif name == "data":
            data += value
        elif not name and data:
            yield kind, json.loads(data)
            kind, data = "", ""
