"""Whatever comes twice is answered once, however much later the second comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.chat.client import Gates, Page, message, texts
from tests.workers import Worker

pytestmark = pytest.mark.anyio


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
