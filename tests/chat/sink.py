"""A response whose chunks stay where the test can look at them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from celery_streams.chat.adapters import pipe
from celery_streams.chat.message import ResponseMessage
from celery_streams.chat.response import ChatResponse


class Sink:
    """A response whose chunks stay here."""

    def __init__(self, **options: Any) -> None:
        self.chunks: list[Any] = []
        self.message = ResponseMessage("reply")
        self.message.add({"type": "start-step"})
        self.response = ChatResponse(self.chunks.append, self.message, **options)

    def pipe(self, source: Any) -> Any:
        written = pipe(source, self.response)
        self.response.end_parts()
        self.chunks += self.response.last_chunks()
        return written

    @property
    def types(self) -> list[str]:
        return [chunk["type"] for chunk in self.chunks]

    @property
    def parts(self) -> list[Any]:
        return self.message.message()["parts"]


async def words() -> AsyncIterator[str]:
    """An async source."""
    yield "one"
