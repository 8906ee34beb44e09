"""What FastAPI and Flask do in the database, through the ORM of SQLAlchemy 2.

Assignees come by `selectinload`, which its documentation ("Relationship Loading Techniques")
recommends for collections. The same as the tracker: each write is one transaction that checks,
stores the ticket, its assignees and its history, and queues one mail per assignee.
"""

from datetime import UTC, datetime

import wording
from models import WRITES, Email, History, Project, Ticket, User
from schemas import Filters, TicketIn
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

PAGE = 50


class Invalid(Exception):
    """A reference to what does not exist; {field: what is wrong with it}."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__(errors)
        self.errors = errors


def get_ticket(session: Session, ticket_id: int) -> Ticket | None:
    return session.get(Ticket, ticket_id, options=[selectinload(Ticket.assignees)])


def list_tickets(session: Session, filters: Filters) -> tuple[list[Ticket], int | None]:
    """A page, newest first, and the id to go on behind if there is more."""
    query = select(Ticket).options(selectinload(Ticket.assignees)).order_by(Ticket.id.desc())
    if filters.project_id is not None:
        query = query.where(Ticket.project_id == filters.project_id)
    if filters.status is not None:
        query = query.where(Ticket.status == filters.status)
    if filters.text:
        query = query.where(
            or_(
                Ticket.title.icontains(filters.text, autoescape=True),
                Ticket.description.icontains(filters.text, autoescape=True),
            )
        )
    if filters.after is not None:
        query = query.where(Ticket.id < filters.after)
    tickets = list(session.scalars(query.limit(PAGE + 1)))
    page = tickets[:PAGE]
    return page, page[-1].id if len(tickets) > PAGE else None


def create_ticket(session: Session, fields: TicketIn) -> Ticket:
    """Raises Invalid."""
    session.connection(execution_options=WRITES)
    errors = {}
    if session.get(Project, fields.project_id) is None:
        errors["project_id"] = "does not exist"
    ids = set(fields.assignees)
    assignees = list(session.scalars(select(User).where(User.id.in_(ids)).order_by(User.id)))
    if len(assignees) < len(ids):
        errors["assignees"] = "do not all exist"
    if errors:
        raise Invalid(errors)
    ticket = Ticket(
        **fields.model_dump(exclude={"assignees"}),
        assignees=assignees,
        created_at=datetime.now(UTC),
        updated_at=None,
    )
    session.add(ticket)
    session.flush()
    queue_mail(session, ticket, ticket.created_at)
    session.commit()
    return ticket


def change_status(session: Session, ticket_id: int, status: str) -> Ticket | None:
    session.connection(execution_options=WRITES)
    ticket = get_ticket(session, ticket_id)
    if ticket is not None and ticket.status != status:
        before, now = ticket.status, datetime.now(UTC)
        ticket.status, ticket.updated_at = status, now
        changes = {"status": {"from": before, "to": status}}
        session.add(History(ticket_id=ticket.id, changed_at=now, changes=changes))
        queue_mail(session, ticket, now, before)
    session.commit()
    return ticket


def queue_mail(session: Session, ticket: Ticket, now: datetime, before: str | None = None) -> None:
    names = [user.name for user in ticket.assignees]
    project = session.get_one(Project, ticket.project_id).name
    body = wording.body(
        ticket.id, ticket.title, ticket.status, names, ticket.description, project, before
    )
    session.add_all(
        Email(
            ticket_id=ticket.id,
            user_id=user.id,
            subject=wording.subject(ticket.id, ticket.title),
            body=body,
            created_at=now,
            next_attempt_at=now,
        )
        for user in ticket.assignees
    )
