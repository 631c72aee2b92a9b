"""Runs of Pydantic AI, by its own UI event stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessage
from pydantic_ai.ui.vercel_ai import VercelAIAdapter, VercelAIEventStream
from pydantic_ai.ui.vercel_ai.request_types import SubmitMessage, UIMessage

from celery_streams.chat.requests import Message
from celery_streams.errors import ModelFailed

_MESSAGES: TypeAdapter[list[UIMessage]] = TypeAdapter(list[UIMessage])


async def converted(events: AsyncIterator[Any]) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a run's events.

    Raises:
        Exception: what the run has raised. The event stream makes chunks of it, with its text.
    """
    failures: list[Exception] = []

    async def watched() -> AsyncGenerator[Any, None]:
        try:
            async for event in events:
                yield event
        except Exception as error:
            failures.append(error)
            raise

    request = SubmitMessage(id="", messages=[])
    stream: VercelAIEventStream[Any, Any] = VercelAIEventStream(request, sdk_version=6)
    async for chunk in stream.transform_stream(watched()):
        part = chunk.model_dump(mode="json", by_alias=True, exclude_none=True)
        if part["type"] == "error":
            failures.append(ModelFailed(part["errorText"]))
        elif part["type"] != "done":
            yield part
    if failures:
        raise failures[0]


def model_messages(messages: Sequence[Message]) -> list[ModelMessage]:
    """UI messages as a run's ``message_history``.

    ::

        history = model_messages(self.chat.messages[:-1])
        self.chat.pipe(agent.run_stream_events(self.chat.text, message_history=history))
    """
    return VercelAIAdapter.load_messages(_MESSAGES.validate_python(list(messages)))
