"""How a run is doing, as readers of its streams are told."""

from __future__ import annotations

from celery_streams.contracts import Head
from celery_streams.slots import Slot

#: What comes later in an attempt comes later here; what is not named, at its end.
_ORDER = {"PENDING": 0, "STARTED": 1, "STALLED": 1, "RETRY": 2}
_ENDED = 3


def run_state(slot: Slot, head: Head | None, awaited: str | None = None) -> str | None:
    """How the run of a stream is doing; ``None`` for streams without a run.

    ``awaited`` is what is known of the run without a head, of a stream that is not there yet.
    """
    if slot.scope != "run":
        return None
    state = (awaited if head is None else head.run_state) or "PENDING"
    return "STALLED" if state == "LOST" else state


def progress(head: Head) -> tuple[int, int]:
    """How far its run has got by this head: of two of one run, the greater was later."""
    return head.epoch, _ORDER.get(head.run_state or "PENDING", _ENDED)
