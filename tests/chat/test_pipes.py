"""chat.pipe(): each library's real classes, and what becomes of them on the wire."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

from celery_streams import ConfigurationError, InvalidChunk
from celery_streams.chat.adapters import pipe
from celery_streams.chat.adapters.pydantic_ai import model_messages
from celery_streams.chunks import encode_json
from tests.chat.models import serving
from tests.chat.sink import Sink
from tests.workers import ROOT


def test_texts_and_chunks_are_written_as_they_come(sink: Sink) -> None:
    """Any iterable; its text comes back."""
    data = {"type": "data-progress", "data": 1}
    assert sink.pipe(["a", "b", data, "c"]) == "abc"
    assert sink.types == [
        "text-start", "text-delta", "text-delta", "text-end", "data-progress",
        "text-start", "text-delta", "text-end",
    ]  # fmt: skip


def test_an_async_source_needs_no_event_loop_and_works_in_one(sink: Sink) -> None:
    """In a plain task pipe() runs it; in a coroutine it is awaited."""

    async def words() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0)
        yield "b"

    assert sink.pipe(words()) == "ab"

    async def inside() -> Any:
        return await pipe(words(), sink.response)

    assert asyncio.run(inside()) == "ab"


@pytest.mark.parametrize("source", [7, None])
def test_what_cannot_be_piped_says_so(sink: Sink, source: Any) -> None:
    """No iterable of any kind."""
    with pytest.raises(ConfigurationError, match="an iterable or an async iterable"):
        sink.pipe(source)


def test_a_character_that_comes_in_halves_is_one(sink: Sink) -> None:
    """Servers that count in UTF-16 cut pairs; UTF-8 has no halves. One that stays alone is shown
    as what it is not."""
    deltas = [{"type": "reasoning-delta", "id": "r", "delta": each} for each in "\ud83d\ude00"]
    sink.pipe([*deltas, "a \ud83d", "\ude00", "\ude00 b", "c\ud83d"])
    assert [part["text"] for part in sink.parts[1:]] == [
        "\U0001f600",
        "a \U0001f600\ufffd bc\ufffd",
    ]
    for chunk in sink.chunks:
        encode_json(chunk)


def test_openai_s_halves_of_a_character(sink: Sink) -> None:
    """In the text and in a call's arguments, as the server escapes them."""
    call = {"index": 0, "id": "call-1", "type": "function"}
    texts: list[dict[str, Any]] = [{"content": each} for each in ("\ud83d", "\ude00")]
    calls = [
        {"tool_calls": [{**call, "function": {"name": "show", "arguments": each}}]}
        for each in ('{"it": "\ud83d', '\ude00"}')
    ]
    with serving([_completion(delta) for delta in (*texts, *calls)]) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        sink.pipe(client.chat.completions.create(model="m", messages=[], stream=True))
    assert sink.parts[1]["text"] == "\U0001f600"
    assert sink.parts[2]["input"] == {"it": "\U0001f600"}
    for chunk in sink.chunks:
        encode_json(chunk)


@pytest.mark.parametrize("item", [5, b"x"])
def test_text_that_is_none_says_so(sink: Sink, item: Any) -> None:
    """At once: not when the answer is put together, and the page has had it."""
    with pytest.raises(InvalidChunk, match="is a string"):
        sink.response.text(item)
    assert sink.chunks == []


@pytest.mark.parametrize(
    "patched",
    ["import gevent.monkey as m; m.patch_all()", "import eventlet as m; m.monkey_patch()"],
)
def test_greenlets_say_that_they_have_no_event_loops(patched: str) -> None:
    """Two turns at once would have shared one, and the second would have answered nothing."""
    piping = (
        "from celery_streams.chat.adapters import pipe\n"
        "from tests.chat.sink import Sink, words\n"
        "try:\n"
        "    pipe(words(), Sink().response)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", f"{patched}\n{piping}"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert "ConfigurationError chat.pipe() cannot read an async source" in told.stdout, told


def test_an_item_that_is_no_chunk_says_so(sink: Sink) -> None:
    """Neither a text nor a part nor of a known library."""
    with pytest.raises(InvalidChunk, match="not int"):
        sink.pipe([1])


def test_a_pydantic_ai_run_with_a_tool(sink: Sink) -> None:
    """Its own event stream makes the chunks; steps are in the message and not on the wire."""
    agent = Agent(TestModel())

    @agent.tool_plain
    def clock(zone: str) -> str:
        """The time."""
        return f"noon in {zone}"

    sink.pipe(agent.run_stream_events("What time is it?"))
    assert "start-step" not in sink.types[:-2]
    assert sink.types[-2:] == ["start-step", "start"]
    assert "tool-output-available" in sink.types
    kinds = [part["type"] for part in sink.parts]
    assert kinds == ["step-start", "tool-clock", "step-start", "text"]
    call = sink.parts[1]
    assert (call["state"], call["output"]) == ("output-available", "noon in a")


def test_a_pydantic_ai_run_over_stored_messages(sink: Sink) -> None:
    """The history that the session keeps is a run's history; deltas come as they are."""
    seen: list[list[ModelMessage]] = []

    async def stream(
        messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        seen.append(messages)
        for word in ("Hel", "lo"):
            yield word

    sink.pipe(["earlier"])
    question = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    history = model_messages([question, sink.message.message()])
    agent = Agent(FunctionModel(stream_function=stream))
    assert sink.pipe(agent.run_stream_events("again", message_history=history)) == "Hello"
    assert [each.kind for each in seen[0]] == ["request", "response", "request"]
    assert sink.types.count("text-delta") == 3


def _completion(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**base, "choices": [choice]}


def _call(arguments: str, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{"index": 0, "function": function, **more}]}


COMPLETIONS = [
    _completion({"role": "assistant", "content": ""}),
    _completion({"reasoning_content": "hm"}),
    _completion({"content": "Hel"}),
    _completion({"content": "lo"}),
    _completion(_call("", id="call-1", type="function", name="clock")),
    _completion(_call('{"zone"')),
    _completion(_call(':"UTC"}')),
    _completion({}, "tool_calls"),
]


@pytest.mark.parametrize("way", ["create", "stream", "async"])
def test_openai_chat_completions(sink: Sink, way: str) -> None:
    """Reasoning, text and a tool call, from either kind of client, in either way."""
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with serving(COMPLETIONS) as url:
        if way == "async":

            async def run() -> str:
                async with openai.AsyncOpenAI(base_url=url, api_key="-") as client:
                    stream = await client.chat.completions.create(**asked, stream=True)
                    return str(await pipe(stream, sink.response))

            assert asyncio.run(run()) == "Hello"
        else:
            client = openai.OpenAI(base_url=url, api_key="-")
            completions = client.chat.completions
            source = (
                completions.create(**asked, stream=True)
                if way == "create"
                else completions.stream(**asked)
            )
            assert sink.pipe(source) == "Hello"
    kinds = [part["type"] for part in sink.parts]
    assert kinds == ["step-start", "reasoning", "text", "tool-clock"]
    assert sink.parts[-1]["input"] == {"zone": "UTC"}
    assert sink.parts[-1]["state"] == "input-available"
    assert sink.response.finish_reason == "tool-calls"


def test_openai_responses(sink: Sink) -> None:
    """Text, reasoning, a source and a function call of the Responses API."""
    item = {"type": "function_call", "id": "f", "call_id": "call-1", "name": "clock",
            "arguments": "", "status": "in_progress"}  # fmt: skip
    place = {"output_index": 1, "item_id": "f"}
    text = {"output_index": 0, "content_index": 0, "item_id": "t"}
    citation = {"type": "url_citation", "url": "https://example.com", "title": "Example",
                "start_index": 0, "end_index": 1}  # fmt: skip
    events: list[dict[str, Any]] = [
        {"type": "response.reasoning_summary_text.delta", "delta": "hm", "item_id": "r",
         "output_index": 0, "summary_index": 0},
        {"type": "response.output_text.delta", "delta": "Hel", "logprobs": [], **text},
        {"type": "response.output_text.delta", "delta": "lo", "logprobs": [], **text},
        {"type": "response.output_text.annotation.added", "annotation": citation,
         "annotation_index": 0, **text},
        {"type": "response.output_item.added", "item": item, "output_index": 1},
        {"type": "response.function_call_arguments.delta", "delta": '{"zone":"UTC"}', **place},
        {"type": "response.function_call_arguments.done", "arguments": '{"zone":"UTC"}',
         "name": "clock", **place},
    ]  # fmt: skip
    events = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    with serving(events, named=True) as url:
        client = openai.OpenAI(base_url=url, api_key="-")
        assert sink.pipe(client.responses.create(model="m", input="hi", stream=True)) == "Hello"
    kinds = [part["type"] for part in sink.parts]
    assert kinds == ["step-start", "reasoning", "text", "source-url", "tool-clock"]
    assert sink.parts[-1]["input"] == {"zone": "UTC"}


ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {
        "id": "m", "type": "message", "role": "assistant", "content": [], "model": "m",
        "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0,
     "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0,
     "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2,
     "content_block": {"type": "tool_use", "id": "call-1", "name": "clock", "input": {}}},
    {"type": "content_block_delta", "index": 2,
     "delta": {"type": "input_json_delta", "partial_json": '{"zone":'}},
    {"type": "content_block_delta", "index": 2,
     "delta": {"type": "input_json_delta", "partial_json": '"UTC"}'}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
     "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]  # fmt: skip


@pytest.mark.parametrize("way", ["create", "stream"])
def test_anthropic_messages(sink: Sink, way: str) -> None:
    """Thinking, text and a tool call; the prepared events of stream() are not told twice."""
    asked: dict[str, Any] = {
        "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    with serving(ANTHROPIC, named=True) as url:
        messages = anthropic.Anthropic(base_url=url, api_key="-").messages
        source = (
            messages.create(**asked, stream=True) if way == "create" else messages.stream(**asked)
        )
        assert sink.pipe(source) == "Hello"
    kinds = [part["type"] for part in sink.parts]
    assert kinds == ["step-start", "reasoning", "text", "tool-clock"]
    assert sink.parts[-1]["input"] == {"zone": "UTC"}
    assert sink.response.finish_reason == "tool-calls"


def _model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage("Hello there")]))


def test_a_langchain_model(sink: Sink) -> None:
    """Its message chunks."""
    assert sink.pipe(_model().stream("hi")) == "Hello there"
    assert sink.types.count("text-delta") == 3


def test_langchain_events(sink: Sink) -> None:
    """astream_events(): the model's chunks once, nothing of the chain around it."""
    assert sink.pipe(_model().astream_events("hi", version="v2")) == "Hello there"


def test_a_langgraph_graph(sink: Sink) -> None:
    """Messages of all nodes, tool calls and their results; other stream modes are passed over."""
    call = {"name": "clock", "args": {"zone": "UTC"}, "id": "call-1", "type": "tool_call"}

    def decide(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("", tool_calls=[call])]}

    def run_tool(state: MessagesState) -> dict[str, Any]:
        return {"messages": [ToolMessage("noon", tool_call_id="call-1")]}

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [_model().invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_sequence([("decide", decide), ("run_tool", run_tool), ("answer", answer)])
    graph.add_edge(START, "decide")
    state: Any = {"messages": [HumanMessage("hi")]}
    modes: Any = ["messages", "values"]
    assert sink.pipe(graph.compile().stream(state, stream_mode=modes)) == "Hello there"
    kinds = [part["type"] for part in sink.parts]
    assert kinds == ["step-start", "tool-clock", "text"]
    assert (sink.parts[1]["input"], sink.parts[1]["output"]) == ({"zone": "UTC"}, "noon")
