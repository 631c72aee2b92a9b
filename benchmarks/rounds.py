"""Fair turns: contenders alternate, so that what else the machine does hits them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping


def alternate(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int = 5, warm_up: int = 1
) -> dict[str, float]:
    """Run all contenders in turn, ``rounds`` times; returns the median of each.

    The first ``warm_up`` rounds do not count.
    """
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, run in contenders.items():
            value = run()
            if turn >= warm_up:
                results[name].append(value)
    return {name: statistics.median(values) for name, values in results.items()}


def percentile(values: list[float], percent: int) -> float:
    """The value that ``percent`` % of ``values`` do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
