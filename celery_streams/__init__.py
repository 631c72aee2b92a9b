"""Durable, resumable realtime streams for Celery.

::

    from celery import Celery
    from celery_streams import Streams

    app = Celery("proj", broker=..., backend=...)
    streams = Streams(app)

    @app.task(bind=True)
    def answer(self, question):
        for token in llm(question):
            self.streams.write(token)

    for token in streams.read(answer.delay("why?").id):
        print(token, end="")
"""

from __future__ import annotations

from celery_streams.app import Streams
from celery_streams.chat.agent import ChatAgent
from celery_streams.contracts import Authority, Credentials, Head, Store
from celery_streams.errors import (
    ChunksLost,
    ChunkTooLarge,
    ConfigurationError,
    CredentialsRejected,
    InvalidChunk,
    InvalidName,
    InvalidOffset,
    ModelFailed,
    OffsetGone,
    OutsideTask,
    ReadTimeout,
    RunFinished,
    StopRequested,
    StoreUnavailable,
    StreamClosed,
    StreamError,
    StreamFenced,
    StreamNotFound,
    TokenRejected,
    TooManyMessages,
    TurnBusy,
    WriteTimeout,
)
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.task.current import current_chat, current_streams
from celery_streams.writing.channel import WriteResult
from celery_streams.writing.writer import Writer

__version__ = "0.1.0"

__all__ = [
    "Authority",
    "ChatAgent",
    "ChunkTooLarge",
    "ChunksLost",
    "ConfigurationError",
    "Credentials",
    "CredentialsRejected",
    "Head",
    "InvalidChunk",
    "InvalidName",
    "InvalidOffset",
    "ModelFailed",
    "OffsetGone",
    "OutsideTask",
    "ReadTimeout",
    "RunFinished",
    "Slot",
    "StopRequested",
    "Store",
    "StoreUnavailable",
    "StreamClosed",
    "StreamError",
    "StreamFenced",
    "StreamNotFound",
    "Streams",
    "StreamsSettings",
    "TokenRejected",
    "TooManyMessages",
    "TurnBusy",
    "WriteResult",
    "WriteTimeout",
    "Writer",
    "current_chat",
    "current_streams",
]
