"""The same API in FastAPI, with SQLAlchemy; served by uvicorn.

After FastAPI's tutorial: "SQL (Relational) Databases" (a session per request as a dependency,
plain `def` endpoints), "Query Parameter Models", "Response Model - Return Type" (Pydantic writes
the JSON), "Handling Errors"; and "Server Workers - Uvicorn with Workers" for its deployment.
The database is in crud.py.
"""

from typing import Annotated

import crud
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from models import SessionLocal, Ticket
from schemas import Filters, StatusIn, TicketIn, TicketOut
from sqlalchemy.orm import Session

app = FastAPI()


def get_session():
    with SessionLocal() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]


@app.exception_handler(crud.Invalid)
def invalid(request: Request, error: crud.Invalid) -> JSONResponse:
    return JSONResponse({"detail": error.errors}, status_code=422)


@app.get("/tickets", response_model=list[TicketOut])
def list_tickets(
    session: SessionDep,
    filters: Annotated[Filters, Query()],
    request: Request,
    response: Response,
) -> list[Ticket]:
    tickets, after = crud.list_tickets(session, filters)
    if after is not None:
        url = request.url.include_query_params(after=after)
        response.headers["Link"] = f'<{url}>; rel="next"'
    return tickets


@app.post("/tickets", status_code=201, response_model=TicketOut)
def create_ticket(session: SessionDep, fields: TicketIn, response: Response) -> Ticket:
    ticket = crud.create_ticket(session, fields)
    response.headers["Location"] = f"/tickets/{ticket.id}"
    return ticket


@app.get("/tickets/{ticket_id}", response_model=TicketOut)
def get_ticket(session: SessionDep, ticket_id: int) -> Ticket:
    return found(crud.get_ticket(session, ticket_id))


@app.patch("/tickets/{ticket_id}", response_model=TicketOut)
def change_status(session: SessionDep, ticket_id: int, fields: StatusIn) -> Ticket:
    return found(crud.change_status(session, ticket_id, fields.status))


def found(ticket: Ticket | None) -> Ticket:
    if ticket is None:
        raise HTTPException(404, "There is no such ticket.")
    return ticket
