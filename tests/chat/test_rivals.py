"""Who may answer: one turn at a time, whoever dies, freezes or comes at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from tests.chat.client import Gates, Page, Stream, texts
from tests.chat.conftest import APP, SETTINGS
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def agents(store: ValkeyProcess) -> Iterator[Worker]:
    env = {**SETTINGS, "CELERY_STREAMS_ORPHAN_TIMEOUT": "1.5"}
    with worker(APP, store, concurrency=3, env=env) as started:
        yield started


def never_overlap(told: list[list[str]]) -> bool:
    """Whoever enters finds nobody there, but for a former attempt of its own, which has died."""
    inside: tuple[str, int] | None = None
    for verb, turn, attempt in told:
        if verb == "leave":
            if inside != (turn, int(attempt)):
                return False
            inside = None
        else:
            if inside is not None and (inside[0] != turn or inside[1] >= int(attempt)):
                return False
            inside = (turn, int(attempt))
    return inside is None


async def test_turns_never_overlap_while_tabs_send_at_once_and_workers_die(
    page: Page, agents: Worker, gates: Gates, times: Callable[[int, int], int]
) -> None:
    """Two tabs send and workers' processes are killed: each message is answered once, and each
    answer knows of all before it."""
    chance = random.Random(5)
    count = times(12, 100)

    async def tab(words: int) -> list[Stream]:
        return [await page.send("alone:0.15 count") for _ in range(words)]

    async def kill() -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            await asyncio.to_thread(agents.wait_children)
            agents.kill_child(chance.choice(agents.children).pid)

    killing = asyncio.create_task(kill())
    try:
        async with asyncio.timeout(30 + 5 * count):
            answers = await asyncio.gather(tab(count // 2), tab(count - count // 2))
    finally:
        killing.cancel()
    assert never_overlap(gates.turns(page.chat))
    kept = texts((await page.messages())["messages"])[1::2]
    assert kept == [str(number) for number in range(1, 2 * count, 2)]
    shown = sorted(int(last_attempt(stream)) for stream in itertools.chain(*answers))
    assert shown == list(range(1, 2 * count, 2))


def last_attempt(stream: Stream) -> str:
    """The text that a page shows: what was reset is gone."""
    types = stream.types
    begin = len(types) - types[::-1].index("reset-step") if "reset-step" in types else 0
    return "".join(
        chunk["delta"] for chunk in stream.chunks[begin:] if chunk["type"] == "text-delta"
    )


async def test_a_frozen_worker_that_wakes_up_changes_nothing(
    page: Page, agents: Worker, gates: Gates, gate: str
) -> None:
    """Its turn was taken over: what it still writes is refused, and so is its end."""
    async with page.sending(f"one gate:{gate} two") as stream:
        frozen = await gates.reached(gate)
        await stream.until(lambda s: s.text)
        os.kill(frozen, signal.SIGSTOP)
        try:
            await gates.reached(gate)
            gates.open(gate)
            await stream.until(lambda s: s.done)
            before = agents.log.text
            kept = await page.messages()
            gates.open(gate)
        finally:
            os.kill(frozen, signal.SIGCONT)
        await asyncio.to_thread(
            agents.log.wait_for, "another attempt has taken over its turn", after=len(before)
        )
    assert texts(kept["messages"]) == [f"one gate:{gate} two", "one two"]
    assert await page.messages() == kept
    assert (await page.send("count")).text == "3 "
    assert stream.types.count("reset-step") == 1


@pytest.mark.alone
async def test_a_request_to_stop_reaches_the_task_within_100_ms(
    page: Page, gates: Gates, store: ValkeyProcess
) -> None:
    """From the click to the end of the stream, in the usual case, with nothing else running."""
    took = []
    for _ in range(15):
        async with page.sending("a until-stopped b") as stream:
            await gates.reached(page.chat)
            clicked_at = time.monotonic()
            await page.stop()
            await stream.until(lambda s: s.done)
            took.append(time.monotonic() - clicked_at)
        assert stream.types[-1] == "abort"
    assert statistics.median(took) < 0.1, took


async def test_looking_whether_to_stop_asks_nobody(page: Page, store: ValkeyProcess) -> None:
    """A hundred thousand looks, and no more commands than a turn without."""

    def commands() -> int:
        return int(store.client().info("stats")["total_commands_processed"])

    before = commands()
    await page.send("look:100000")
    assert commands() - before < 2000


async def test_sub_agents_of_sub_agents_write_to_the_session(page: Page) -> None:
    """In a group, in its callback, and one level further down."""
    stream = await page.send("a subtasks b")
    notes = [chunk["data"] for chunk in stream.chunks if chunk["type"] == "data-note"]
    assert sorted(notes) == ["chained 1", "chained 2", "deep"]
    assert stream.types[-1] == "finish"


@pytest.mark.parametrize(
    ("hook", "ends"), [("start", "error"), ("complete", "finish"), ("start error", "error")]
)
async def test_a_hook_that_raises_keeps_no_turn_open(page: Page, hook: str, ends: str) -> None:
    """Before the answer it ends the turn with an error, after it it is only logged."""
    page.agent = "keeper"
    async with asyncio.timeout(10):
        stream = await page.send("one", fails=hook)
    assert stream.types[-2] == ("error" if ends == "error" else "text-end")
    assert "secret" not in str(stream.chunks)
    assert (await page.send("count")).text in ("2 ", "3 ")
