"""Clients that are generated from openapi.json do all that a person would write by hand.

Each walks through the same: create, read, send back what was read, change, page, catch a problem.
"""

import importlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ROOT

# ---------------------------------------------------------------- openapi-python-client


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The generated package; its operations are api.create_user and so on."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.json").write_text(json.dumps({"post_hooks": []}))  # it needs no formatting
    generate = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    generate += ["--path", ROOT / "openapi.json", "--output-path", folder / "tracker_client"]
    generate += ["--meta", "none", "--config", folder / "config.json"]
    run = subprocess.run(generate, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        load = importlib.import_module
        modules = [
            load(f"tracker_client.api.{path.parent.name}.{path.stem}")
            for path in folder.glob("tracker_client/api/*/[a-z]*.py")
        ]
        api = {module.__name__.rpartition(".")[2]: module.sync_detailed for module in modules}
        yield SimpleNamespace(
            api=SimpleNamespace(**api),
            models=load("tracker_client.models"),
            client=load("tracker_client").Client,
        )


@pytest.fixture
def client(package, start):
    """A client of a running tracker, which has the user Max and the project Website."""
    with package.client(base_url=start("--quiet").url) as client:
        max_ = package.models.NewUser("Max", "max@example.com")
        assert package.api.create_user(client=client, body=max_).status_code == 201
        website = package.models.NewProject("Website")
        assert package.api.create_project(client=client, body=website).parsed.id == 1
        yield client


def new_ticket(package, client, **more):
    fields = {"title": "Fix it", "project_id": 1, "status": package.models.TicketStatus.OPEN} | more
    answer = package.api.create_ticket(client=client, body=package.models.NewTicket(**fields))
    assert answer.status_code == 201
    return answer.parsed


def test_a_python_client_sends_back_the_objects_that_it_read(package, client):
    api, models = package.api, package.models
    new_ticket(package, client, assignees=[1], description="It is slow")
    got = api.get_ticket(1, client=client)
    ticket = got.parsed
    assert (ticket.status, ticket.updated_at) == (models.TicketStatus.OPEN, None)
    sent_back = models.TicketInput(
        ticket.title, ticket.description, ticket.project_id, ticket.status, ticket.assignees
    )
    for body in (sent_back, models.TicketInput.from_dict(ticket.to_dict())):
        assert api.replace_ticket(1, client=client, body=body).parsed == ticket
    user = api.get_user(1, client=client).parsed
    body = models.UserInput.from_dict(user.to_dict())
    assert api.replace_user(1, client=client, body=body).parsed == user
    project = api.get_project(1, client=client).parsed
    body = models.ProjectInput(project.name, project.id, project.tickets)
    assert api.replace_project(1, client=client, body=body).parsed == project
    assert (project.tickets.open_, project.tickets.in_progress) == (1, 0)

    body.name = "Shop"
    outdated = api.replace_project(1, client=client, body=body, if_match='"old"')
    assert (outdated.status_code, outdated.parsed.status) == (412, 412)
    etag = got.headers["ETag"]
    assert api.get_ticket(1, client=client, if_none_match=etag).status_code == 304


def test_a_python_client_tells_null_from_absent_in_a_patch(package, client):
    api, models = package.api, package.models
    new_ticket(package, client, description="It is slow")
    closed = models.TicketPatch(status=models.TicketStatus.CLOSED)
    assert api.patch_ticket(1, client=client, body=closed).parsed.description == "It is slow"
    cleared = models.TicketPatch(description=None, comment="Nobody knows why")
    assert api.patch_ticket(1, client=client, body=cleared).parsed.description is None
    assert api.assign_user(1, 1, client=client).parsed.assignees[0].name == "Max"
    first, second, third = api.list_history(1, client=client).parsed
    assert first.changes.status.from_ == models.TicketStatus.OPEN
    assert (second.changes.description.to, second.comment) == (None, "Nobody knows why")
    assert [user.name for user in third.changes.assignees.to] == ["Max"]


def test_a_python_client_pages_by_the_cursor_in_the_link(package, client):
    api, models = package.api, package.models
    for title in ("First", "Second", "Third"):
        new_ticket(package, client, title=title)
    titles, page = [], {}
    while True:
        answer = api.list_tickets(
            client=client,
            project_id=1,
            assignee_id="none",
            status=[models.TicketStatus.OPEN, models.TicketStatus.CLOSED],
            sort=models.TicketSort.CREATED,
            limit=2,
            **page,
        )
        titles.append([ticket.title for ticket in answer.parsed])
        if "Link" not in answer.headers:
            break
        url = answer.headers["Link"].partition(">")[0]
        page = {"after": parse_qs(urlsplit(url).query)["after"][0]}
    assert titles == [["First", "Second"], ["Third"]]


def test_a_python_client_catches_a_problem_with_its_type(package, client):
    api, models = package.api, package.models
    invalid = api.create_user(client=client, body=models.NewUser("M", "max"))
    assert isinstance(invalid.parsed, models.Problem)
    assert [error.pointer for error in invalid.parsed.errors] == ["#/name", "#/email"]
    taken = api.create_user(client=client, body=models.NewUser("Max", "MAX@example.com"))
    assert (taken.status_code, taken.parsed.title) == (409, "Conflict")
    new_ticket(package, client)
    has_tickets = api.delete_project(1, client=client)
    assert has_tickets.parsed.tickets == models.TicketCounts(open_=1, in_progress=0, closed=0)
    assert api.get_ticket(9, client=client).parsed.detail == "There is no ticket 9."
    bad = api.list_tickets(client=client, limit=0)
    assert [error.parameter for error in bad.parsed.errors] == ["limit"]
    assert api.delete_user(1, client=client).status_code == 204


def test_a_python_client_that_lost_an_answer_asks_again(package, client):
    for title, status in (("Fix it", 201), ("Fix it", 201), ("Fix that", 422)):
        body = package.models.NewTicket(title, 1, package.models.TicketStatus.OPEN)
        answer = package.api.create_ticket(client=client, body=body, idempotency_key="lost")
        assert answer.status_code == status
    assert len(package.api.list_tickets(client=client).parsed) == 1


# ---------------------------------------------------------------- openapi-typescript

WALK = """
import createClient from "openapi-fetch";
import type { components, paths } from "./api";

type Problem = components["schemas"]["Problem"];
type Ticket = components["schemas"]["Ticket"];
declare const process: { argv: string[] };
const client = createClient<paths>({ baseUrl: process.argv[2] });

function check(holds: boolean): asserts holds {
  if (!holds) throw new Error("it does not hold");
}

await client.POST("/users", { body: { name: "Max", email: "max@example.com" } });
await client.POST("/projects", { body: { name: "Website" } });
const created = await client.POST("/tickets", {
  body: {
    title: "Fix it", description: "It is slow", project_id: 1, status: "open", assignees: [1],
  },
  params: { header: { "Idempotency-Key": "lost" } },
});
check(created.response.headers.get("Location") === "/tickets/1");

// Send back what was read.
const path = { ticket_id: 1 };
const read = await client.GET("/tickets/{ticket_id}", { params: { path } });
check(read.data !== undefined);
const ticket: Ticket = read.data;
const header = { "If-Match": read.response.headers.get("ETag") ?? "" };
const same = await client.PUT("/tickets/{ticket_id}", { params: { path, header }, body: ticket });
check(same.data?.updated_at === null && same.data.assignees[0].name === "Max");

// null clears, absent stays.
const patch = (body: components["schemas"]["TicketPatch"]) =>
  client.PATCH("/tickets/{ticket_id}", { params: { path }, body });
const closed = await patch({ status: "closed" });
check(closed.data?.description === "It is slow");
const cleared = await patch({ description: null });
check(cleared.data?.description === null);
const history = await client.GET("/tickets/{ticket_id}/history", { params: { path } });
check(history.data?.[0].changes.status?.to === "closed");

// Page by page.
await client.POST("/tickets", { body: { title: "Second", project_id: 1, status: "open" } });
const titles: string[] = [];
let after: string | undefined;
do {
  const { data, response } = await client.GET("/tickets", {
    params: { query: { status: ["open", "closed"], sort: "created", limit: 1, after } },
  });
  titles.push(...(data ?? []).map((each) => each.title));
  after = response.headers.get("Link")?.match(/[?&]after=([^&>]+)/)?.[1];
} while (after !== undefined);
check(titles.join() === "Fix it,Second");

// Catch a problem.
const invalid = await client.POST("/users", { body: { name: "M", email: "max" } });
const problem: Problem | undefined = invalid.error;
check(problem?.status === 422 && problem.errors?.[1].pointer === "#/email");
const kept = await client.DELETE("/projects/{project_id}", { params: { path: { project_id: 1 } } });
check(kept.error?.tickets?.closed === 1);
const missing = await client.GET("/users/{user_id}", { params: { path: { user_id: 9 } } });
check(missing.error?.detail === "There is no user 9.");

// @ts-expect-error There is no such status.
const unknown: Ticket["status"] = "done";
// @ts-expect-error A POST needs an email.
const incomplete: components["schemas"]["NewUser"] = { name: "Max" };
"""


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed (apt-get install npm)")
def test_a_typescript_client_compiles_and_walks_through_all_of_it(start, tmp_path):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "walk.ts").write_text(WALK)
    tools = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")
    quietly = ("--prefer-offline", "--no-audit", "--no-fund")
    patience = ("--fetch-retries=0", "--fetch-timeout=20000")
    if (install := run("npm", "install", *quietly, *patience, *tools)).returncode:
        pytest.skip(f"npm cannot install the compiler: {install.stderr[:200]}")
    for command in (
        ["openapi-typescript", ROOT / "openapi.json", "-o", "api.d.ts"],
        ["tsc", "--strict", "--target", "es2022", "--module", "es2022"]
        + ["--moduleResolution", "bundler", "walk.ts"],
    ):
        done = run(tmp_path / "node_modules/.bin" / command[0], *command[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    walked = run("node", "walk.js", start("--quiet").url)
    assert walked.returncode == 0, walked.stderr
