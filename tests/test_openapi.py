"""openapi.json says what the tracker does: the same routes, and answers as it describes them."""

import json
import re
import socket
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from conftest import ROOT, Api, eventually
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate

import db
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


SCHEMAS = DOCUMENT["components"]["schemas"]
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


def test_the_documented_fields_are_those_that_are_taken():
    for schema, rules, read_only in [
        ("NewUser", tracker.USER, set()),
        ("UserInput", tracker.USER, {"id"}),
        ("NewProject", tracker.PROJECT, set()),
        ("ProjectInput", tracker.PROJECT, {"id", "tickets"}),
        ("NewTicket", tracker.TICKET, set()),
        ("TicketInput", tracker.CHANGE, {"id", "created_at", "updated_at"}),
        ("TicketPatch", tracker.CHANGE, {"id", "created_at", "updated_at"}),
    ]:
        assert SCHEMAS[schema]["properties"].keys() == rules.keys() | read_only, schema
        assert SCHEMAS[schema]["additionalProperties"] is False


def test_the_documented_choices_are_those_of_the_code():
    assert SCHEMAS["TicketStatus"]["enum"] == list(db.STATUSES)
    for name, rule in [
        ("TicketStatus", tracker.TICKET["status"]),
        ("TicketSort", tracker.TICKETS["sort"]),
        ("EmailState", tracker.EMAILS["state"]),
    ]:
        choices = ", ".join(SCHEMAS[name]["enum"])
        assert rule("?", lambda detail: detail) == f"must be one of: {choices}"


def parts(value):
    """Each object of the document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            yield from parts(part)


def test_each_example_is_what_its_schema_allows():
    examples = 0
    for part in parts(DOCUMENT):
        for example in part.get("examples", []):
            conforms(example, part)
            examples += 1
        if "example" in part:
            conforms(part["example"], part["schema"])
            examples += 1
    assert examples > 5


def test_generators_find_a_name_for_each_thing():
    identifiers = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(identifiers)) == len(identifiers)
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == {
        tag["name"] for tag in DOCUMENT["tags"]
    }
    for part in parts({k: v for k, v in DOCUMENT.items() if k != "components"}):
        assert "enum" not in part  # but in a schema that has a name
        assert "properties" not in part
    for part in parts(DOCUMENT["components"]["responses"]):
        assert "properties" not in part


@pytest.mark.parametrize(("prefix", "server"), [("", "/"), ("/tracker", "/tracker")])
def test_the_server_of_the_document_is_where_the_tracker_is_mounted(api, prefix, server):
    answer = api.get("/openapi.json", extra_environ={"SCRIPT_NAME": prefix})
    assert [each["url"] for each in answer.json["servers"]] == [server]


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
        assert "Allow" in answer.headers
        response = DOCUMENT["components"]["responses"]["Refused"]
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
        conforms(answer.text if "html" in content[0] else answer.json, content[1]["schema"])
    if answer.status_code >= 400:
        is_whole(answer.json, answer.status_code)
    return answer


def is_whole(problem, status):
    """What generators would not understand in a schema, or make many types of."""
    assert problem["status"] == status
    place = {400: "parameter", 422: "pointer"}.get(status)
    for error in problem.get("errors", []):
        assert error.keys() == {place, "detail"}


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
    things = ("/users/1", "/projects/1", "/tickets/1", "/emails/1", "/health", "/openapi.json", "/")
    for path in things:
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
        (400, "POST /users", {"body": {"name": "Max"}, "Idempotency_Key": ""}),
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


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (413, b"GET /users HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"),
        (431, b"GET /users?%b HTTP/1.1\r\n\r\n" % (b"x" * 70_000)),
        (501, b"GET /users HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"),
    ],
)
def test_what_the_server_refuses_by_itself_is_as_each_operation_says(start, status, request_):
    (refused,) = {json.dumps(each["responses"]["default"]) for each in OPERATIONS.values()}
    with socket.create_connection(("127.0.0.1", start("--quiet").port), timeout=30) as sock:
        sock.sendall(request_)
        head, _, body = sock.makefile("rb").read().partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"Content-Type: application/problem+json" in head
    (content,) = resolve(json.loads(refused))["content"].values()
    conforms(json.loads(body), content["schema"])
    is_whole(json.loads(body), status)
