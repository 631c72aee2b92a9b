"""Turns, end to end: a page's requests, a real worker, and what both find afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.chat.client import Gates, Page, message, texts
from tests.servers import ValkeyProcess
from tests.workers import Worker

pytestmark = pytest.mark.anyio


async def test_a_message_is_answered_as_a_ui_message_stream(page: Page) -> None:
    """Headers, chunks and the end are what DefaultChatTransport reads; the history has both."""
    stream = await page.send("hello world")
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert stream.types == [
        "start", "start-step", "text-start", "text-delta", "text-delta", "text-end", "finish",
    ]  # fmt: skip
    assert stream.text == "hello world "
    kept = await page.messages()
    assert kept["active"] is False
    question, answer = kept["messages"]
    assert question["parts"][0]["text"] == "hello world"
    assert answer["id"] == stream.chunks[0]["messageId"]
    assert answer["parts"] == [
        {"type": "step-start"},
        {"type": "text", "text": "hello world ", "state": "done"},
    ]
    async with page.resuming() as nothing:
        assert nothing.status == 204


async def test_a_page_that_loads_in_mid_answer_gets_the_whole_answer_once(
    page: Page, gates: Gates, gate: str
) -> None:
    """The history has the question already, and resuming brings the answer from its start."""
    async with page.sending(f"one gate:{gate} two") as first:
        await gates.reached(gate)
        await first.until(lambda s: s.text)
        kept = await page.messages()
        assert [each["role"] for each in kept["messages"]] == ["user"]
        assert kept["active"] is True
        async with page.resuming() as second:
            gates.open(gate)
            await second.until(lambda s: s.done)
        await first.until(lambda s: s.done)
    assert first.chunks == second.chunks
    assert second.text == "one two "


async def test_a_page_that_goes_away_stops_nothing(page: Page, gates: Gates, gate: str) -> None:
    """Closing the connection is not a request to stop."""
    async with page.sending(f"one gate:{gate} two"):
        await gates.reached(gate)
    gates.open(gate)
    async with page.resuming() as stream:
        if stream.status == 200:
            await stream.until(lambda s: s.done)
    kept = await page.messages()
    assert kept["messages"][-1]["parts"][-1]["text"] == "one two "


async def test_stop_reaches_the_task_and_the_partial_answer_is_kept(
    page: Page, gates: Gates
) -> None:
    """The task sees it without asking Redis; the answer so far is in the history, as aborted."""
    async with page.sending("partial until-stopped never") as stream:
        await gates.reached(page.chat)
        answer = await page.stop()
        assert (answer.status, answer.document) == (202, {"stopping": True})
        await stream.until(lambda s: s.done)
    assert stream.types[-2:] == ["message-metadata", "abort"]
    last = (await page.messages())["messages"][-1]
    assert last["metadata"] == {"aborted": True}
    assert last["parts"][-1] == {"type": "text", "text": "partial ", "state": "done"}
    again = await page.stop()
    assert (again.status, again.document) == (200, {"stopping": False})


async def test_a_stop_that_comes_late_does_not_stop_the_next_turn(
    page: Page, gates: Gates, gate: str
) -> None:
    """It names the answer that its page saw, which is over; the one that runs is stopped by its own
    name."""
    async with page.sending(f"gate:{gate} one") as first:
        await gates.reached(gate)
        async with page.sending("two until-stopped") as second:
            gates.open(gate)
            await first.until(lambda s: s.done)
            await gates.reached(page.chat)
            late = await page.stop(first.chunks[0]["messageId"])
            assert (late.status, late.document) == (200, {"stopping": False})
            assert (await page.messages())["active"]
            await second.until(lambda s: s.chunks)
            meant = await page.stop(second.chunks[0]["messageId"])
            assert (meant.status, meant.document) == (202, {"stopping": True})
            await second.until(lambda s: s.done)
    assert (first.types[-1], second.types[-1]) == ("finish", "abort")


async def test_stop_ends_the_wait_for_a_model_that_says_nothing(
    page: Page, gates: Gates, gate: str
) -> None:
    """The source is closed, and what it has said is kept, as aborted."""
    async with page.sending(f"silent:{gate}") as stream:
        await gates.reached(gate)
        await page.stop()
        await gates.reached(f"{gate}-closed")
        await stream.until(lambda s: s.done)
    assert stream.types[-2:] == ["message-metadata", "abort"]
    last = (await page.messages())["messages"][-1]
    assert last["metadata"] == {"aborted": True}
    assert texts([last]) == ["word"]


async def test_a_task_may_want_to_be_stopped_out_of_its_next_write(page: Page) -> None:
    """With raise_on_stop a write raises StopRequested, and the turn ends as stopped."""
    page.agent = "stubborn"
    async with page.sending("go") as stream:
        await stream.until(lambda s: s.text)
        await page.stop()
        await stream.until(lambda s: s.done)
    assert stream.types[-1] == "abort"


async def test_a_killed_worker_process_s_answer_is_begun_again_under_the_same_id(
    page: Page, gates: Gates, gate: str
) -> None:
    """The page is told to drop what the dead attempt wrote, and sees one complete answer."""
    async with page.sending(f"one gate:{gate} two") as stream:
        pid = await gates.reached(gate)
        await stream.until(lambda s: s.text)
        os.kill(pid, signal.SIGKILL)
        await gates.reached(gate)
        gates.open(gate)
        await stream.until(lambda s: s.done)
    starts = [chunk for chunk in stream.chunks if chunk["type"] == "start"]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert stream.types.count("reset-step") == 1
    assert stream.types.index("reset-step") == stream.types.index("start", 1) + 1
    last = (await page.messages())["messages"]
    assert len(last) == 2
    assert last[1]["parts"][-1]["text"] == "one two "


async def test_two_tabs_that_send_at_once_are_answered_one_after_the_other(
    page: Page, gates: Gates, gate: str
) -> None:
    """The second waits in the inbox, then has a turn, and its stream is its own answer only."""
    async with page.sending(f"first gate:{gate}") as first:
        await gates.reached(gate)
        async with page.sending("second count") as second:
            assert (await page.messages())["pending"][0]["parts"][0]["text"] == "second count"
            gates.open(gate)
            await second.until(lambda s: s.done)
        await first.until(lambda s: s.done)
    assert first.text == "first "
    assert second.text == "second 3 "
    assert [each["role"] for each in (await page.messages())["messages"]] == [
        "user", "assistant", "user", "assistant",
    ]  # fmt: skip


async def test_many_messages_at_once_never_overlap(page: Page) -> None:
    """Sixteen at once: each is answered, and each sees all answers before its own."""
    streams = await asyncio.gather(*(page.send("count") for _ in range(16)))
    assert sorted(int(stream.text) for stream in streams) == list(range(1, 33, 2))


async def test_a_running_turn_can_read_what_came_meanwhile(
    page: Page, gates: Gates, gate: str
) -> None:
    """inbox.pending() has it; no turn of its own starts, and its sender sees the running answer."""
    async with page.sending(f"one gate:{gate} pending two") as first:
        await gates.reached(gate)
        async with page.sending("wait!") as second:
            gates.open(gate)
            await second.until(lambda s: s.done)
        await first.until(lambda s: s.done)
    assert first.text == "one [wait!]two "
    assert second.chunks == first.chunks
    kept = (await page.messages())["messages"]
    assert [each["role"] for each in kept] == ["user", "user", "assistant"]


async def test_the_same_message_sent_twice_is_answered_once(
    page: Page, gates: Gates, gate: str
) -> None:
    """A request that is sent again, for want of an answer, joins the turn it started."""
    asked: dict[str, Any] = {"messages": [message(f"once gate:{gate}")]}
    async with page.sending(None, **asked) as first, page.sending(None, **asked) as second:
        await gates.reached(gate)
        gates.open(gate)
        await first.until(lambda s: s.done)
        await second.until(lambda s: s.done)
    assert first.chunks == second.chunks
    assert (await page.send(None, **asked)).chunks == first.chunks
    assert len((await page.messages())["messages"]) == 2


async def test_regenerating_replaces_the_answer(page: Page) -> None:
    """The answer and what came after it are gone, and the question is answered again."""
    first = await page.send("count")
    await page.send("more")
    again = await page.send(
        None, trigger="regenerate-message", messageId=first.chunks[0]["messageId"]
    )
    assert again.text == "1 "
    kept = (await page.messages())["messages"]
    assert [each["role"] for each in kept] == ["user", "assistant"]
    assert kept[1]["id"] == again.chunks[0]["messageId"] != first.chunks[0]["messageId"]


async def test_editing_drops_what_came_after(page: Page) -> None:
    """A message with a known id replaces that one."""
    question = message("count")
    await page.send(None, messages=[question])
    await page.send("more")
    edited = {**question, "parts": [{"type": "text", "text": "count edited"}]}
    stream = await page.send(None, messages=[edited], messageId=question["id"])
    assert stream.text == "1 edited "
    assert len((await page.messages())["messages"]) == 2


async def test_tool_outputs_of_the_page_continue_the_same_message(page: Page) -> None:
    """The answer goes on under its id; nothing but the output is believed."""
    first = await page.send("client-tool")
    kept = (await page.messages())["messages"]
    theirs = kept[1]
    theirs["parts"][-1] |= {"state": "output-available", "output": "blue", "input": "forged"}
    theirs["parts"].append({"type": "text", "text": "forged"})
    second = await page.send(None, messages=[theirs], messageId=theirs["id"])
    assert second.chunks[0] == first.chunks[0]
    last = (await page.messages())["messages"]
    assert len(last) == 2
    call = last[1]["parts"][1]
    assert (call["output"], call["input"]) == ("blue", {"question": "colour?"})
    assert "forged" not in str(last)


async def test_an_exception_ends_the_turn_and_tells_nothing_of_itself(
    page: Page, gates: Gates
) -> None:
    """The page gets an error without the exception's words; the next message is answered."""
    stream = await page.send("partial raise")
    assert stream.types[-2:] == ["error", "finish"]
    assert "secret" not in str(stream.chunks)
    assert (await page.send("after")).text == "after "
    assert "error a secret" in gates.hooks(page.chat)


async def test_a_retry_begins_the_same_answer_again(page: Page) -> None:
    """Celery's own retry keeps the turn, its id and its place."""
    stream = await page.send("one retry-once two")
    assert stream.types.count("start") == 2
    assert stream.types.count("reset-step") == 1
    assert (await page.messages())["messages"][1]["parts"][-1]["text"] == "one two "


async def test_hooks_are_called_once_a_turn(page: Page, gates: Gates) -> None:
    """Chat start at the first turn, turn start and complete at each, save before the end."""
    await page.send("a")
    await page.send("b")
    assert gates.hooks(page.chat)[:6] == [
        "chat-start", "turn-start", "save 2", "turn-complete", "turn-start", "save 4",
    ]  # fmt: skip
    await page.send(None, trigger="regenerate-message", messageId="nothing")
    first = (await page.messages())["messages"][0]
    edited = {**first, "parts": [{"type": "text", "text": "c"}]}
    await page.send(None, messages=[edited], messageId=first["id"])
    await page.send("d")
    assert gates.hooks(page.chat).count("chat-start") == 1, "an edit starts no chat"


async def test_out_keeps_the_last_turns_and_the_history_all(
    page: Page, store: ValkeyProcess
) -> None:
    """chat_keep_turns of them, whole: 8. A page that asks for one of them resumes it."""
    for number in range(12):
        await page.send(f"turn{number}")
    log = store.client().xrange(f"cs/{{session/{page.chat}}}/log/out")
    kept = [name for name in range(12) if f'"turn{name} "' in str(log)]
    assert kept == list(range(4, 12))
    assert len((await page.messages())["messages"]) == 24


async def test_the_session_s_id_may_be_another_argument(page: Page) -> None:
    """session_argument names it: for messages of the gateway as for those of Python."""
    page.agent = "renamed"
    assert (await page.send("hello")).text == f"hello in {page.chat}"


async def test_steps_are_folded_on_their_way_and_kept_in_the_history(page: Page) -> None:
    """The page can drop all of an attempt; useChat is not made to answer the worker's tools."""
    stream = await page.send("a step tool step b")
    assert stream.types.count("start-step") == 2
    assert stream.types[-3:] == ["start-step", "start", "finish"]
    kinds = [part["type"] for part in (await page.messages())["messages"][1]["parts"]]
    assert kinds == ["step-start", "text", "step-start", "tool-clock", "step-start", "text"]


async def test_a_sub_agent_writes_to_its_agent_s_session(page: Page, agents: Worker) -> None:
    """target="session" reaches the page; a task that no agent has sent has none."""
    stream = await page.send("a subtask b")
    assert {"type": "data-note", "data": "from a helper"} in stream.chunks
    assert stream.types[-1] == "finish"
    assert "data-note" not in str((await page.messages())["messages"])
    alone = agents.app.send_task("tests.apps.chat_app.helper", ("x",))
    with pytest.raises(Exception, match="has no session"):
        await asyncio.to_thread(alone.get, timeout=20)


async def test_what_the_ai_sdk_does_not_know_is_not_sent_to_it(page: Page) -> None:
    """chat.stream may write anything; useChat would fail at it."""
    stream = await page.send("a raw b")
    assert {"mine": True} not in stream.chunks
    assert stream.text == "a b "


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"["),
        (400, b"[]"),
        (400, b'{"id": "a/b", "messages": []}'),
        (400, b'{"id": "a", "messages": []}'),
        (400, b'{"id": "a", "messages": [{"id": "1", "role": "system", "parts": []}]}'),
        (400, b'{"id": "a", "messages": [{"id": 1, "role": "user", "parts": []}]}'),
        (400, b'{"id": "a", "messages": [{"id": "1", "role": "user", "parts": [1]}]}'),
        (400, b'{"id": "a", "messages": [], "trigger": "resume"}'),
    ],
)
async def test_what_is_no_request(page: Page, status: int, body: bytes) -> None:
    """Bad requests are refused with a document that says why; nothing is sent to the agent."""
    headers = {"content-type": "application/json"}
    answer = await asyncio.to_thread(page.gateway.request, "POST", page.path, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_only_agents_that_are_allowed_by_name_are_reached(page: Page) -> None:
    """A task's own name, or that of any other task, is none."""
    for name in ("other", "tests.apps.chat_app.echo", "celery.backend_cleanup"):
        page.agent = name
        assert (await page.send("x")).status == 404
