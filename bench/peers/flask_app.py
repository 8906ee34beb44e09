"""The same API in Flask, with SQLAlchemy; served by waitress and by gunicorn.

After Flask's documentation: "SQLAlchemy in Flask" (patterns, "Declarative": a scoped session,
removed with the application context), "Handling Application Errors" (errors as JSON), and
"Deploying to Production" for the servers. It leaves validation open; Pydantic does it here, and
writes the JSON, which is the fastest of the usual ways. The database is in crud.py.
"""

import crud
from flask import Flask, Response, abort, request, url_for
from models import SessionLocal, Ticket
from pydantic import TypeAdapter, ValidationError
from schemas import Filters, StatusIn, TicketIn, TicketOut
from sqlalchemy.orm import scoped_session
from werkzeug.exceptions import HTTPException

app = Flask(__name__)
session = scoped_session(SessionLocal)
TICKETS = TypeAdapter(list[TicketOut])


@app.teardown_appcontext
def remove_session(exception=None):
    session.remove()


@app.errorhandler(ValidationError)
def not_valid(error):
    return {"detail": error.errors(include_url=False, include_context=False)}, 422


@app.errorhandler(crud.Invalid)
def invalid(error):
    return {"detail": error.errors}, 422


@app.errorhandler(HTTPException)
def http_error(error):
    return {"detail": error.description}, error.code


@app.get("/tickets")
def list_tickets():
    filters = Filters.model_validate(request.args.to_dict())
    tickets, after = crud.list_tickets(session(), filters)
    page = TICKETS.validate_python(tickets, from_attributes=True)
    response = Response(TICKETS.dump_json(page), mimetype="application/json")
    if after is not None:
        url = url_for("list_tickets", **(request.args.to_dict() | {"after": after}))
        response.headers["Link"] = f'<{url}>; rel="next"'
    return response


@app.post("/tickets")
def create_ticket():
    fields = TicketIn.model_validate(request.get_json())
    ticket = crud.create_ticket(session(), fields)
    return answer(ticket, 201, {"Location": url_for("get_ticket", ticket_id=ticket.id)})


@app.get("/tickets/<int:ticket_id>")
def get_ticket(ticket_id):
    return answer(crud.get_ticket(session(), ticket_id))


@app.patch("/tickets/<int:ticket_id>")
def change_status(ticket_id):
    fields = StatusIn.model_validate(request.get_json())
    return answer(crud.change_status(session(), ticket_id, fields.status))


def answer(ticket: Ticket | None, status=200, headers=None):
    if ticket is None:
        abort(404, "There is no such ticket.")
    document = TicketOut.model_validate(ticket).model_dump_json()
    return Response(document, status, headers, mimetype="application/json")
