"""What turns leave, as data: whatever is asked, no answer is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_streams.chat.branches import left_behind
from celery_streams.chat.history import asked, with_reply
from celery_streams.chat.requests import Request

Asked = tuple[str, int, int]


def said(name: str, role: str, text: str) -> dict[str, Any]:
    return {"id": name, "role": role, "parts": [{"type": "text", "text": text}]}


#: What is asked, of which message, and in which branch: numbers that count from the end.
ASKED = st.lists(
    st.tuples(
        st.sampled_from(["send", "edit", "regenerate", "regenerate last", "continue"]),
        st.integers(0, 9),
        st.integers(0, 4),
    ),
    max_size=25,
)


class Told:
    """A session, as its scripts keep it, without bounds."""

    def __init__(self) -> None:
        self.history: list[Any] = []
        self.branches: dict[str, list[Any]] = {}
        self.answers: list[Any] = []
        self.questions: list[Any] = []

    def request(self, number: int, kind: str, place: int, branch: int) -> Request:
        names = [None, *self.branches]
        name = names[branch % len(names)]
        seen = self.history if name is None else self.branches[name]
        message = seen[place % len(seen)] if seen else said(f"q{number}", "user", "")
        reply = f"a{number}"
        if kind == "edit" and message["role"] == "user":
            edited = said(message["id"], "user", f"edited {number}")
            return Request("x", message=edited, message_id=edited["id"], reply=reply, branch=name)
        if kind == "regenerate" and seen:
            return Request("x", "regenerate-message", None, message["id"], {}, reply, name)
        if kind == "regenerate last" and seen:
            return Request("x", "regenerate-message", seen[-1], None, {}, reply, name)
        if kind == "continue" and seen and seen[-1]["role"] == "assistant":
            return Request("x", message=seen[-1], reply=seen[-1]["id"], branch=name)
        return Request("x", message=said(f"q{number}", "user", kind), reply=reply, branch=name)

    def turn(self, number: int, asking: Asked) -> None:
        request = self.request(number, *asking)
        branch = None if request.branch is None else self.branches[request.branch]
        now = asked(self.history if branch is None else branch, request)
        left = left_behind(self.history, branch, now, request)
        continued = request.message is not None and request.message["id"] == request.reply
        reply = said(request.reply, "assistant", f"answer {number}")
        if continued:
            reply = {**now[-1], "parts": [*now[-1]["parts"], *reply["parts"]]}
            self.answers = [each for each in self.answers if each["id"] != reply["id"]]
        self.answers.append(reply)
        self.questions.append(now[-1] if not continued else now[-2])
        if left.messages:
            self.branches[f"t{number}"] = list(left.messages)
            assert left.messages[: left.shared] == now[: left.shared] or continued
            assert left.about["count"] == len(left.messages)
        if left.continued is not None:
            del self.branches[left.continued]
        self.history = with_reply(now, reply)


@given(ASKED)
def test_every_question_and_answer_is_in_the_history_or_in_a_branch(asking: list[Asked]) -> None:
    """After any sequence of messages, edits, regenerates and continuations, in any branch; and
    no branch is the beginning of the history or of another."""
    told = Told()
    for number, each in enumerate(asking):
        told.turn(number, each)
    kept = [message for each in (told.history, *told.branches.values()) for message in each]
    for message in (*told.answers, *told.questions):
        assert any(_is_in(message, each) for each in kept), message
    for name, branch in told.branches.items():
        assert told.history[: len(branch)] != branch, name


def _is_in(message: Any, other: Any) -> bool:
    """The same message, or one that has gone on."""
    same = message["id"] == other["id"]
    return bool(same and message["parts"] == other["parts"][: len(message["parts"])])
