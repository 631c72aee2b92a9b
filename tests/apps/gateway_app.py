"""The app whose streams the gateway's tests serve, with ``celery -A`` or mounted."""

from __future__ import annotations

from celery import Celery

from celery_streams import Streams

app = Celery("gateway")
streams = Streams(app)
