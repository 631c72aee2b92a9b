"""Stream an answer from any OpenAI-compatible server, with nothing but the standard library.

``OPENAI_BASE_URL`` (``http://localhost:11434/v1``, say), ``OPENAI_API_KEY`` and
``OPENAI_MODEL`` choose it. Without the first two the example answers from Python's own
documentation instead.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

_OPENAI = "https://api.openai.com/v1"
_DEFAULT_MODEL = "gpt-4o-mini"
_SILENCE = 60.0  #: seconds without a byte after which the model counts as gone
_SYSTEM = "You explain Python to programmers. Answer in Markdown, briefly and precisely."
_CONTINUE = "Your answer was cut off. Continue it exactly where it stops; repeat nothing."


class ModelError(RuntimeError):
    """The model did not answer, or not to its end; trying again may help."""

    def __reduce__(self) -> Any:
        return type(self), self.args


def configured() -> bool:
    """Whether the environment names a model."""
    return bool(os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY"))


def stream(
    question: str, so_far: str = "", before: Iterable[tuple[str, str]] = ()
) -> Iterator[str]:
    """The pieces of the model's answer as they come.

    ``before`` is what was said before the question, as roles and texts. ``so_far`` is what an
    earlier attempt has delivered: the model is asked to go on from there.

    Raises:
        ModelError: it refused, cannot be reached, fell silent or stopped in mid-answer.
    """
    said = [("system", _SYSTEM), *before, ("user", question)]
    messages = [{"role": role, "content": content} for role, content in said]
    if so_far:
        messages += [
            {"role": "assistant", "content": so_far},
            {"role": "user", "content": _CONTINUE},
        ]
    model = os.environ.get("OPENAI_MODEL") or _DEFAULT_MODEL
    request = _request({"model": model, "messages": messages, "stream": True})
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE) as response:
            yield from _pieces(response)
    except urllib.error.HTTPError as error:
        with error:
            detail = error.read(500).decode(errors="replace")
        raise ModelError(f"the model's server answered {error.code}: {detail}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the model's server at {request.host} failed: {error}") from None


def _request(body: dict[str, Any]) -> urllib.request.Request:
    base = (os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ModelError(f"OPENAI_BASE_URL must be an http:// or https:// URL, not {base!r}")
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return urllib.request.Request(
        f"{base}/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )


def _pieces(lines: Iterator[bytes]) -> Iterator[str]:
    """The text deltas of a server-sent event stream of chat completion chunks."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if error := event.get("error"):
            raise ModelError(f"the model gave up: {error}")
        for choice in event.get("choices", ()):
            if piece := (choice.get("delta") or {}).get("content"):
                yield piece
    raise ModelError("the model's answer ended before it was complete")
