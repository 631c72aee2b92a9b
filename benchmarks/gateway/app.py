"""The gateway under test, as an ASGI server loads it: ``benchmarks.gateway.app:create``."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from benchmarks.project import make_project


def create() -> Any:
    """The app on the streams at ``BENCHMARKS_URL``, open to everybody."""
    project = make_project(os.environ["BENCHMARKS_URL"])
    return import_module("celery_streams.gateway").create_app(project.streams, insecure=True)
