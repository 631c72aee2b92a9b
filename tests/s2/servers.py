"""A real s2-lite as a child process, and the token server in front of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import redis

from tests.servers import ValkeyProcess
from tests.servers.children import end, eventually, free_port, spawn

#: Where `make s2-lite` installs the server; outside the checkout, because it takes long.
INSTALLED = Path(
    os.environ.get("S2_LITE_ROOT")
    or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "celery-streams/s2-lite"
)
BASIN = "celery-streams-tests"


def binary() -> str:
    """The crate ``s2-lite`` calls its binary ``server``."""
    path = INSTALLED / "bin" / "server"
    if not path.exists():
        raise RuntimeError(f"s2-lite is not installed ({path}): make s2-lite")
    return str(path)


@dataclass(slots=True, kw_only=True)
class S2Lite:
    """s2-lite on 127.0.0.1 with one basin; a context manager.

    ``durable``: it keeps its data in files, over ``kill()`` and ``start()``.
    """

    durable: bool = False
    port: int = 0
    directory: Path = field(default_factory=Path)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The store URL; there are no tokens."""
        return f"s2://{BASIN}?endpoint={self.endpoint}&skip_access_tokens"

    def start(self) -> None:
        """Start (again, on the same port and data) and wait until it answers."""
        self.port = self.port or free_port()
        options = ["--port", str(self.port), "--no-dashboard"]
        if self.durable:
            options += ["--local-root", str(self.directory / "data")]
        with (self.directory / "log").open("ab") as log:
            self.process = spawn([binary(), *options], stdout=log, stderr=log)

        def answers() -> bool:
            try:
                return httpx.put(f"{self.endpoint}/v1/basins/{BASIN}", json={}).is_success
            except httpx.TransportError:
                return False

        eventually(answers, f"s2-lite answers on port {self.port}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def streams(self) -> list[str]:
        """The names of all streams."""
        answer = httpx.get(f"{self.endpoint}/v1/streams", headers={"s2-basin": BASIN})
        return [each["name"] for each in answer.json()["streams"] if not each.get("deleted_at")]

    def flush(self) -> None:
        """Delete every stream."""
        while names := self.streams():
            for name in names:
                path = httpx.URL(self.endpoint).copy_with(
                    raw_path=b"/v1/streams/" + quoted(name).encode()
                )
                httpx.delete(path, headers={"s2-basin": BASIN})

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="s2-lite-"))
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None:
            end(self.process)
        shutil.rmtree(self.directory, ignore_errors=True)


class ChunksOnS2(ValkeyProcess):
    """A Valkey whose ``url``, as a store's, leads to S2."""

    s2_url = ""

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.s2_url or self.url_for()

    def client(self, **options: Any) -> redis.Redis:
        """Of the Valkey, where the runs are."""
        s2_url, self.s2_url = self.s2_url, ""
        try:
            return super().client(**options)
        finally:
            self.s2_url = s2_url


def quoted(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")
