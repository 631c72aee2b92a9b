"""Answer questions about Python from the interpreter's own documentation; no network.

Only modules of the standard library are ever imported, and none that does something when it
is imported: a question comes from anybody.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import importlib
import inspect
import re
import sys
import textwrap
import types
import warnings
from dataclasses import dataclass
from typing import Any

#: Standard modules that act, open windows or print when they are imported.
_ACTING = frozenset(
    {"antigravity", "idlelib", "lib2to3", "rlcompleter", "test", "this", "tkinter", "turtle"}
    | {"turtledemo", "winreg", "ensurepip", "venv", "site", "sitecustomize", "usercustomize"}
)
_ACTING_SUBMODULES = frozenset({"idle", "test", "tests", "demo"})
MODULES = frozenset(
    name for name in sys.stdlib_module_names if name not in _ACTING and not name.startswith("_")
)
#: Builtins that are English words: taken for a topic only if the question has no other.
_WORDS = frozenset({"all", "any", "help", "open", "id", "next", "set", "object", "type", "exit"})

_DOTTED = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*")
_LONGEST_QUESTION = 2000
_LONGEST_DETAIL = 1800
_SEE_ALSO = 6


@dataclass(frozen=True, slots=True)
class Topic:
    """Something that has documentation: its full name, and itself."""

    name: str
    value: Any


class UnknownTopic(LookupError):
    """The question names nothing in the standard library. ``close`` are names like it."""

    def __init__(self, question: str, close: list[str]) -> None:
        super().__init__(f"nothing in Python's standard library is called {question!r}")
        self.close = close


def resolve(name: str) -> Topic:
    """The object a dotted name stands for (``json.dumps``, ``str.split``, ``asyncio``).

    Raises:
        UnknownTopic: no such object, or one in a module that is not imported here.
    """
    if not _DOTTED.fullmatch(name):
        raise UnknownTopic(name, [])
    head, *rest = name.split(".")
    if head in MODULES:
        value: Any = _imported(head)
    elif hasattr(builtins, head):
        value = getattr(builtins, head)
    else:
        raise UnknownTopic(name, _close_names(name))
    path = head
    for part in rest:
        path = f"{path}.{part}"
        value = _member(value, part, path, name)
    return Topic(name, value)


def topic_of(question: str) -> Topic:
    """What a question in English is about.

    What stands in backquotes comes first, then dotted names, then modules, then builtins.

    Raises:
        UnknownTopic: nothing of it has documentation.
    """
    question = question[:_LONGEST_QUESTION]
    quoted = re.findall(r"`([^`]+)`", question)
    names = list(dict.fromkeys([*quoted, *_DOTTED.findall(question)]))
    names.sort(key=lambda name: _rank(name, quoted))  # stable: first mentioned, first tried
    refusal: UnknownTopic | None = None
    for name in names:
        if _rank(name, quoted) < len(_RANKS):
            try:
                return resolve(name)
            except UnknownTopic as unknown:
                refusal = refusal or unknown
    likely = (names[0] if names else question.strip())[:80]
    raise refusal or UnknownTopic(likely, _close_names(likely))


def answer(question: str) -> str:
    """A Markdown answer: what it is, its signature, what it does, and what is beside it."""
    try:
        topic = topic_of(question)
    except UnknownTopic as unknown:
        hint = ", ".join(f"`{name}`" for name in unknown.close) or "`json.dumps`, `asyncio`"
        return f"I am sorry: {unknown}.\n\nTry one of {hint}.\n"
    summary, detail = _documentation(topic.value)
    parts = [f"# {topic.name}", f"*{_kind(topic)}*"]
    if signature := _signature(topic):
        parts.append(f"```python\n{signature}\n```")
    parts.append(summary or "It has no documentation of its own.")
    if detail:
        parts.append(f"## In detail\n\n{detail}")
    if related := _see_also(topic):
        parts.append("## See also\n\n" + "\n".join(related))
    return "\n\n".join(parts) + "\n"


_RANKS = ("quoted", "dotted", "module", "builtin", "word")


def _rank(name: str, quoted: list[str]) -> int:
    if name in quoted:
        return 0
    if "." in name:
        return 1
    if name in MODULES:
        return 2
    if hasattr(builtins, name):
        return 4 if name in _WORDS else 3
    return len(_RANKS)


def _imported(name: str) -> types.ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:  # a module of another platform
            raise UnknownTopic(name, _close_names(name)) from error


def _member(value: Any, part: str, path: str, asked: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(value, part, None)
    if found is not None and not _outside(found):
        return found
    package = isinstance(value, types.ModuleType) and hasattr(value, "__path__")
    if package and part not in _ACTING_SUBMODULES:
        with contextlib.suppress(UnknownTopic):
            return _imported(path)
    raise UnknownTopic(asked, _close_names(asked, value))


def _outside(value: Any) -> bool:
    """A module that is not the standard library's, found through one that is."""
    if not isinstance(value, types.ModuleType):
        return False
    return value.__name__.partition(".")[0] not in sys.stdlib_module_names


def _close_names(name: str, within: Any = None) -> list[str]:
    if within is not None:
        prefix, _, last = name.rpartition(".")
        members = [each for each in dir(within) if not each.startswith("_")]
        return [f"{prefix}.{close}" for close in difflib.get_close_matches(last, members, 3, 0.5)]
    known = [*MODULES, *(each for each in dir(builtins) if not each.startswith("_"))]
    return difflib.get_close_matches(name.partition(".")[0], sorted(known), 3)


def _kind(topic: Topic) -> str:
    value = topic.value
    if isinstance(value, types.ModuleType):
        return "package" if hasattr(value, "__path__") else "module"
    owner, _, _ = topic.name.rpartition(".")
    where = f" of {owner}" if owner else ", built in"
    if inspect.isclass(value):
        return ("exception" if issubclass(value, BaseException) else "class") + where
    if inspect.iscoroutinefunction(value):
        return f"coroutine function{where}"
    return ("function" if callable(value) else f"{type(value).__name__}") + where


def _signature(topic: Topic) -> str:
    value = topic.value
    if isinstance(value, types.ModuleType) or not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    whole = topic.name + _without_addresses(str(signature))
    if len(whole) <= 72:
        return whole
    parts: list[str] = []
    before = None
    for parameter in signature.parameters.values():
        if before is parameter.POSITIONAL_ONLY is not parameter.kind:
            parts.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in "".join(parts):
            parts.append("*")
        before = parameter.kind
        parts.append(_without_addresses(str(parameter)))
    lines = "".join(f"    {part},\n" for part in parts)
    return f"{topic.name}(\n{lines})"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _documentation(value: Any) -> tuple[str, str]:
    """The first paragraph, and the rest up to a readable length."""
    text = inspect.getdoc(value) or ""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip("\n")) if part.strip()]
    if not paragraphs:
        return "", ""
    summary, *rest = paragraphs
    detail: list[str] = []
    for paragraph in rest:
        if sum(map(len, detail)) + len(paragraph) > _LONGEST_DETAIL:
            break
        detail.append(_markdown(paragraph))
    return _markdown(summary), "\n\n".join(detail)


def _markdown(paragraph: str) -> str:
    """One paragraph of a docstring as Markdown: examples and layouts stay as they are."""
    lines = paragraph.splitlines()
    indented = sum(line.startswith((" ", "\t")) for line in lines) > len(lines) / 2
    if indented or any(line.lstrip().startswith(">>>") for line in lines):
        return f"```python\n{textwrap.dedent(paragraph)}\n```"
    text = " ".join(line.strip() for line in lines)
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _see_also(topic: Topic) -> list[str]:
    """Members of a module or class; neighbours of anything else."""
    owner, prefix = topic.value, topic.name
    if not isinstance(owner, types.ModuleType) and not inspect.isclass(owner):
        prefix = topic.name.rpartition(".")[0]
        if not prefix:
            return []
        owner = resolve(prefix).value
    last = topic.name.rpartition(".")[2]
    names = getattr(owner, "__all__", None) or dir(owner)
    lines = []
    for name in sorted(names, key=lambda each: -difflib.SequenceMatcher(None, each, last).ratio()):
        value = getattr(owner, name, None)
        documented = callable(value) and not name.startswith("_") and name != last
        if documented and (summary := _first_sentence(value)):
            lines.append(f"- `{prefix}.{name}`: {summary}")
        if len(lines) == _SEE_ALSO:
            break
    return lines


def _first_sentence(value: Any) -> str:
    summary, _ = _documentation(value)
    if summary.startswith("```"):
        return ""
    sentence = re.split(r"(?<=[.!?])\s", summary.replace("\n", " "), maxsplit=1)[0]
    return sentence if len(sentence) <= 100 else sentence[:97].rstrip() + "..."
