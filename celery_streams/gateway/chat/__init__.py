"""Chat agents over HTTP, as the AI SDK's ``DefaultChatTransport`` speaks to them."""

from celery_streams.gateway.chat.endpoint import CHAT_ROOT, ChatEndpoint, Parts
from celery_streams.gateway.chat.following import SessionFeed
from celery_streams.gateway.chat.names import agents_by_name

__all__ = ["CHAT_ROOT", "ChatEndpoint", "Parts", "SessionFeed", "agents_by_name"]
