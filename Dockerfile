# The package with its gateway, and the example project; starts a worker unless told otherwise.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY celery_streams celery_streams
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir '.[gateway,s2]'

FROM python:3.13-slim
RUN useradd --system --create-home --uid 10001 streams
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
COPY example_project example_project
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER streams
HEALTHCHECK --interval=15s --timeout=10s --start-period=20s --retries=4 \
    CMD celery -A example_project.app inspect ping --destination "celery@$HOSTNAME"
CMD ["celery", "-A", "example_project.app", "worker", "--loglevel", "INFO"]
