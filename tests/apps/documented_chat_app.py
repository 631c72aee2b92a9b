"""Chat agents that keep their history as docs/chat.md says: with its own code, run as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import django
from celery import Celery
from django.conf import settings

from celery_streams import ChatAgent, Streams

DATABASE = os.environ["TEST_DATABASE"]

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{DATABASE}.django"}}
)
django.setup()

from django.db import connection, models  # noqa: E402
from sqlalchemy import JSON, create_engine  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column  # noqa: E402

app = Celery("documented")
app.conf.update(
    broker_url=os.environ["TEST_BROKER_URL"], result_backend=os.environ["TEST_RESULT_BACKEND"]
)
streams = Streams(app)


def documented(piece: str, **names: Any) -> dict[str, Any]:
    """What the example of docs/chat.md that contains ``piece`` defines."""
    text = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")
    [code] = [each for each in re.findall(r"```python\n(.*?)```", text, re.S) if piece in each]
    exec(compile(code, "docs/chat.md", "exec"), names)
    return names


class Chat(models.Model):
    """A chat in Django's database."""

    id: Any = models.CharField(primary_key=True, max_length=255)
    messages: Any = models.JSONField()

    class Meta:
        """In no application."""

        app_label = "documented"


class Branch(models.Model):
    """A branch in Django's database."""

    id: Any = models.CharField(primary_key=True, max_length=255)
    chat: Any = models.CharField(max_length=255)
    messages: Any = models.JSONField()

    class Meta:
        """In no application."""

        app_label = "documented"


class Base(DeclarativeBase):
    """SQLAlchemy's tables."""


class Row(Base):
    """A chat in SQLAlchemy's database."""

    __tablename__ = "chats"
    id: Mapped[str] = mapped_column(primary_key=True)
    messages: Mapped[Any] = mapped_column(JSON)


engine = create_engine(f"sqlite:///{DATABASE}.sqlalchemy")

in_django = documented("class Stored(ChatAgent)", ChatAgent=ChatAgent, Chat=Chat)["Stored"]
branches = documented("def save_branch", Branch=Branch)
sqlalchemy = documented("with Session(engine)", Session=Session, engine=engine, Chat=Row)


class InDjango(in_django):  # type: ignore[valid-type]
    """Django's example, with branches."""

    abstract = True
    load_branch = branches["load_branch"]
    save_branch = branches["save_branch"]


class InSqlalchemy(ChatAgent):
    """SQLAlchemy's example."""

    abstract = True
    load_messages = sqlalchemy["load_messages"]
    save_messages = sqlalchemy["save_messages"]


def create_tables() -> None:
    """Before the worker starts."""
    Base.metadata.create_all(engine)
    with connection.schema_editor() as editor:
        editor.create_model(Chat)
        editor.create_model(Branch)


def answer(self: Any, session_id: str) -> None:
    """How many messages there are, and what was said last."""
    self.chat.response.text(f"{len(self.chat.messages)} {self.chat.text}")


app.task(answer, name="django", bind=True, base=InDjango)
app.task(answer, name="sqlalchemy", bind=True, base=InSqlalchemy)

if __name__ == "__main__":
    create_tables()
