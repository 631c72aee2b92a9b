"""``make bench-s2``: its figures are there, in the form that other programs read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.workers import ROOT


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """At a size that measures nothing."""
    path = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.s2", "--quick"],
        cwd=ROOT, env={**os.environ, "BENCH_JSON": str(path)},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows.keys() >= {"s2_chunks_per_s", "s2_latency_p50_ms", "s2_latency_p99_ms"}
    assert rows.keys() >= {"s2_far_chunks_per_s", "s2_far_latency_p50_ms"}
    assert all(row["value"] > 0 for row in rows.values())
