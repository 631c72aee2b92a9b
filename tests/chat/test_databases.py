"""The documentation's examples of a history in one's own database, run as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_streams import Streams
from tests.chat.client import Page, message, serving_agents, texts
from tests.chat.conftest import SETTINGS
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, ROOT, Worker, worker

pytestmark = pytest.mark.anyio
APP = "tests.apps.documented_chat_app"


@pytest.fixture(scope="module")
def agents(store: ValkeyProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    database: Path = tmp_path_factory.mktemp("databases") / "chats"
    env = {
        **SETTINGS,
        "TEST_DATABASE": str(database),
        "TEST_BROKER_URL": store.url_for(db=BROKER_DB),
        "TEST_RESULT_BACKEND": store.url_for(db=RESULT_DB),
        "PYTHONPATH": str(ROOT),
    }
    create = [sys.executable, "-m", APP]
    subprocess.run(create, env={**os.environ, **env}, cwd=ROOT, check=True, timeout=60)
    with worker(APP, store, concurrency=1, env=env) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(agents: Worker) -> Iterator[Gateway]:
    names = {"CELERY_STREAMS_CHAT_AGENTS": "django,sqlalchemy"}
    with serving_agents(agents, **names) as started:
        yield started


def forget(page: Page, store: ValkeyProcess) -> None:
    """What happens to a session's keys when they expire."""
    keys = list(store.client().scan_iter(f"cs/{{session/{page.chat}}}/*"))
    assert store.client().delete(*keys) == len(keys) > 3


@pytest.mark.parametrize("agent", ["django", "sqlalchemy"])
async def test_the_history_is_in_the_database(page: Page, store: ValkeyProcess, agent: str) -> None:
    """When Redis has forgotten the session, the next turn goes on with what is there."""
    page.agent = agent
    assert (await page.send("one")).text == "1 one"
    assert (await page.send("two")).text == "3 two"
    forget(page, store)
    assert (await page.send("three")).text == "5 three"
    assert texts((await page.messages())["messages"]) == [
        "one", "1 one", "two", "3 two", "three", "5 three",
    ]  # fmt: skip


@pytest.mark.parametrize("agent", ["django", "sqlalchemy"])
async def test_a_fork_begins_with_what_it_was_given(page: Page, agents: Worker, agent: str) -> None:
    """The database knows nothing of it before its first turn."""
    page.agent = agent
    await page.send("one")
    streams = Streams(url=agents.streams_url, secret="test secret")
    fork = streams.session(page.chat).fork(uuid.uuid4().hex)
    streams.close()
    other = Page(page.gateway, agent, chat=fork.session_id)
    assert (await other.send("two")).text == "3 two"
    assert texts((await other.messages())["messages"]) == ["one", "1 one", "two", "3 two"]


async def test_branches_are_in_the_database(page: Page, store: ValkeyProcess) -> None:
    """And can be gone on with when Redis has forgotten them."""
    page.agent = "django"
    question = message("one")
    await page.send(None, messages=[question])
    edited = {**question, "parts": [{"type": "text", "text": "uno"}]}
    await page.send(None, messages=[edited], messageId=question["id"])
    [branch] = await page.branches()
    forget(page, store)
    assert (await page.send("two", branch=branch["id"])).text == "3 two"
    kept = (await page.messages())["messages"]
    assert texts(kept) == ["one", "1 one", "two", "3 two"]
