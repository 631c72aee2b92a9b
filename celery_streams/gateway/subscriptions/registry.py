"""What this process knows of all subscriptions: whom does an append concern?"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from celery_streams.slots import Scope
from celery_streams.stores.patterns import Pattern
from celery_streams.subscriptions.commands import Record
from celery_streams.subscriptions.config import Configuration
from celery_streams.subscriptions.store import SubscriptionStore


@dataclass(frozen=True, slots=True)
class Known:
    """One subscription."""

    id: str
    configuration: Configuration
    pattern: Pattern | None
    record: Record = field(repr=False)

    def follows(self, path: str) -> bool:
        """Whether its pattern matches. Never its own wake stream: that would wake itself."""
        if self.pattern is None or path == self.configuration.wake_stream:
            return False
        return self.pattern.matches(path)


class Registry:
    """All subscriptions, as of the last :meth:`refresh`. Without any, every append is free."""

    def __init__(self, store: SubscriptionStore) -> None:
        self.known: dict[str, Known] = {}
        self._store = store
        self._version = 0
        self._listed: set[str] = set()
        self._patterns: dict[str, Known] = {}
        self._explicit: dict[str, set[str]] = defaultdict(set)
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> set[str]:
        """Learn what has changed; answers which subscriptions have."""
        async with self._refreshing:
            link, commands = self._store.link, self._store.commands
            version, count, changed = await link.call(commands.changes(self._version))
            records = await self._store.records(changed)
            for subscription_id, record in zip(changed, records, strict=True):
                self._listed.add(subscription_id)
                self._put(subscription_id, record)
            altered = set(changed)
            if count != len(self._listed):
                ids = await link.call(commands.ids())
                listed = set(ids)
                for gone in self._listed - listed:
                    self._put(gone, None)
                    altered.add(gone)
                self._listed &= listed
            self._version = version
            return altered

    def matching(self, path: str) -> Iterator[tuple[Known, str]]:
        """The subscriptions that an append to ``path`` concerns, and how they link it."""
        explicit = self._explicit.get(path, ())
        for each in self._patterns.values():
            if each.follows(path):
                yield each, "g"
            elif each.id in explicit:
                yield each, ""
        for subscription_id in explicit:
            if subscription_id not in self._patterns:
                yield self.known[subscription_id], ""

    @property
    def scopes(self) -> set[Scope]:
        """Where streams can come up that some pattern matches."""
        patterns = [each.pattern for each in self._patterns.values() if each.pattern]
        return {scope for pattern in patterns for scope in pattern.scopes}

    def _put(self, subscription_id: str, record: Record | None) -> None:
        before = self.known.pop(subscription_id, None)
        self._patterns.pop(subscription_id, None)
        for path in before.record.explicit if before else ():
            paths = self._explicit[path]
            paths.discard(subscription_id)
            if not paths:
                del self._explicit[path]
        if record is None:
            return
        text = record.configuration.pattern
        pattern = None if text is None else Pattern.parse(text)
        known = Known(subscription_id, record.configuration, pattern, record)
        self.known[subscription_id] = known
        if pattern is not None:
            self._patterns[subscription_id] = known
        for path in record.explicit:
            self._explicit[path].add(subscription_id)
