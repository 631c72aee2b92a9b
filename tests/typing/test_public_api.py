"""The public API's types are part of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_the_public_api_has_the_types_it_documents() -> None:
    """mypy --strict agrees with every ``assert_type``, and needs every ``type: ignore``."""
    pytest.importorskip("mypy", reason="mypy is not installed (the `lint` extra)")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", HERE / "public_api.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
