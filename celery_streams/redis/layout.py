"""Redis key names. The only module that spells one.

Everything of one run or session carries one hash tag, so it sits on one cluster node and one
script can touch all of it. Parts are separated by ``/``, which no name may contain.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_streams.slots import Scope, Slot

#: A stream that nobody can create: its live channel tells of changes to subscriptions.
CONTROL = Slot("path", "__ds%2Fsubscriptions", "default")


@dataclass(frozen=True, slots=True)
class Layout:
    """Key names under one prefix."""

    prefix: str

    def base(self, slot: Slot) -> str:
        """Common start of all keys of the slot's run or session."""
        return f"{self.prefix}/{{{slot.scope}/{slot.owner}}}/"

    def owner(self, slot: Slot) -> str:
        """Hash: the run's record (state, lease, current attempt); unused for sessions."""
        return self.base(slot) + "run"

    def keys(self, slot: Slot) -> str:
        """Set: the stream keys that ``initialize`` has registered."""
        return self.base(slot) + "keys"

    def meta(self, slot: Slot) -> str:
        """Hash: end, closed, content type and grants of one stream."""
        return f"{self.base(slot)}meta/{slot.key}"

    def log(self, slot: Slot) -> str:
        """Stream: the entries of one stream, ids ``end-count``."""
        return f"{self.base(slot)}log/{slot.key}"

    def fence(self, slot: Slot, run_id: str) -> str:
        """Hash: what one writing run did to one stream (attempt, epoch, producers).

        A run's own streams share one fence, the run's record: an attempt that has written to
        any of them fences the older attempts out of all of them.
        """
        if slot.scope == "run" and slot.owner == run_id:
            return self.owner(slot)
        return f"{self.base(slot)}fence/{slot.key}/{run_id}"

    def producers(self, slot: Slot) -> str:
        """Hash: ``epoch:seq`` of every producer of the protocol's clients."""
        return f"{self.base(slot)}producers/{slot.key}"

    def forks(self, slot: Slot) -> str:
        """Set: the streams that were forked from this one, ``path owner/identity``."""
        return f"{self.base(slot)}forks/{slot.key}"

    def staged(self, slot: Slot, identity: str) -> str:
        """Stream: the log of a fork while it is copied from its source."""
        return f"{self.base(slot)}staged/{identity}"

    def live(self, slot: Slot) -> str:
        """Sharded channel: every appended entry, and the close."""
        return f"{self.base(slot)}live/{slot.key}"

    def cached_credentials(self, slot: Slot) -> str:
        """String: the fleet's current credentials for the slot, encrypted."""
        return f"{self.base(slot)}cred/{slot.key}"

    def lock(self, slot: Slot) -> str:
        """String: the token of the process that is initializing the slot."""
        return f"{self.base(slot)}lock/{slot.key}"

    def wake(self, slot: Slot) -> str:
        """Sharded channel: what the lock's holder left behind when it let go."""
        return f"{self.base(slot)}wake/{slot.key}"

    def chat(self, slot: Slot, what: str) -> str:
        """Of a session: ``turn`` and ``branch`` (hashes), ``pending``, ``taken``, ``starts``
        and ``answered`` (lists), ``branches`` (sorted set), ``history`` (string), ``stop``
        (channel)."""
        return f"{self.base(slot)}chat/{what}"

    def index(self, scope: Scope) -> str:
        """Sorted set: every stream of one scope, by the time it was opened last."""
        return f"{self.prefix}/index/{scope}"

    def subscription(self, subscription_id: str) -> tuple[str, str, str, str, str]:
        """Of one subscription: its record (hash), its links and their streams' tails (hashes),
        the streams with pending work (sorted set), and the explicit ones (set)."""
        base = f"{self.prefix}/{{sub/{subscription_id}}}/"
        return (
            base + "record",
            base + "links",
            base + "tails",
            base + "pending",
            base + "explicit",
        )

    def subscriptions(self, what: str) -> str:
        """Of all subscriptions together: ``ids`` (sorted set, by version of the last change),
        ``version`` (number), ``leader`` and ``key`` (strings)."""
        return f"{self.base(CONTROL)}subscriptions/{what}"
