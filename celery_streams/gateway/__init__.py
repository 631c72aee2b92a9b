"""The HTTP gateway in front of a store: it speaks the Durable Streams protocol."""

from celery_streams.gateway.application import Gateway, create_app

__all__ = ["Gateway", "create_app"]
