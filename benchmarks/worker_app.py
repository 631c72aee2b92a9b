"""The app of the real worker that :mod:`benchmarks.worker` starts."""

from __future__ import annotations

import os

from benchmarks.project import make_project

app = make_project(os.environ["BENCHMARKS_URL"]).app
