"""chat.pipe() of models that fail in mid-answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from celery_streams import ModelFailed
from tests.chat.models import serving
from tests.chat.sink import Sink
from tests.chat.test_pipes import ANTHROPIC, COMPLETIONS

FAILURES: list[dict[str, Any]] = [
    {"type": "error", "code": "server_error", "message": "a secret", "param": None},
    {"type": "response.failed", "response": {
        "id": "r", "object": "response", "created_at": 1, "model": "m", "output": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": "failed",
        "error": {"code": "server_error", "message": "a secret"}}},
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda event: str(event["type"]))
@pytest.mark.parametrize("said", ["Hel", None])
def test_openai_responses_that_fail_raise(
    sink: Sink, failure: dict[str, Any], said: str | None
) -> None:
    """Also as the first event; the page hears of it from the turn, and not what the server said."""
    text: dict[str, Any] = {"type": "response.output_text.delta", "delta": said, "logprobs": [],
            "output_index": 0, "content_index": 0, "item_id": "t"}  # fmt: skip
    events = [{**each, "sequence_number": 0} for each in ([text] if said else []) + [failure]]
    with serving(events, named=True) as url:
        client = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
        with pytest.raises(ModelFailed, match="a secret") as raised:
            sink.pipe(client.responses.create(model="m", input="hi", stream=True))
    assert raised.value.code == "server_error"
    assert "error" not in sink.types


@pytest.mark.parametrize("library", ["openai", "anthropic"])
def test_errors_that_the_libraries_raise_come_out(sink: Sink, library: str) -> None:
    """Completions and Anthropic's messages: their SDKs raise, after what was said before."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "a secret"}}
    events = [*COMPLETIONS[:3], error] if library == "openai" else [*ANTHROPIC[:6], error]
    failures = (openai.APIError, anthropic.APIError)
    asked: dict[str, Any] = {"model": "m", "messages": [], "stream": True}
    with serving(events, named=library == "anthropic") as url:
        if library == "openai":
            source: Any = openai.OpenAI(base_url=url, api_key="-").chat.completions.create(**asked)
        else:
            messages = anthropic.Anthropic(base_url=url, api_key="-").messages
            source = messages.create(max_tokens=9, **asked)
        with pytest.raises(failures):
            sink.pipe(source)
    assert "text-delta" in sink.types
    assert "error" not in sink.types


def test_a_pydantic_ai_run_that_fails_raises(sink: Sink) -> None:
    """What it has raised: its own event stream would tell the page, and the turn go on."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "Hel"
        raise ConnectionError("a secret")

    with pytest.raises(ConnectionError, match="a secret"):
        sink.pipe(Agent(FunctionModel(stream_function=stream)).run_stream_events("hi"))
    assert sink.types == ["text-start", "text-delta", "text-end", "finish-step"]
