"""Edits and regenerates leave a branch behind, which is listed, read and gone on with."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.chat.client import Gates, Page, message, texts
from tests.servers import ValkeyProcess

pytestmark = pytest.mark.anyio


async def ask(page: Page, text: str, **body: Any) -> tuple[Any, str]:
    """Send a message: the message, and its answer's id."""
    question = message(text)
    stream = await page.send(None, messages=[question], **body)
    assert stream.types[-1] == "finish", stream.chunks
    return question, stream.chunks[0]["messageId"]


async def edit(page: Page, question: Any, text: str, **body: Any) -> None:
    """Send it again with another text."""
    edited = {**question, "parts": [{"type": "text", "text": text}]}
    stream = await page.send(None, messages=[edited], messageId=question["id"], **body)
    assert stream.types[-1] == "finish", stream.chunks


async def regenerate(page: Page, answer: str | None = None, **body: Any) -> None:
    named = {} if answer is None else {"messageId": answer}
    stream = await page.send(None, trigger="regenerate-message", **named, **body)
    assert stream.types[-1] == "finish", stream.chunks


async def all_texts(page: Page) -> list[list[str]]:
    """The history's texts, then every branch's, the last one first."""
    told = [texts((await page.messages())["messages"])]
    return told + [texts(await page.branch(each["id"])) for each in await page.branches()]


async def test_a_regenerated_answer_is_left_in_a_branch(page: Page) -> None:
    """With what came after it, and with what is listed of it: where it parts, and what it says."""
    _, first = await ask(page, "one")
    await ask(page, "two")
    assert await page.branches() == []
    await regenerate(page, first)
    assert await all_texts(page) == [["one", "one"], ["one", "one", "two", "two"]]
    [branch] = await page.branches()
    question = (await page.messages())["messages"][0]
    assert (branch["after"], branch["text"], branch["count"]) == (question["id"], "one ", 4)
    assert branch["leftAt"].endswith("Z")


async def test_an_edited_message_is_left_in_a_branch(page: Page) -> None:
    """The first one: then both have nothing in common."""
    question, _ = await ask(page, "one")
    await ask(page, "two")
    await edit(page, question, "edited")
    assert await all_texts(page) == [["edited", "edited"], ["one", "one", "two", "two"]]
    [branch] = await page.branches()
    assert (branch["after"], branch["text"]) == (None, "one")


async def test_a_branch_is_gone_on_with(page: Page) -> None:
    """It is the history then, the former history is the branch, and so on, back and forth."""
    question, _ = await ask(page, "one")
    await edit(page, question, "uno")
    [branch] = await page.branches()
    async with page.sending("more count", branch=branch["id"]) as stream:
        await stream.until(lambda s: s.done)
    assert stream.text == "more 3 "
    assert await all_texts(page) == [["one", "one", "more count", "more 3"], ["uno", "uno"]]
    [branch] = await page.branches()
    await ask(page, "altro", branch=branch["id"])
    assert await all_texts(page) == [
        ["uno", "uno", "altro", "altro"], ["one", "one", "more count", "more 3"],
    ]  # fmt: skip


async def test_a_message_of_a_branch_is_edited(page: Page) -> None:
    """What is edited stays a branch, and the history becomes one."""
    question, _ = await ask(page, "one")
    await edit(page, question, "uno")
    [branch] = await page.branches()
    await edit(page, question, "eins", branch=branch["id"])
    assert await all_texts(page) == [["eins", "eins"], ["uno", "uno"], ["one", "one"]]
    await regenerate(page, branch=branch["id"])
    assert (await all_texts(page))[0] == ["one", "one"]
    assert len(await page.branches()) == 3


async def test_the_page_sees_the_branch_it_has_chosen_while_it_is_answered(
    page: Page, gates: Gates, gate: str
) -> None:
    """A reload in mid-answer shows the branch, not the history."""
    question, _ = await ask(page, "one")
    await edit(page, question, "uno")
    [branch] = await page.branches()
    async with page.sending(f"gate:{gate}", branch=branch["id"]) as stream:
        await gates.reached(gate)
        assert texts((await page.messages())["messages"]) == ["one", "one", f"gate:{gate}"]
        gates.open(gate)
        await stream.until(lambda s: s.done)


async def test_what_leaves_nothing_leaves_no_branch(page: Page) -> None:
    """Messages, tool outputs of the page, and a regenerate of an answer that never came."""
    await ask(page, "client-tool")
    theirs = (await page.messages())["messages"][1]
    theirs["parts"][-1] |= {"state": "output-available", "output": "blue"}
    await page.send(None, messages=[theirs], messageId=theirs["id"])
    await page.send("raise")
    await regenerate_failed(page)
    assert await page.branches() == []


async def regenerate_failed(page: Page) -> None:
    stream = await page.send(None, trigger="regenerate-message")
    assert stream.types[-2:] == ["error", "finish"]


async def test_an_edit_waits_for_another_tab_s_answer_and_leaves_it(
    page: Page, gates: Gates, gate: str
) -> None:
    """What the other tab was told is in the branch, whole."""
    question, _ = await ask(page, "one")
    async with page.sending(f"two gate:{gate}") as other:
        await gates.reached(gate)
        editing = asyncio.create_task(edit(page, question, "edited"))
        while not (await page.messages())["pending"]:
            await asyncio.sleep(0.01)
        gates.open(gate)
        await other.until(lambda s: s.done)
        await editing
    assert await all_texts(page) == [
        ["edited", "edited"], ["one", "one", f"two gate:{gate}", "two"],
    ]  # fmt: skip


async def test_a_message_that_was_sent_beside_an_edit_follows_it(
    page: Page, gates: Gates, gate: str
) -> None:
    """It waits for the edit's answer, and loses nothing either."""
    question, _ = await ask(page, "one")
    editing = asyncio.create_task(edit(page, question, f"edited gate:{gate}"))
    await gates.reached(gate)
    async with page.sending("count") as other:
        gates.open(gate)
        await other.until(lambda s: s.done)
    await editing
    assert other.text == "3 "
    assert [each[0] for each in await all_texts(page)] == [f"edited gate:{gate}", "one"]


async def test_many_edits_at_once_lose_no_answer(page: Page) -> None:
    """Each has a turn of its own and leaves the one before."""
    question, _ = await ask(page, "v0")
    await asyncio.gather(*(edit(page, question, f"v{number}") for number in range(1, 9)))
    told = await all_texts(page)
    assert sorted(told) == [[f"v{number}", f"v{number}"] for number in range(9)]


async def test_a_running_turn_does_not_take_an_edit_for_a_message(
    page: Page, gates: Gates, gate: str
) -> None:
    """inbox.pending() has what came before the edit; that, and what came after, have turns."""
    question, _ = await ask(page, "one")
    async with page.sending(f"gate:{gate} pending") as running:
        await gates.reached(gate)
        sending = []
        for number, sent in enumerate(
            (page.send("first"), edit(page, question, "edited"), page.send("last count")), 1
        ):
            sending.append(asyncio.create_task(sent))
            while len((await page.messages())["pending"]) < number:
                await asyncio.sleep(0.01)
        gates.open(gate)
        await running.until(lambda s: s.done)
        await asyncio.gather(*sending)
    assert running.text == "[first]"
    assert await all_texts(page) == [
        ["edited", "edited", "last count", "last 3"],
        ["one", "one", f"gate:{gate} pending", "first", "[first]"],
    ]


async def test_a_regenerate_whose_worker_dies_leaves_one_branch(
    page: Page, gates: Gates, gate: str
) -> None:
    """The next attempt starts from the same history; nothing is left before the turn's end."""
    _, first = await _gated(page, gates, gate)
    async with page.sending(None, trigger="regenerate-message", messageId=first) as stream:
        pid = await gates.reached(gate)
        os.kill(pid, signal.SIGKILL)
        await gates.reached(gate)
        assert await page.branches() == []
        gates.open(gate)
        await stream.until(lambda s: s.done)
    assert await all_texts(page) == [[f"one gate:{gate}", "one"], [f"one gate:{gate}", "one"]]


async def _gated(page: Page, gates: Gates, gate: str) -> tuple[Any, str]:
    gates.open(gate)
    question = await ask(page, f"one gate:{gate}")
    await gates.reached(gate)
    return question


async def test_a_crash_after_saving_leaves_one_branch_and_one_answer(
    page: Page, gates: Gates, gate: str
) -> None:
    """The user's database has the dead attempt's answer: the next one replaces it, and still
    leaves the history as it was before the turn."""
    page.agent = "keeper"
    await ask(page, "zero")
    _, first = await ask(page, "one")
    again = {"trigger": "regenerate-message", "messageId": first, "saved": gate}
    async with page.sending(None, **again) as stream:
        pid = await gates.reached(gate)
        os.kill(pid, signal.SIGKILL)
        await gates.reached(gate)
        gates.open(gate)
        await stream.until(lambda s: s.done)
    assert await all_texts(page) == [["zero", "zero", "one", "one"]] * 2
    await ask(page, "count")
    assert texts((await page.messages())["messages"])[-1] == "5"


async def test_a_branch_comes_from_where_the_task_keeps_it(
    page: Page, store: ValkeyProcess
) -> None:
    """load_branch has what save_branch was given, also when Redis has it no more."""
    page.agent = "keeper"
    question, _ = await ask(page, "one")
    await edit(page, question, "uno")
    [branch] = await page.branches()
    base = f"cs/{{session/{page.chat}}}/chat/"
    assert store.client().delete(base + "branches", base + "branch") == 2
    await ask(page, "more", branch=branch["id"])
    assert texts((await page.messages())["messages"]) == ["one", "one", "more", "more"]


async def test_a_branch_that_is_gone_ends_the_turn_with_an_error(page: Page) -> None:
    """The history is what it was, with the message; and there is nothing to read."""
    await ask(page, "one")
    stream = await page.send("more", branch="nothing")
    assert stream.types[-2:] == ["error", "finish"]
    assert await all_texts(page) == [["one", "one", "more"]]
    assert page.ask("GET", "branches/nothing").status == 404
    assert (await page.send("x", branch="a/about")).status == 400


async def test_the_last_branches_are_kept(page: Page) -> None:
    """chat_keep_branches of them: 16."""
    question, _ = await ask(page, "v0")
    for number in range(1, 19):
        await edit(page, question, f"v{number}")
    told = await all_texts(page)
    assert [each[0] for each in told] == [f"v{number}" for number in range(18, 1, -1)]
