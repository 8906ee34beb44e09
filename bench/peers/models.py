"""The database of FastAPI and Flask: the tables and how SQLite is set up.

After the documentation of SQLAlchemy 2: "ORM Quick Start" for the tables, "Transactions with
SQLite and the sqlite3 driver" (dialect page) for BEGIN, and its recipe "Store Timezone Aware
Timestamps as Timezone Naive UTC".

The same as the tracker: the fields, WAL with synchronous = FULL, foreign keys, and that a
writer begins as one (IMMEDIATE), or reading before writing would fail under load.
"""

import os
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Index,
    String,
    Table,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker
from wording import message_id

engine = create_engine(f"sqlite:///{os.environ['PEER_DATABASE']}", pool_size=20)
# Without expiry, what was committed need not be read once more to be shown.
SessionLocal = sessionmaker(engine, expire_on_commit=False)
WRITES = {"writes": True}  # execution options of a transaction


@event.listens_for(engine, "connect")
def set_up(connection, record):
    connection.isolation_level = None  # SQLAlchemy begins, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 5000")


@event.listens_for(engine, "begin")
def begin(connection):
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class UtcDateTime(TypeDecorator):
    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value, dialect):
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON}  # noqa: RUF012


assignments = Table(
    "assignments",
    Base.metadata,
    Column("ticket_id", ForeignKey("tickets.id"), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True, index=True),
)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)


class Ticket(Base):
    __tablename__ = "tickets"
    __table_args__ = (Index("tickets_by_project_status", "project_id", "status"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None]
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str] = mapped_column(String(20), index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime | None]
    assignees: Mapped[list[User]] = relationship(secondary=assignments, order_by=User.id)


class History(Base):
    __tablename__ = "history"

    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"), index=True)
    changed_at: Mapped[datetime]
    changes: Mapped[dict[str, Any]]


class Email(Base):
    __tablename__ = "emails"

    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"), index=True)
    user_id: Mapped[int]
    subject: Mapped[str]
    body: Mapped[str]
    message_id: Mapped[str] = mapped_column(default=message_id, unique=True)
    state: Mapped[str] = mapped_column(default="queued", index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None]


if __name__ == "__main__":
    Base.metadata.create_all(engine)
