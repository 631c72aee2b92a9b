"""``python -m benchmarks.chat [--quick]``: from a task's write to the page that reads the answer.

One worker, one gateway, and beside it the endpoint that teams write by hand (FastAPI on uvicorn,
an ``XADD`` a chunk, a blocked ``XREAD`` a reader), asked in turn, each time in a new chat, over
one loopback connection. A chunk is its own time stamp: it is made right before it is written, and
read by another process. ``BENCH_JSON=file`` writes the figures as JSON too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figure, at_most, show, write_json
from benchmarks.rounds import percentile
from benchmarks.stage import own_server

_ROOT = Path(__file__).resolve().parents[2]
_APP = "benchmarks.chat.app"
_BESIDE = "FastAPI, XADD + blocked XREAD"
_OURS = (
    "-m", "celery", "-A", _APP, "streams", "serve", "--insecure", "--host", "127.0.0.1",
    "--port", "0", "--no-access-log",
)  # fmt: skip
_BY_HAND = (
    "-m", "uvicorn", "benchmarks.chat.by_hand:api", "--host", "127.0.0.1", "--port", "0",
    "--no-access-log", "--loop", "uvloop", "--http", "httptools",
)  # fmt: skip
_WORKER = (
    "-W", "ignore", "-m", "celery", "-A", _APP, "worker", "--pool", "prefork",
    "--concurrency", "2", "--loglevel", "WARNING", "--without-gossip", "--without-mingle",
)  # fmt: skip
#: What the first chunk may take, milliseconds.
_BUDGET = 15
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; ``pace``: seconds between two chunks."""

    rounds: int = 5
    answers: int = 60
    warm_up: int = 10
    chunks: int = 20
    pace: float = 0.005


QUICK = Sizes(1, 5, 2, 3)


@dataclass(slots=True)
class Seen:
    """Milliseconds: from the write of a first chunk, and of later ones, to the page that has it;
    from the request to its first chunk."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)


@contextmanager
def process(arguments: Sequence[str], url: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that ends with the block."""
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env={**os.environ, "BENCHMARKS_URL": url, "CELERY_STREAMS_CHAT_AGENTS": _AGENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


_AGENT = "agent=benchmarks.agent"


def port_of(child: subprocess.Popen[str]) -> int:
    """The port that a server says it listens on."""
    assert child.stdout is not None
    said = ""
    for line in child.stdout:
        said += line
        if "http://127.0.0.1:" in line:
            return int(line.partition("http://127.0.0.1:")[2].split()[0].rstrip("/"))
    raise RuntimeError(f"the server does not start\n{said}")


def ask(port: int, sizes: Sizes, seen: Seen | None) -> None:
    """One answer in a new chat, read to its end; what it took goes to ``seen``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    words = {"count": sizes.chunks, "pace": sizes.pace}
    part = {"type": "text", "text": "go"}
    message = {"id": uuid.uuid4().hex, "role": "user", "parts": [part]}
    body = json.dumps({"id": uuid.uuid4().hex, "messages": [message], "words": words})
    asked = time.monotonic_ns()
    connection.request("POST", "/chat/agent", body, {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read()!r}")
    found: list[float] = []
    done = False
    while line := response.readline():
        now = time.monotonic_ns()
        if line.startswith(b'data: {"type":"text-delta"'):
            written = int(json.loads(line[6:])["delta"])
            if not found and seen is not None:
                seen.asked.append((now - asked) / _MILLION)
            found.append((now - written) / _MILLION)
        done |= line == b"data: [DONE]\n"
    connection.close()
    if not done or len(found) != sizes.chunks:
        raise RuntimeError(f"an answer has {len(found)} of {sizes.chunks} chunks")
    if seen is not None:
        seen.first.append(found[0])
        seen.later += found[1:]


def measure(url: str, sizes: Sizes) -> list[Figure]:
    """All figures: the median of every round's percentile."""
    ours: list[Seen] = []
    theirs: list[Seen] = []
    with ExitStack() as stack:
        ports = [port_of(stack.enter_context(process(each, url))) for each in (_OURS, _BY_HAND)]
        stack.enter_context(process(_WORKER, url))
        for _ in range(sizes.warm_up):
            for port in ports:
                ask(port, sizes, None)
        for number in range(sizes.rounds):
            ours.append(Seen())
            theirs.append(Seen())
            turns = [(ports[0], ours[-1]), (ports[1], theirs[-1])]
            for _ in range(sizes.answers):
                random.shuffle(turns)
                for port, seen in turns:
                    ask(port, sizes, seen)
            print(f"    round {number + 1} of {sizes.rounds}", flush=True)

    def figure(name: str, percent: int, values: Callable[[Seen], list[float]]) -> Figure:
        mine, other = (
            statistics.median(percentile(values(seen), percent) for seen in rounds)
            for rounds in (ours, theirs)
        )
        kept = name == "first_chunk" and percent == 50
        budget = at_most(mine, _BUDGET, "ms") if kept else None
        return Figure(f"chat_{name}_p{percent}_ms", mine, "ms", _BESIDE, other, budget)

    return [
        figure(name, percent, values)
        for name, values in (
            ("first_chunk", lambda seen: seen.first),
            ("later_chunk", lambda seen: seen.later),
            ("request_to_first_chunk", lambda seen: seen.asked),
        )
        for percent in (50, 99)
    ]


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="see whether it runs; the figures mean nothing"
    )
    sizes = QUICK if parser.parse_args().quick else Sizes()
    with own_server(quick=sizes is QUICK) as stage:
        figures = measure(stage.url, sizes)
    show(figures)
    if path := os.environ.get("BENCH_JSON"):
        write_json(figures, Path(path))


if __name__ == "__main__":
    main()
