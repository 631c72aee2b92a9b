"""Count what arrived beside what was meant to: chunks, lost, duplicated, initializations."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Checked:
    """One stream: what its reader got, and how that differs from what was meant."""

    act: str
    slot: str
    chunks: int
    lost: int
    duplicated: int


@dataclass(frozen=True, slots=True)
class Row:
    """The streams of one act together. ``initializes`` is the authority's own count."""

    act: str
    streams: int
    chunks: int
    initializes: int
    lost: int
    duplicated: int
    #: Each stream by itself was initialized exactly once.
    once: bool

    @property
    def good(self) -> bool:
        """One initialization a stream; nothing lost, nothing twice."""
        return self.once and not self.lost and not self.duplicated


def check(act: str, slot: str, expected: Sequence[Any], received: Sequence[Any]) -> Checked:
    """Compare; chunks are equal when they are equal, whatever they are."""
    lost, duplicated = differences(expected, received)
    return Checked(act, slot, len(received), lost, duplicated)


def differences(expected: Sequence[Any], received: Sequence[Any]) -> tuple[int, int]:
    """How many chunks are missing from ``received``, and how many it has too many."""
    if list(expected) == list(received):
        return 0, 0
    matcher = difflib.SequenceMatcher(
        None, list(map(repr, expected)), list(map(repr, received)), autojunk=False
    )
    same = sum(block.size for block in matcher.get_matching_blocks())
    return len(expected) - same, len(received) - same


def rows(checked: Sequence[Checked], initializes: Mapping[str, int]) -> list[Row]:
    """One row an act, in order; slots that were initialized and not checked make a row, too."""
    result = []
    for act in dict.fromkeys(each.act for each in checked):
        mine = [each for each in checked if each.act == act]
        result.append(
            Row(
                act,
                streams=len(mine),
                chunks=sum(each.chunks for each in mine),
                initializes=sum(initializes.get(each.slot, 0) for each in mine),
                lost=sum(each.lost for each in mine),
                duplicated=sum(each.duplicated for each in mine),
                once=all(initializes.get(each.slot) == 1 for each in mine),
            )
        )
    known = {each.slot for each in checked}
    if strange := {slot: count for slot, count in initializes.items() if slot not in known}:
        result.append(Row("not looked at", 0, 0, sum(strange.values()), 0, 0, once=False))
    return result


def total(all_rows: Sequence[Row]) -> Row:
    """The sum."""
    return Row(
        "total",
        *(
            sum(getattr(row, name) for row in all_rows)
            for name in ("streams", "chunks", "initializes", "lost", "duplicated")
        ),
        once=all(row.once for row in all_rows),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
