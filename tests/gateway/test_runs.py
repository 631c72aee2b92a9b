"""What is said of runs and sessions over HTTP, to whom, and how the page's files are served."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from celery_streams import Streams
from celery_streams.contracts import Attempt
from celery_streams.gateway import create_app
from tests.gateway.serving import Answer, Gateway
from tests.servers import ValkeyProcess
from tests.servers.children import end, spawn
from tests.workers import RESULT_DB, ROOT, Log

Ask = Callable[..., Answer]

SECRET = "the secret of the tests of runs: 32 bytes"
PREFIX = f"runs-{uuid.uuid4().hex[:8]}"


@contextmanager
def serving(server: ValkeyProcess, **env: str) -> Iterator[Gateway]:
    """A gateway process with its page."""
    command = [
        sys.executable, "-m", "uvicorn", "tests.browser.app:app", "--host", "127.0.0.1",
        "--port", "0", "--timeout-graceful-shutdown", "1",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "CELERY_STREAMS_URL": server.url,
        "CELERY_STREAMS_SECRET": SECRET,
        "CELERY_STREAMS_PREFIX": PREFIX,
        "TEST_RESULT_BACKEND": server.url_for(db=RESULT_DB),
        **env,
    }
    process = spawn(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
    )
    log = Log(process)
    try:
        text = log.wait_for("on http://127.0.0.1:", timeout=60)
        found = re.search(r"on http://127\.0\.0\.1:(\d+)", text)
        assert found is not None
        yield Gateway(process=process, log=log, port=int(found[1]))
    finally:
        end(process, patience=5)
        log.join()


@pytest.fixture(scope="module")
def gateways(valkey: ValkeyProcess) -> Iterator[dict[bool, Gateway]]:
    """One that asks for tokens (``True``), and one that does not."""
    with serving(valkey) as secured, serving(valkey, TEST_INSECURE="1") as insecure:
        yield {True: secured, False: insecure}


@pytest.fixture
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    """What the gateways serve."""
    made = Streams(url=valkey.url, secret=SECRET, prefix=PREFIX)
    yield made
    made.close()


@pytest.fixture
def ask(streams: Streams, gateways: dict[bool, Gateway]) -> Ask:
    """``ask(path, *scopes, method="GET", **headers)``: without scopes, of the open gateway."""

    def ask(
        path: str, *scopes: str, token: str = "", method: str = "GET", **headers: str
    ) -> Answer:
        asked = bool(scopes or token)
        if asked:
            headers["authorization"] = f"Bearer {token or streams.token(scopes)}"
        return gateways[asked].request(method, path, headers=headers)

    return ask


def test_a_run_is_described(streams: Streams, ask: Ask) -> None:
    """Its state, its attempts, and where each of its streams is and ends."""
    attempt = Attempt("run one", "a1")
    streams.runtime.registry.begin(attempt)
    with streams.write_to("run one", create=True) as chunks:
        chunks.write("x")
        chunks.write("y")
    with streams.write_to("run one", "log", content_type="text/plain") as log:
        log.write("z")
    found = ask("/v1/runs/run%20one")
    assert found.headers["cache-control"] == "no-store"
    assert found.headers["x-content-type-options"] == "nosniff"
    document = found.document
    assert (document["id"], document["state"], document["attempts"]) == ("run one", "STARTED", 1)
    assert document["streams"] == [
        {
            "key": "default",
            "url": "/v1/stream/runs/run%20one/default",
            "contentType": "application/json",
            "firstOffset": "0000000000000000",
            "nextOffset": "0000000000000002",
            "closed": False,
        },
        {
            "key": "log",
            "url": "/v1/stream/runs/run%20one/log",
            "contentType": "text/plain",
            "firstOffset": "0000000000000000",
            "nextOffset": "0000000000000001",
            "closed": False,
        },
    ]
    streams.runtime.registry.suspend(attempt)
    assert ask("/v1/runs/run%20one").document["state"] == "RETRY"
    streams.runtime.registry.finish(attempt, "REVOKED")
    document = ask("/v1/runs/run%20one").document
    assert document["state"] == "REVOKED"
    assert [each["closed"] for each in document["streams"]] == [True, True]


def test_a_run_nobody_has_heard_of_is_pending(ask: Ask) -> None:
    """As Celery says it; its task may yet write."""
    assert ask("/v1/runs/unknown").document == {
        "id": "unknown",
        "state": "PENDING",
        "attempts": 0,
        "streams": [],
    }
    assert ask("/v1/sessions/unknown").document == {"id": "unknown", "streams": []}


def test_the_most_recent_come_first(streams: Streams, ask: Ask) -> None:
    """One row for each run, however many streams it has; no more than asked for."""
    for number in range(5):
        for key in ("default", "progress", "log"):
            with streams.write_to(f"run-{number}", key, create=True) as chunks:
                chunks.write(number)
    streams.session("talk").out.append("hello")
    rows = ask("/v1/runs?limit=3").document["runs"]
    assert [row["id"] for row in rows] == ["run-4", "run-3", "run-2"]
    assert [(row["streams"], row["chunks"], row["state"]) for row in rows] == [
        (3, 3, "PENDING")
    ] * 3
    assert rows[0]["openedAt"] >= rows[1]["openedAt"]
    assert len(ask("/v1/runs").document["runs"]) >= 5
    assert ask("/v1/sessions").document["sessions"][0]["id"] == "talk"


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1e3", "99999999999"])
def test_a_limit_is_a_number(ask: Ask, limit: str) -> None:
    """Anything else is refused, as a problem."""
    answer = ask(f"/v1/runs?limit={limit}")
    assert (answer.status, answer.document["code"]) == (400, "invalid-limit")
    assert answer.headers["content-type"] == "application/problem+json"


def test_only_a_token_for_all_of_them_lists_them(streams: Streams, ask: Ask) -> None:
    """A run's token describes that run and lists nothing, not even if its id is a star."""
    for run_id in ("mine", "*", "other"):
        with streams.write_to(run_id, create=True) as chunks:
            chunks.write(1)
    assert ask("/v1/runs", "read:runs/*").status == 200
    assert ask("/v1/runs", "admin:*").status == 200
    assert ask("/v1/runs/mine", "read:runs/mine").status == 200
    assert ask("/v1/runs/other", "read:runs/*").status == 200
    for scopes, path in (
        (["read:runs/mine"], "/v1/runs"),
        (["read:runs/%2A"], "/v1/runs"),
        (["read:sessions/*"], "/v1/runs"),
        (["read:runs/*"], "/v1/sessions"),
        (["write:runs/*"], "/v1/runs"),
        (["read:runs/mine"], "/v1/runs/other"),
        (["read:runs/mine/default"], "/v1/runs/mine"),
    ):
        refused = ask(path, *scopes)
        assert (refused.status, refused.document["code"]) == (403, "forbidden"), (scopes, path)
    assert ask("/v1/runs", token="nonsense").status == 401


def test_bad_names_and_methods_are_refused(ask: Ask) -> None:
    """With the reason, and what would be allowed."""
    assert ask("/v1/runs/a%7Bb").status == 400
    assert ask("/v1/runs/a/b").status == 400
    refused = ask("/v1/runs/a", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert ask("/v1/runs/a", method="HEAD").body == b""


def test_the_page_runs_nothing_that_is_not_its_own(ask: Ask) -> None:
    """One strict policy, also on a gateway with tokens, and nothing inline."""
    for page in (ask("/"), ask("/", token="nonsense")):
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        text = page.body.decode()
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "sandbox" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in page.headers
        assert "<style" not in text
        assert "<script>" not in text
        assert " style=" not in text


def test_the_pages_files_have_entity_tags(ask: Ask) -> None:
    """Whoever has a file is not sent it again; no name leads anywhere else."""
    script = ask("/ui/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    again = ask("/ui/app.js", **{"if-none-match": script.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert ask("/ui/app.js", **{"if-none-match": '"else"'}).status == 200
    assert ask("/ui/app.js", method="HEAD").body == b""
    for path in ("/ui/", "/ui/nothing.js", "/ui/viewer.py", "/ui/sub/app.js"):
        assert ask(path).status == 404
    assert ask("/", method="POST").status == 405


def test_there_is_no_page_unless_it_is_asked_for(streams: Streams) -> None:
    """Off by default."""
    statuses = []

    async def send(message: dict[str, object]) -> None:
        statuses.append(message.get("status"))

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    app = create_app(streams, insecure=True)
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert statuses[0] == 404
