"""The reserved subscription APIs (PROTOCOL 6 and 7), and the deliveries they promise."""

from celery_streams.gateway.subscriptions.endpoint import SubscriptionEndpoint
from celery_streams.gateway.subscriptions.running import Subscriptions

__all__ = ["SubscriptionEndpoint", "Subscriptions"]
