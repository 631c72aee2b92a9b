"""The gateway that the conformance suite meets.

``uvicorn tests.conformance.app:app`` or ``celery -A tests.conformance.app:celery streams serve``;
its settings come from the environment that ``run.py`` gives it.
"""

from __future__ import annotations

from celery import Celery

from celery_streams import Streams
from celery_streams.gateway import create_app

celery = Celery("conformance")
streams = Streams(celery)
app = create_app(streams, insecure=True)
