"""Processes that write to one stream of S2 at the same moment."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.s2.member import RUN, connected
from tests.servers import ValkeyProcess
from tests.servers.children import spawn


class Fleet:
    """Processes that write to one stream, through the real cache on a real Valkey."""

    def __init__(self, valkey: ValkeyProcess, url: str, **options: Any) -> None:
        self.valkey, self.url, self.options = valkey, url, options
        self.members: list[subprocess.Popen[bytes]] = []

    def start(self, count: int, chunks: int, seconds: float) -> None:
        """All write at the same moment."""
        for name in range(count):
            command = [sys.executable, "-m", "tests.s2.member", self.valkey.url, self.url]
            command += [str(name), str(chunks), str(seconds), json.dumps(self.options)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.members.append(spawn(command, **pipes))
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == b"ready\n"
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write(b"\n")
            member.stdin.flush()

    def result(self) -> list[Any]:
        """What the members said, once all are done."""
        said = [member.communicate(timeout=90)[0] for member in self.members]
        assert [member.returncode for member in self.members] == [0] * len(said)
        return [json.loads(each) for each in said]

    def chunks(self) -> list[Any]:
        """Everything in the stream."""
        streams = connected(self.valkey.url, self.url)
        end = streams.head(RUN).end
        with streams.read(RUN, timeout=20) as reader:
            found = [next(reader) for _ in range(end)]
        streams.close()
        return found


def all_there(chunks: list[Any], count: int, each: int) -> None:
    """Every chunk of every member once, in its order."""
    assert len(chunks) == count * each
    for name in range(count):
        assert [number for who, number in chunks if who == name] == list(range(each))
