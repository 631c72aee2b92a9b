"""``make bench``: every question is answered, in the form that other programs read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import QUESTIONS
from tests.workers import ROOT

#: Figures that others look up by name.
_NAMES = {
    "write_call_us",
    "durable_chunks_per_s",
    "commands_per_1000_chunks",
    "memory_bytes_per_chunk",
    "latency_p50_ms",
    "latency_p99_ms",
    "initialize_calls_16_processes",
    "append_cost_ratio_1e6",
}
_KEYS = {"name", "value", "unit", "baseline", "baseline_value", "ratio"}


def _bench(path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *names],
        cwd=ROOT, env={**os.environ, "BENCH_JSON": str(path)},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip


@pytest.mark.alone
def test_every_benchmark_runs_and_its_figures_are_written_as_json(tmp_path: Path) -> None:
    """At a size that measures nothing; the names and keys are those of a full run."""
    path = tmp_path / "figures.json"
    done = _bench(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))
    assert set(names) >= _NAMES
    for row in rows:
        assert set(row) == _KEYS
        assert math.isfinite(row["value"]), row
        assert row["value"] > 0, row
        assert isinstance(row["unit"], str)
        if row["baseline_value"] is None:
            assert row["baseline"] is row["ratio"] is None
        else:
            assert row["baseline"]
            assert math.isclose(row["ratio"], row["value"] / row["baseline_value"])
    for question in QUESTIONS:
        assert f"{question}: " in done.stdout
    for name in names:
        assert name in done.stdout, "the table has every figure, too"


def test_one_question_can_be_asked_alone(tmp_path: Path) -> None:
    """Its figures alone, in the order of the table."""
    path = tmp_path / "figures.json"
    done = _bench(path, "growth")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == ["append_round_trip_us", "append_cost_ratio_1e6"]


def test_a_benchmark_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """With the names of those there are; nothing is started or written."""
    done = _bench(tmp_path / "figures.json", "speed")
    assert done.returncode == 2
    assert "unknown: speed" in done.stderr
    assert all(question in done.stderr for question in QUESTIONS)
    assert not list(tmp_path.iterdir())
