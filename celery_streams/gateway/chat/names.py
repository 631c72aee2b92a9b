"""Which chat agents the gateway serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from celery_streams.errors import ConfigurationError, InvalidName
from celery_streams.slots import check_name


def agents_by_name(configured: Iterable[str], given: Mapping[str, str] | None) -> dict[str, str]:
    """Tasks' names by the names that URLs use.

    ``configured`` is the setting ``chat_agents``, ``given`` what ``create_app`` was given, which
    counts first.

    Raises:
        ConfigurationError: a name cannot be part of a URL's path.
    """
    agents = {}
    for entry in configured:
        name, _, task = entry.partition("=")
        agents[name.strip()] = task.strip() or name.strip()
    agents.update(given or {})
    for name in agents:
        try:
            check_name(name, "the chat agent's name")
        except InvalidName as error:
            raise ConfigurationError(str(error)) from None
    return agents
