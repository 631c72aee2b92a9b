"""The gateway that the browser meets: ``uvicorn tests.browser.app:app``.

Its settings come from the environment that :func:`tests.browser.stage.gateway` gives it.
"""

from __future__ import annotations

import os

from celery import Celery

from celery_streams import Streams
from celery_streams.gateway import create_app

celery = Celery("browser", backend=os.environ["TEST_RESULT_BACKEND"], set_as_current=False)
app = create_app(Streams(celery), insecure="TEST_INSECURE" in os.environ, ui=True)
