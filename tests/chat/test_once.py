"""Whatever comes twice is answered once, however much later the second comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.chat.client import Gates, Page, message, texts
from tests.workers import Worker

pytestmark = pytest.mark.anyio


def ask(call_id: str) -> dict[str, Any]:
    """A call of a tool that the page has."""
    return {
        "type": "tool-input-available", "toolCallId": call_id, "toolName": "ask", "input": {},
    }  # fmt: skip


async def answered(page: Page, output: str) -> dict[str, Any]:
    """The last message with outputs of its open calls, as a page sends it."""
    last: dict[str, Any] = (await page.messages())["messages"][-1]
    for part in last["parts"]:
        if part.get("state") == "input-available":
            part |= {"state": "output-available", "output": output}
    return {"messages": [last], "messageId": last["id"]}


async def test_a_message_that_the_running_turn_has_read_joins_it_when_it_comes_again(
    page: Page, gates: Gates, gate: str
) -> None:
    """It waits no more, and is not the turn's own; the one answer says both, then and later."""
    asked: dict[str, Any] = {"messages": [message("wait!")]}
    async with page.sending(f"gate:{gate} pending gate:{gate}2 two") as first:
        await gates.reached(gate)
        async with page.sending(None, **asked) as second:
            gates.open(gate)
            await gates.reached(f"{gate}2")
            async with page.sending(None, **asked) as again:
                gates.open(f"{gate}2")
                for each in (first, second, again):
                    await each.until(lambda s: s.done)
    assert first.chunks == second.chunks == again.chunks
    assert (await page.send(None, **asked)).chunks == first.chunks
    kept = (await page.messages())["messages"]
    assert [each["role"] for each in kept] == ["user", "user", "assistant"]


async def test_a_message_comes_again_after_others_were_answered(page: Page) -> None:
    """Its answer is where it was; nothing of what came after it is dropped."""
    asked: dict[str, Any] = {"messages": [message("one")]}
    first = await page.send(None, **asked)
    await page.send("two")
    await page.send(None, trigger="regenerate-message")
    assert (await page.send(None, **asked)).chunks == first.chunks
    assert texts((await page.messages())["messages"]) == ["one", "one", "two", "two"]


async def test_the_same_tool_outputs_from_two_tabs_are_gone_on_with_once(
    page: Page, gates: Gates, gate: str
) -> None:
    """The second tab's come during the turn, and once more after it; its own output is no other
    answer to the call. Outputs of the next call are gone on with, and regenerate works."""
    page.agent = "scripted"
    await page.send("one", script=[ask("c"), ask("d")])
    script = [{"gate": gate}, {"type": "text-delta", "delta": "so it is"}, ask("e")]
    blue, green = await answered(page, "blue"), await answered(page, "green")
    async with page.sending(None, **blue, script=script) as first:
        await gates.reached(gate)
        async with page.sending(None, **green, script=script) as second:
            gates.open(gate)
            await first.until(lambda s: s.done)
            await second.until(lambda s: s.done)
    third = await page.send(None, **blue, script=script)
    assert first.chunks == second.chunks == third.chunks
    [_, kept] = (await page.messages())["messages"]
    assert texts([kept]) == ["so it is"]
    assert [part["output"] for part in kept["parts"] if "output" in part] == ["blue", "blue"]

    more = [{"type": "text-delta", "delta": ", indeed"}]
    await page.send(None, **await answered(page, "red"), script=more)
    assert texts((await page.messages())["messages"]) == ["one", "so it is, indeed"]
    again = [{"type": "text-delta", "delta": "again"}]
    await page.send(None, trigger="regenerate-message", script=again)
    assert texts((await page.messages())["messages"]) == ["one", "again"]


async def test_outputs_of_other_calls_are_another_request(page: Page) -> None:
    """Each tab answers a call of its own: both are gone on with."""
    page.agent = "scripted"
    await page.send("one", script=[ask("c"), ask("d")])
    open_, told = (await page.messages())["messages"][-1], await answered(page, "blue")
    calls = [at for at, part in enumerate(open_["parts"]) if part["type"] == "tool-ask"]
    for place in calls:
        parts = list(open_["parts"])
        parts[place] = told["messages"][0]["parts"][place]
        say = [{"type": "text-delta", "delta": "x"}]
        await page.send(None, messages=[{**open_, "parts": parts}], script=say)
    [_, kept] = (await page.messages())["messages"]
    assert texts([kept]) == ["xx"]
    assert [part["output"] for part in kept["parts"] if "output" in part] == ["blue", "blue"]


async def test_a_task_that_was_called_directly_is_delivered_again_after_another_turn(
    page: Page, agents: Worker
) -> None:
    """Its worker had died between the turn's end and the acknowledgement, say."""
    task = "tests.apps.chat_app.spoken"
    arguments = {"kwargs": {"session_id": page.chat, "message": "Hi"}, "task_id": "called-once"}
    agents.app.send_task(task, **arguments).get(timeout=20)
    await page.send("two")
    before = await page.messages()
    agents.app.send_task(task, **arguments)
    await asyncio.to_thread(agents.log.wait_for, "nothing is left to do")
    assert await page.messages() == before
    assert json.dumps(before).count("heard Hi") == 1
