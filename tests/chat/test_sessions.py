"""Sessions from Python, and who may do what with them over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from celery import Celery

from celery_streams import ConfigurationError, InvalidName, StreamNotFound, Streams
from tests.chat.client import Gates, Page, serving_agents, texts
from tests.chat.conftest import APP
from tests.gateway.serving import Gateway
from tests.servers.children import eventually
from tests.workers import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def client(agents: Worker) -> Iterator[Streams]:
    """What a web application has: an app without the tasks."""
    app = Celery("a client", set_as_current=False)
    app.conf.update(broker_url=agents.broker_url, result_backend=agents.result_backend)
    streams = Streams(app, url=agents.streams_url, secret="test secret")
    yield streams
    streams.close()
    app.close()


async def test_a_message_from_python_starts_a_turn(client: Streams, page: Page) -> None:
    """The same session over HTTP, and the agent is known from then on."""
    session = client.session(page.chat)
    reply = session.send("hello", agent=f"{APP}.echo", body={"colour": "blue"})
    assert reply.startswith("msg_")
    await asyncio.to_thread(eventually, lambda: len(session.messages()) == 2, "the answer")
    assert session.messages()[1]["id"] == reply
    assert (await page.send("count")).text == "3 "
    session.send("more")
    await asyncio.to_thread(eventually, lambda: len(session.messages()) == 6, "the third answer")


def test_a_message_to_nobody_says_so(client: Streams) -> None:
    """A new session, and no agent to guess."""
    with pytest.raises(ConfigurationError, match="say which one"):
        client.session(uuid.uuid4().hex).send("hello")


async def test_a_turn_is_stopped_from_python(client: Streams, page: Page, gates: Gates) -> None:
    """The same signal as over HTTP."""
    session = client.session(page.chat)
    async with page.sending("a until-stopped b") as stream:
        await gates.reached(page.chat)
        await stream.until(lambda s: s.chunks)
        assert not session.stop("msg_before")
        assert session.stop(stream.chunks[0]["messageId"])
        await stream.until(lambda s: s.done)
    assert stream.types[-1] == "abort"
    assert not session.stop()


async def test_a_session_is_forked_at_a_message(client: Streams, page: Page) -> None:
    """The other goes its own way; the original stays."""
    await page.send("one")
    await page.send("two")
    session = client.session(page.chat)
    fork = session.fork(uuid.uuid4().hex, through=session.messages()[1]["id"])
    other = Page(page.gateway, chat=fork.session_id)
    assert (await other.send("count")).text == "3 "
    assert len(session.messages()) == 4
    with pytest.raises(ConfigurationError, match="exists"):
        session.fork(fork.session_id)
    with pytest.raises(ConfigurationError, match="has no message"):
        session.fork(uuid.uuid4().hex, through="nothing")


async def test_branches_are_listed_read_and_gone_on_with_from_python(
    client: Streams, page: Page
) -> None:
    """In the session itself, or in one of its own."""
    await page.send("one")
    session = client.session(page.chat)
    question = session.messages()[0]
    assert session.branches() == []
    session.send("uno", replaces=question["id"])
    await asyncio.to_thread(eventually, session.branches, "the branch")
    [branch] = session.branches()
    assert (branch.after, branch.text, branch.count) == (None, "one", 2)
    assert abs((datetime.now(UTC) - branch.left_at).total_seconds()) < 60
    assert texts(session.messages(branch.id)) == ["one", "one"]
    fork = session.fork(uuid.uuid4().hex, branch=branch.id)
    assert texts(fork.messages()) == ["one", "one"]
    session.send("count", branch=branch.id)
    await asyncio.to_thread(eventually, lambda: len(session.messages()) == 4, "the answer")
    assert texts(session.messages()) == ["one", "one", "count", "3"]
    assert texts(session.messages(session.branches()[0].id)) == ["uno", "uno"]
    with pytest.raises(StreamNotFound, match="has no branch"):
        session.messages(branch.id)
    with pytest.raises(InvalidName):
        session.messages(f"{branch.id}/about")
    with pytest.raises(InvalidName):
        session.send("x", branch="a/b")
    session.regenerate(session.messages()[1]["id"])
    await asyncio.to_thread(eventually, lambda: len(session.branches()) == 2, "another branch")
    assert texts(session.messages()) == ["one", "one"]


async def test_a_revoked_task_ends_its_turn_as_aborted(client: Streams, page: Page) -> None:
    """Its parent process does, with what there is of the answer; the next message is answered."""
    page.agent = "stubborn"
    async with page.sending("go") as stream:
        await stream.until(lambda s: s.text)
        task_id = client.runtime.link.client.hget(f"cs/{{session/{page.chat}}}/chat/turn", "task")
        app = client.app
        assert app is not None
        app.control.revoke(task_id.decode(), terminate=True, signal="SIGKILL")
        await stream.until(lambda s: s.done)
    assert stream.types[-1] == "abort"
    page.agent = "echo"
    last = (await page.messages())["messages"][-1]
    assert last["metadata"] == {"aborted": True}
    assert last["parts"][1]["text"].startswith("x")
    assert (await page.send("after")).text == "after "


async def test_a_task_out_of_time_ends_its_turn_with_an_error(page: Page) -> None:
    """The hard time limit kills the process; its parent ends the turn."""
    page.agent = "slow"
    stream = await page.send("go")
    assert stream.types[-2:] == ["error", "finish"]
    assert stream.text == "partial"


async def test_a_message_that_kills_its_worker_does_not_do_so_for_ever(page: Page) -> None:
    """After max_attempts the turn ends with an error, and the next message is answered."""
    async with page.sending("die") as stream:
        async with asyncio.timeout(50):
            while not stream.done:
                stream.changed.clear()
                await stream.changed.wait()
    assert stream.types[-2:] == ["error", "finish"]
    assert stream.types.count("start") == 6
    assert (await page.send("after")).text == "after "


@pytest.fixture(scope="module")
def guarded(agents: Worker) -> Iterator[Gateway]:
    secret = {"CELERY_STREAMS_SECRET": "test secret"}
    with serving_agents(agents, "--host", "127.0.0.1", **secret) as started:
        yield started


async def test_a_token_is_good_for_its_own_session(client: Streams, guarded: Gateway) -> None:
    """It sends, reads and stops there, and nothing elsewhere; without one there is nothing."""
    chat = uuid.uuid4().hex
    page = Page(guarded, chat=chat, token=client.session(chat).token())
    assert (await page.send("hello")).text == "hello "
    assert len((await page.messages())["messages"]) == 2
    assert (await page.stop()).status == 200
    page.chat = uuid.uuid4().hex
    assert (await page.send("hello")).status == 403
    assert (await page.stop()).status == 403
    for what in ("messages", "branches", "branches/x"):
        assert page.ask("GET", what).status == 403
    assert page.ask("GET", "stream").status == 403
    page.chat, page.token = chat, None
    assert (await page.send("hello")).status == 401


async def test_a_token_that_only_reads_cannot_send(client: Streams, guarded: Gateway) -> None:
    """Sending needs the inbox, reading the answers."""
    chat = uuid.uuid4().hex
    page = Page(guarded, chat=chat, token=client.token([f"read:sessions/{chat}"]))
    assert (await page.send("hello")).status == 403
    assert (await page.stop()).status == 403
    assert page.ask("GET", "messages").status == 200
