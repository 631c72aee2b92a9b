"""A store and an authority as a user may write them: in one SQLite file."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from celery_streams import (
    Credentials,
    CredentialsRejected,
    Head,
    Slot,
    StreamClosed,
    StreamFenced,
    StreamNotFound,
)
from celery_streams.contracts import (
    JSON,
    Append,
    Appended,
    Attempt,
    Batch,
    Entry,
    Page,
    Producer,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS streams (slot PRIMARY KEY, type, closed, fence, epoch DEFAULT 0);
CREATE TABLE IF NOT EXISTS entries (slot, stop, count, payload, PRIMARY KEY (slot, stop));
CREATE TABLE IF NOT EXISTS producers (slot, id, seq, start, stop, PRIMARY KEY (slot, id));
CREATE TABLE IF NOT EXISTS grants (slot, token);
CREATE TABLE IF NOT EXISTS calls (name);
"""
_POLL = 0.01


class Database:
    """The file; a connection for each thread of each process, and a note of every call."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()

    @contextmanager
    def transaction(self, call: str) -> Iterator[sqlite3.Connection]:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._local.connection.executescript(_SCHEMA)
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            connection.execute("INSERT INTO calls VALUES (?)", (call,))
            yield connection

    def count(self, call: str) -> int:
        """How often that was called, by all processes."""
        with self.transaction("count") as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM calls WHERE name = ?", (call,)
            ).fetchone()
            return int(count)


class SqliteAuthority:
    """Implements :class:`celery_streams.Authority`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        token = secrets.token_hex(16)
        with self._database.transaction("initialize") as connection:
            connection.execute(
                "INSERT OR IGNORE INTO streams (slot, type) VALUES (?, ?)",
                (str(slot), content_type),
            )
            connection.execute("INSERT INTO grants VALUES (?, ?)", (str(slot), token))
        return Credentials(slot, token[:8], token, time.time() + 3600)

    def revoke(self, slot: Slot) -> int:
        with self._database.transaction("revoke") as connection:
            return connection.execute("DELETE FROM grants WHERE slot = ?", (str(slot),)).rowcount


class SqliteStore:
    """Implements :class:`celery_streams.Store`; each new attempt fences the one before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        name = str(slot)
        with self._database.transaction("append") as connection:
            self._check_grant(connection, credentials)
            last = connection.execute(
                "SELECT seq, start, stop FROM producers WHERE slot = ? AND id = ?",
                (name, producer.producer_id),
            ).fetchone()
            head = self._head(connection, slot)
            if last is not None and last[0] == batch.seq:
                return Appended(last[1], last[2], head.epoch, duplicate=True)
            if head.closed is not None:
                raise StreamClosed(f"{slot} has ended ({head.closed})")
            epoch = self._enter(connection, slot, producer.attempt, head.epoch)
            stop = head.end + batch.count
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?)", (name, stop, batch.count, batch.payload)
            )
            connection.execute(
                "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?, ?)",
                (name, producer.producer_id, batch.seq, head.end, stop),
            )
            return Appended(head.end, stop, epoch)

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        results: list[Appended | Exception] = []
        for each in appends:
            try:
                results.append(self.append(each.slot, each.batch, each.producer, each.credentials))
            except Exception as error:
                results.append(error)
        return results

    def read(self, slot: Slot, offset: int, *, limit: int = 1000) -> Page:
        with self._database.transaction("read") as connection:
            try:
                head = self._head(connection, slot)
            except StreamNotFound:
                return Page((), None)
            rows = connection.execute(
                "SELECT stop, count, payload FROM entries WHERE slot = ? AND stop > ? "
                "ORDER BY stop LIMIT ?",
                (str(slot), offset, limit),
            )
            return Page([Entry(*row) for row in rows], head)

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        due = time.monotonic() + idle
        while True:
            page = self.read(slot, offset)
            if page.entries:
                offset = page.entries[-1].end
            ended = page.head is not None and page.head.closed and offset == page.head.end
            if page.entries or ended or time.monotonic() >= due:
                yield page
                due = time.monotonic() + idle
            if ended:
                return
            time.sleep(_POLL)

    def head(self, slot: Slot) -> Head:
        with self._database.transaction("head") as connection:
            return self._head(connection, slot)

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        with self._database.transaction("close") as connection:
            self._check_grant(connection, credentials)
            self._enter(connection, slot, attempt, self._head(connection, slot).epoch)
            connection.execute(
                "UPDATE streams SET closed = coalesce(closed, 'CLOSED') WHERE slot = ?",
                (str(slot),),
            )
            return self._head(connection, slot)

    def delete(self, slot: Slot) -> bool:
        with self._database.transaction("delete") as connection:
            connection.execute("DELETE FROM entries WHERE slot = ?", (str(slot),))
            deleted = connection.execute("DELETE FROM streams WHERE slot = ?", (str(slot),))
            return bool(deleted.rowcount)

    def for_event_loop(self) -> AsyncSqliteStore:
        """What ``aread`` uses."""
        return AsyncSqliteStore(self)

    @staticmethod
    def _check_grant(connection: sqlite3.Connection, credentials: Credentials) -> None:
        grant = (str(credentials.slot), credentials.token)
        if not connection.execute(
            "SELECT 1 FROM grants WHERE slot = ? AND token = ?", grant
        ).fetchone():
            raise CredentialsRejected(f"no such grant for {credentials.slot}")

    @staticmethod
    def _enter(connection: sqlite3.Connection, slot: Slot, attempt: Attempt, epoch: int) -> int:
        place = f"{attempt.generation:09}/{int(attempt.redelivered)}/{attempt.attempt_id}"
        (fence,) = connection.execute(
            "SELECT fence FROM streams WHERE slot = ?", (str(slot),)
        ).fetchone()
        if fence == place:
            return epoch
        if fence is not None and fence > place and attempt.run_id == slot.owner:
            raise StreamFenced(f"a later attempt has taken over {slot}")
        connection.execute(
            "UPDATE streams SET fence = ?, epoch = epoch + 1 WHERE slot = ?", (place, str(slot))
        )
        return epoch + 1

    @staticmethod
    def _head(connection: sqlite3.Connection, slot: Slot) -> Head:
        row = connection.execute(
            "SELECT closed, type, epoch FROM streams WHERE slot = ?", (str(slot),)
        ).fetchone()
        if row is None:
            raise StreamNotFound(f"there is no stream {slot}")
        (end,) = connection.execute(
            "SELECT coalesce(max(stop), 0) FROM entries WHERE slot = ?", (str(slot),)
        ).fetchone()
        return Head(slot, end, closed=row[0], content_type=row[1], epoch=row[2])


class AsyncSqliteStore:
    """Implements ``AsyncStore``: the same, from threads."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def read(self, slot: Slot, offset: int, *, limit: int = 1000) -> Page:
        return await asyncio.to_thread(self._store.read, slot, offset, limit=limit)

    async def follow(self, slot: Slot, offset: int, *, idle: float) -> AsyncIterator[Page]:
        pages = self._store.follow(slot, offset, idle=idle)
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            yield page

    async def head(self, slot: Slot) -> Head:
        return await asyncio.to_thread(self._store.head, slot)
