"""``make bench-chat``: its figures are there, in the form that other programs read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workers import ROOT

pytest.importorskip("fastapi", reason="what the benchmark compares with needs FastAPI")


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """At a size that measures nothing; every figure stands beside the endpoint made by hand."""
    path = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chat", "--quick"],
        cwd=ROOT, env={**os.environ, "BENCH_JSON": str(path)},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows.keys() == {
        f"chat_{name}_p{percent}_ms"
        for name in ("first_chunk", "later_chunk", "request_to_first_chunk")
        for percent in (50, 99)
    }
    for row in rows.values():
        assert row["value"] > 0
        assert row["baseline_value"] > 0
        assert math.isclose(row["ratio"], row["value"] / row["baseline_value"])
    assert "<= 15 ms" in done.stdout
