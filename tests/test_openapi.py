"""openapi.json says what the tracker does: the same routes, and answers as it describes them."""

import json
import re
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from conftest import ROOT, Api, eventually
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate

import tracker
from plumbing import Unavailable, web

DOCUMENT = json.loads((ROOT / "openapi.json").read_text("utf-8"))


def resolve(part):
    """What the document has here, after following a reference into its components."""
    while "$ref" in part:
        *_, kind, name = part["$ref"].split("/")
        part = DOCUMENT["components"][kind][name]
    return part


def operations():
    for path, item in DOCUMENT["paths"].items():
        shared = item.get("parameters", [])
        for method, operation in item.items():
            if method != "parameters":
                parameters = [resolve(p) for p in shared + operation.get("parameters", [])]
                yield method.upper(), path, operation, parameters


OPERATIONS = {(method, path): operation for method, path, operation, _ in operations()}
ROUTES = {(r.method, re.sub(r"<(\w+):id>", r"{\1}", r.path)): r for r in tracker.ROUTES}


def test_the_document_is_valid_openapi():
    validate(DOCUMENT)


def test_every_route_is_documented_and_every_documented_operation_is_a_route():
    assert OPERATIONS.keys() == ROUTES.keys()


def test_the_documented_path_and_query_parameters_are_those_of_the_route():
    for method, path, _, parameters in operations():
        named = {(parameter["in"], parameter["name"]) for parameter in parameters}
        known = {("query", name) for name in ROUTES[method, path].query}
        known |= {("path", name) for name in re.findall(r"{(\w+)}", path)}
        assert {place for place in named if place[0] != "header"} == known, (method, path)


def test_the_documented_media_types_of_a_body_are_those_that_the_route_takes():
    for key, operation in OPERATIONS.items():
        documented = operation.get("requestBody", {}).get("content", {})
        assert documented.keys() == set(ROUTES[key].takes), key


# ---------------------------------------------------------------- real answers


def conforms(value, schema):
    whole = {**schema, "components": DOCUMENT["components"]}  # what its references point to
    Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)


def documented(method, path, answer):
    """The answer, if it is as the document says: its status, media type, body and headers."""
    segments = unquote(path.partition("?")[0]).split("/")
    template = next(
        candidate
        for candidate in sorted(DOCUMENT["paths"], key=lambda path: path.count("{"))
        if len(parts := candidate.split("/")) == len(segments)
        and all(p == s or p[:1] == "{" for p, s in zip(parts, segments, strict=True))
    )
    if answer.status_code == 405:
        response = DOCUMENT["components"]["responses"]["MethodNotAllowed"]
    else:
        response = resolve(OPERATIONS[method, template]["responses"][str(answer.status_code)])
    for name, header in response.get("headers", {}).items():
        value, header = answer.headers.get(name), resolve(header)
        if value is None:
            assert not header.get("required"), f"{name} is missing"
        else:
            number = header["schema"]["type"] == "integer"
            conforms(int(value) if number else value, header["schema"])
    if "content" not in response:
        assert not answer.body
    else:
        (content,) = response["content"].items()
        assert answer.content_type == content[0]
        conforms(answer.json, content[1]["schema"])
    return answer


@pytest.fixture
def send(app):
    """Sends a request; send("PUT /users/1", {...}) returns an answer that is as documented."""
    api = Api(app)

    def send(line, body=None, media_type="application/json", **headers):
        method, path = line.split(" ")
        more = {} if body is None else {"content_type": media_type}
        if body is not None:
            more["body"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = api.request(path, method=method, status="*", headers=headers, **more)
        return documented(method, path, answer)

    return send


@pytest.fixture
def website(api):
    """Max, Dave and Yaris, the project Website, a ticket of Max that has changed, and its mail."""
    for name in ("Max", "Dave", "Yaris"):
        api.user(name)
    api.project()
    api.ticket(assignees=[1], description="It is\nslow")
    api.change(1, title="Fix it", description=None, status="closed", assignees=[1, 2])
    eventually(lambda: len(api.emails(state="sent")) == 3)


@pytest.mark.usefixtures("website")
def test_reading_answers_as_documented(send):
    for path in ("/users/1", "/projects/1", "/tickets/1", "/emails/1", "/health", "/openapi.json"):
        answer = send(f"GET {path}")
        assert answer.status_code == 200
        assert send(f"GET {path}", If_None_Match=answer.headers["ETag"]).status_code == 304
    for path in ("/users", "/projects", "/tickets", "/tickets/1/history", "/emails"):
        assert send(f"GET {path}").json
    assert "Link" in send("GET /users?limit=2").headers
    assert "Link" in send("GET /emails?limit=1&state=sent&ticket_id=1").headers
    send("GET /tickets?status=open&status=closed&text=IT&project_id=1&assignee_id=1&sort=-updated")


@pytest.mark.usefixtures("website")
def test_writing_answers_as_documented(send):
    assert send("POST /users", {"name": "Ada", "email": "ada@example.com"}).status_code == 201
    assert send("POST /projects", {"name": "Intranet"}).status_code == 201
    new = {"title": "Buy paper", "project_id": 2, "status": "open"}
    assert send("POST /tickets", new).json["assignees"] == []
    for path in ("/users/1", "/projects/1", "/tickets/1"):
        assert send(f"PUT {path}", send(f"GET {path}").json).status_code == 200
    send("PUT /tickets/1/assignees/3")
    send("DELETE /tickets/1/assignees/3")
    send("PATCH /tickets/1", {"project_id": 2}, "application/merge-patch+json")
    assert send("DELETE /users/1").status_code == 204
    assert send("DELETE /projects/1").status_code == 204
    send("GET /tickets/1/history")


def test_mail_that_failed_and_its_retry_are_as_documented(make_app, clock):
    api = Api(make_app(smtp="smtp://127.0.0.1:1"))  # where nobody listens
    api.user()
    api.project()
    api.ticket(assignees=[1])
    eventually(lambda: api.get("/health").json["mail"]["error"])
    with api.app.database.write() as conn:
        conn.execute("UPDATE emails SET attempts = 124")
    clock.advance(days=6)
    eventually(lambda: api.emails(state="failed"))
    for line in ("GET /emails", "GET /emails/1", "GET /health", "POST /emails/1/retry"):
        method, path = line.split(" ")
        documented(method, path, api.request(path, method=method))


TOO_LARGE = {"name": "M" * web.MAX_BODY, "email": "max@example.com"}


@pytest.mark.usefixtures("website")
@pytest.mark.parametrize(
    ("status", "line", "more"),
    [
        (400, "GET /tickets?limit=0&sort=up&after=x&project_id=0&status=done&other=1", {}),
        (400, "GET /users/1?verbose=1", {}),
        (400, "POST /users", {"body": b"{"}),
        (400, "PATCH /tickets/1?dry=1", {"body": {}}),
        (403, "GET /health", {"Host": "elsewhere.example"}),
        (403, "DELETE /users/3", {"Origin": "http://elsewhere.example"}),
        (404, "GET /tickets/9", {}),
        (404, "GET /tickets/9/history", {}),
        (404, "GET /emails/0", {}),
        (404, "DELETE /tickets/1/assignees/3", {}),
        (405, "PATCH /users", {}),
        (405, "DELETE /tickets/1", {}),
        (409, "POST /projects", {"body": {"name": "WEBSITE"}}),
        (409, "PUT /users/1", {"body": {"name": "Max", "email": "Dave@example.com"}}),
        (409, "DELETE /projects/1", {}),
        (412, "PUT /projects/1", {"body": {"name": "Shop"}, "If_Match": '"old"'}),
        (412, "PUT /tickets/1/assignees/3", {"If_Match": '"old"'}),
        (412, "DELETE /users/1", {"If_Match": '"old"'}),
        (413, "POST /users", {"body": TOO_LARGE}),
        (415, "POST /users", {"body": b"name=Max", "media_type": "text/plain"}),
        (422, "POST /users", {"body": {"name": " M ", "email": "M@x", "n~a/m": 1}}),
        (422, "PUT /tickets/1", {"body": {"assignees": [1, 99, "Max"], "project_id": 99}}),
        (422, "PATCH /tickets/1", {"body": {"title": None, "status": "done"}}),
    ],
)
def test_a_refusal_is_as_documented(send, status, line, more):
    assert send(line, **more).status_code == status


@pytest.mark.usefixtures("website")
def test_retrying_a_mail_that_was_sent_is_refused_as_documented(send):
    assert send("POST /emails/1/retry").status_code == 409


@pytest.mark.parametrize(
    ("status", "error"), [(500, RuntimeError()), (503, Unavailable("The disk is full."))]
)
def test_a_defect_and_a_database_out_of_order_are_answered_as_documented(make_app, status, error):
    broken = []

    def clock():
        if broken:
            raise error
        return datetime.now(UTC)

    api = Api(make_app(clock=clock))
    broken.append(True)
    for path in ("/users", "/tickets/1", "/health"):
        assert documented("GET", path, api.get(path, status="*")).status_code == status
