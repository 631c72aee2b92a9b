"""``make demo``, as a stranger runs it; and the example's promise that a killed answer is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from celery_streams import Streams
from example_project import documentation, tokens
from tests.servers import ServerProcess, ValkeyProcess
from tests.servers.children import eventually
from tests.unit.test_model import PIECES, completions_server
from tests.workers import BROKER_DB, RESULT_DB, ROOT, Worker, worker

_ROW = re.compile(r"^ *(\S.*?) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) *$", re.MULTILINE)


def _environment(**changes: str) -> dict[str, str]:
    ours = ("CELERY_", "OPENAI_", "EXAMPLE_", "COLUMNS")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    return {**kept, **changes}


def test_the_demo_ends_with_nothing_lost_and_nothing_twice() -> None:
    """Without a terminal: exit code 0, plain text of 80 columns, and a table that adds up.

    While it runs its page can be opened, with the token that it prints.
    """
    demo = subprocess.Popen(
        [sys.executable, "-m", "example_project.demo", "--topic", "zip"],
        cwd=ROOT, env=_environment(PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with demo:
        try:
            assert demo.stdout is not None
            first = [next(demo.stdout) for _ in range(3)]
            _open_page(first)
            out, err = demo.communicate(timeout=100)
        finally:
            demo.terminate()
    assert demo.returncode == 0, out + err
    assert err == ""
    assert "\x1b" not in out, "no colours where there is no terminal"
    assert "Traceback" not in out
    assert max(map(len, (*first[:2], *out.splitlines()))) <= 80
    rows = {name: list(map(int, counts)) for name, *counts in _ROW.findall(out)}
    assert len(rows) == 7, out
    *_, (streams, chunks, initializes, lost, duplicated) = rows.values()
    assert (lost, duplicated) == (0, 0)
    assert initializes == streams == 18
    assert chunks > 1000
    assert re.search(r"attempt 2 went on at chunk \d+", out)
    (by_http,) = re.findall(r"^read over HTTP: (\d+) chunks, 0 lost, 0 duplicated$", out, re.M)
    assert int(by_http) > 100
    assert re.search(r"p50 [\d.]+ ms, p99 [\d.]+ ms", out)


def _open_page(lines: list[str]) -> None:
    """As somebody does who reads the demo's first lines."""
    address = re.search(r"http://127\.0\.0\.1:\d+/", lines[1])
    assert address is not None, lines
    with urlopen(address[0], timeout=15) as page:
        assert page.headers["content-type"].startswith("text/html")
    asking = Request(
        f"{address[0]}v1/runs", headers={"authorization": f"Bearer {lines[2].strip()}"}
    )
    with urlopen(asking, timeout=15) as answer:
        assert answer.status == 200


def test_the_demo_says_what_is_wrong_with_a_topic() -> None:
    """A misspelt topic: one line with names like it, and nothing is started."""
    done = subprocess.run(
        [sys.executable, "-m", "example_project.demo", "--topic", "json.dmps"],
        cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "json.dumps" in done.stdout
    assert done.stderr == ""


@pytest.fixture
def assistant(valkey: ValkeyProcess) -> Iterator[Worker]:
    """A worker of the example project."""
    valkey.flush()
    with worker("example_project.app", valkey, env=_addresses(valkey)) as running:
        yield running


def _addresses(server: ServerProcess) -> dict[str, str]:
    return {
        "CELERY_BROKER_URL": server.url_for(db=BROKER_DB),
        "CELERY_RESULT_BACKEND": server.url_for(db=RESULT_DB),
    }


def test_killing_the_child_in_mid_stream_yields_one_complete_answer(
    assistant: Worker, valkey: ValkeyProcess
) -> None:
    """Twice killed, the answer that readers see is the documentation's, token by token."""
    expected = tokens.split(documentation.answer("json.dumps"))
    streams = Streams(assistant.app, url=valkey.url, secret="test secret")
    run = assistant.app.send_task("example_project.tasks.answer", ("json.dumps", 250.0))
    reader = streams.read(run.id, timeout=60)
    received = [next(reader)]
    for kill_at in (len(expected) // 3, 2 * len(expected) // 3):
        received += [next(reader) for _ in range(kill_at - len(received))]
        killed = assistant.kill_child(run.info["pid"])
        eventually(lambda killed=killed: run.info.get("pid") != killed, "the next attempt starts")
    received += reader
    assert received == expected
    result = run.get(timeout=20)
    assert result["attempt"] == 3
    assert result["continued_at"] > 0
    progressed = list(streams.read(run.id, "progress", timeout=20))
    assert [each["done"] for each in progressed] == sorted({each["done"] for each in progressed})
    assert progressed[-1] == {"done": len(expected), "of": len(expected)}
    streams.close()


def test_an_answer_of_a_model_is_continued_by_the_next_attempt(valkey: ValkeyProcess) -> None:
    """The model breaks off; Celery retries; the model is told what readers have already."""
    valkey.flush()
    with completions_server() as completions:
        completions.behaviour = "cut"
        completions.after_that = "complete"
        url = f"http://127.0.0.1:{completions.server_port}/v1"
        environment = {**_addresses(valkey), "OPENAI_BASE_URL": url}
        with worker("example_project.app", valkey, env=environment) as running:
            run = running.app.send_task("example_project.tasks.answer", ("what is a dict?",))
            streams = Streams(running.app, url=valkey.url, secret="test secret")
            received = list(streams.read(run.id, timeout=40))
            result = run.get(timeout=20)
            streams.close()
    assert received == [*PIECES, *PIECES]
    assert (result["attempt"], result["continued_at"]) == (2, len(PIECES))
    told = completions.requests[1]["messages"][2]
    assert told == {"role": "assistant", "content": "".join(PIECES)}
