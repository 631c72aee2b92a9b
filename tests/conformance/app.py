"""The gateway that the conformance suite meets: ``uvicorn tests.conformance.app:app``.

Its settings come from the environment that ``run.py`` gives it.
"""

from __future__ import annotations

from celery_streams import Streams
from celery_streams.gateway import create_app

app = create_app(Streams(), insecure=True)
