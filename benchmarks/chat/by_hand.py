"""The endpoint that teams write by hand: FastAPI, a blocked ``XREAD`` a reader, SSE."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from benchmarks.chat.app import URL, by_hand

api = FastAPI()
client = redis.asyncio.Redis.from_url(URL, protocol=2)


@api.post("/chat/agent")
async def chat(body: dict[str, Any]) -> StreamingResponse:
    """Send the task, and stream what it adds."""
    key = f"by-hand/{uuid.uuid4().hex}"
    await asyncio.to_thread(by_hand.delay, key, **body["words"])
    headers = {"x-vercel-ai-ui-message-stream": "v1", "x-accel-buffering": "no"}
    return StreamingResponse(_events(key), media_type="text/event-stream", headers=headers)


async def _events(key: str) -> AsyncIterator[bytes]:
    last: Any = b"0"
    while True:
        reply: Any = await client.xread({key: last}, block=5000)
        for _, entries in reply:
            for entry_id, fields in entries:
                yield b"data: %b\n\n" % fields[b"d"]
                last = entry_id
                if fields[b"d"] == b'{"type":"finish"}':
                    yield b"data: [DONE]\n\n"
                    return
