"""Answers that go on with what a page says of their tool calls: nothing of them is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.chat.client import Gates, Page

pytestmark = pytest.mark.anyio

ASK = {"type": "tool-input-available", "toolCallId": "c", "toolName": "ask", "input": {}}
SAY = {"type": "text-delta", "delta": "so it is"}


async def answered(page: Page) -> dict[str, Any]:
    """The last message, with an output of its tool call, as a page sends it."""
    last: dict[str, Any] = (await page.messages())["messages"][-1]
    last["parts"][-1] |= {"state": "output-available", "output": "blue"}
    return {"messages": [last], "messageId": last["id"]}


async def test_an_output_that_comes_too_late_changes_nothing(page: Page) -> None:
    """A tab that has not heard of the next message tells what the one before was asked."""
    page.agent = "scripted"
    await page.send("one", script=[ASK])
    late = await answered(page)
    await page.send("two", script=[SAY])
    before = (await page.messages())["messages"]
    stream = await page.send(None, **late, script=[SAY])
    assert stream.types[-2:] == ["error", "finish"]
    assert (await page.messages())["messages"] == before
    assert await page.branches() == []


async def test_an_answer_that_goes_on_survives_its_worker_with_what_it_has_read(
    page: Page, gates: Gates, gate: str
) -> None:
    """A message from the inbox comes after the answer then, and the next attempt finds both."""
    page.agent = "scripted"
    await page.send("one", script=[ASK])
    script = [{"gate": gate}, {"pending": True}, {"gate": f"{gate}2"}, SAY]
    async with page.sending(None, **await answered(page), script=script) as stream:
        await gates.reached(gate)
        waiting = await asyncio.to_thread(page.refer, "and?", script=[])
        assert waiting
        gates.open(gate)
        os.kill(await gates.reached(f"{gate}2"), signal.SIGKILL)
        await gates.reached(gate)
        gates.open(gate)
        await gates.reached(f"{gate}2")
        gates.open(f"{gate}2")
        await stream.until(lambda s: s.done)
    assert stream.types.count("reset-step") == 1
    kept = (await page.messages())["messages"]
    assert [each["role"] for each in kept] == ["user", "user", "assistant"]
    parts = [part["type"] for part in kept[-1]["parts"]]
    assert parts == ["step-start", "tool-ask", "step-start", "text"]
