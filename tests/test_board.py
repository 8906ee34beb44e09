"""The page for people, in a real browser: what they see, do and are told.

What a browser complains of (an error of the script, a breach of the Content-Security-Policy, a
request to somewhere else) fails a test.
"""

import json
import re
import shutil
import sqlite3
import threading
import urllib.request
from contextlib import closing
from datetime import datetime
from itertools import takewhile
from types import SimpleNamespace
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import DAVE, MAX, ROOT, eventually
from playwright.sync_api import expect, sync_playwright
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server
from wire import free_port

import db

STATUSES = ("open", "in progress", "closed")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
HOSTILE = {
    "markup": "<img src=x onerror=document.title='stolen'>",
    "right to left": "أصلح قاعدة البيانات قبل الإطلاق من فضلك",
    "emoji": "🧑‍🚀 to the moon 🎉",
    "200 letters": "W" * 200,
}
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")  # not for the session: its event loop is in the way of other tests
def browser():
    program = shutil.which("chromium")
    if not program:
        pytest.skip("there is no browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page in a browser of its own: visit(url, **settings of the context)."""
    contexts, complaints = [], []

    def complain(message):
        # A refused request is told as an error as well, and is often what the test is about.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def open_page(url, **settings):
        contexts.append(browser.new_context(**{"locale": "en-GB", **settings}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        origins = {urlsplit(url)[:2] for page in context.pages for url in page.asked}
        assert len(origins) <= 1
        context.close()
    assert complaints == []


class Client:
    """Somebody who works with the API meanwhile."""

    def __init__(self, url):
        self.url = url

    def ask(self, method, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def cast(self):
        """Max and Dave, and their project."""
        for name in ("Max", "Dave"):
            self.ask("POST", "/users", {"name": name, "email": f"{name.lower()}@example.com"})
        self.ask("POST", "/projects", {"name": "Website"})

    def ticket(self, title="Fix the database", status="open", assignees=(), **more):
        body = {"title": title, "project_id": 1, "status": status, "assignees": [*assignees]}
        return self.ask("POST", "/tickets", body | more)

    def change(self, ticket_id, **fields):
        return self.ask("PATCH", f"/tickets/{ticket_id}", fields)

    def tickets(self):
        return self.ask("GET", "/tickets?sort=created")


@pytest.fixture
def client(start, mail_server):
    """A client of a tracker with the cast, that sends its mail to mail_server."""
    client = Client(start("--quiet", "--smtp", mail_server.url).url)
    client.cast()
    return client


def card(page, title):
    return page.locator(".card", has_text=title)


def column(page, status):
    return page.locator(f".column[data-status='{status}']")


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def field(page, label):
    return page.get_by_label(label, exact=True)


def titles(page, status):
    return column(page, status).locator(".card a").all_text_contents()


# ---------------------------------------------------------------- what the server says


def test_the_page_comes_with_an_etag_and_the_headers_that_keep_it_safe(api):
    answer = api.get("/", status=200)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert len(re.findall(r"(?:script|style)-src 'sha256-[\w+/]{43}=';", policy)) == 2
    assert api.head("/").headers == answer.headers
    again = api.get("/", headers={"If-None-Match": answer.headers["ETag"]}, status=304)
    assert again.body == b""


def test_the_page_is_small_and_needs_nothing_from_elsewhere():
    page = (ROOT / "board.html").read_text("utf-8")
    assert len(page.encode()) < 40_000
    links = re.findall(r"https?://[^'\" ]+", page)
    assert set(links) == {"http://www.w3.org/2000/svg"}  # a name, which nothing asks for
    assert " style=" not in page


# ---------------------------------------------------------------- the board


def test_a_first_visit_says_how_to_begin_and_leads_to_the_first_ticket(visit, start):
    page = visit(start("--quiet").url)
    page.get_by_role("link", name="a project").click()
    button(page, "New project").click()
    field(page, "Name").fill("Website")
    button(page, "Save").click()
    page.get_by_role("link", name="People").click()
    button(page, "New person").click()
    field(page, "Name").fill("Yaris")
    field(page, "Email").fill("yaris@example.com")
    field(page, "Email").press("Enter")
    expect(page.locator(".item")).to_contain_text("yaris@example.com")
    page.get_by_role("link", name="New ticket").click()
    field(page, "Title").fill("Fix the database")
    field(page, "Assignees").fill("yar")
    field(page, "Assignees").press("Enter")
    expect(button(page, "Remove Yaris")).to_be_visible()
    button(page, "Save").click()
    expect(page.get_by_role("heading", name="Ticket #1")).to_be_visible()
    page.get_by_role("link", name="Board").click()
    expect(column(page, "open").locator(".count")).to_have_text("1")
    expect(card(page, "Fix the database").get_by_title("Yaris")).to_have_text("Y")


def test_a_double_click_creates_one_ticket(visit, client):
    page = visit(client.url + "/#/tickets/new")
    field(page, "Title").fill("Fix the database")
    button(page, "Save").dblclick()
    expect(page.get_by_role("heading", name="Ticket #1")).to_be_visible()
    assert len(client.tickets()) == 1


def test_a_card_is_moved_by_the_mouse_and_others_see_it_without_a_reload(visit, client):
    client.ticket("Fix the database")
    client.ticket("Write the manual", "closed")
    max_, dave = visit(client.url), visit(client.url)
    expect(card(dave, "Fix the database")).to_be_visible()
    card(max_, "Fix the database").drag_to(column(max_, "closed"))
    for page in (max_, dave):
        expect(column(page, "closed").locator(".card")).to_have_count(2)
        expect(column(page, "closed").locator(".count")).to_have_text("2")
        expect(column(page, "open").locator(".count")).to_have_text("0")
    assert client.tickets()[0]["status"] == "closed"


def test_a_card_is_moved_by_keys_and_keeps_the_focus(visit, client):
    for title in ("Write the manual", "Fix the database"):
        client.ticket(title)
    page = visit(client.url)
    link = card(page, "Fix the database").locator("a")
    link.focus()
    page.keyboard.press("ArrowDown")
    expect(card(page, "Write the manual").locator("a")).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    expect(column(page, "in progress").locator(".card")).to_have_count(1)
    expect(page.locator("#said")).to_have_text("Ticket #2: In progress.")
    expect(link).to_be_focused()
    eventually(lambda: client.tickets()[1]["status"] == "in progress")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Ticket #2")).to_be_focused()


def test_on_a_phone_a_menu_moves_the_card_and_a_heading_shows_its_column(visit, client):
    client.ticket("Fix the database")
    page = visit(client.url, **PHONE)
    button(page, "Move ticket 1").tap()
    page.locator("#menu").get_by_role("button", name="Closed").tap()
    expect(card(page, "Fix the database")).to_be_hidden()
    column(page, "closed").locator("label").tap()
    expect(card(page, "Fix the database")).to_be_visible()
    eventually(lambda: client.tickets()[0]["status"] == "closed")


def test_a_move_that_is_refused_is_taken_back_and_the_reason_told(visit, client):
    client.ticket("Fix the database")
    page = visit(client.url)
    reason = {"title": "Service Unavailable", "status": 503, "detail": "The disk is full."}
    kind = "application/problem+json"
    page.route(
        "**/tickets/1",
        lambda route: route.fulfill(status=503, body=json.dumps(reason), content_type=kind),
    )
    card(page, "Fix the database").drag_to(column(page, "closed"))
    expect(page.locator("#said")).to_have_text("Ticket #1 was not moved. The disk is full.")
    assert titles(page, "open") == ["Fix the database"]


def test_filters_stand_in_the_address_and_back_undoes_them(visit, client):
    client.ask("POST", "/projects", {"name": "Shop"})
    client.ticket("Fix the database", assignees=[1])
    client.ticket("Fix the shop", project_id=2)
    client.ticket("Write the manual", "closed")
    page = visit(client.url)
    field(page, "Project").select_option("Website")
    expect(page.locator(".card")).to_have_count(2)
    field(page, "Assignee").select_option("Nobody")
    expect(page.locator(".card")).to_have_text([re.compile("Write the manual")])
    field(page, "Assignee").select_option("Max")
    expect(page.locator(".card")).to_have_text([re.compile("Fix the database")])
    field(page, "Assignee").select_option("Anybody")
    expect(page.locator(".card")).to_have_count(2)
    field(page, "Text").press_sequentially("MANUAL")
    expect(page.locator(".card")).to_have_text([re.compile("Write the manual")])
    assert page.url.endswith("/#/?project_id=1&text=MANUAL")
    shared = visit(page.url)
    expect(shared.locator(".card")).to_have_text([re.compile("Write the manual")])
    expect(field(shared, "Text")).to_have_value("MANUAL")
    page.go_back()
    expect(page.locator(".card")).to_have_count(2)
    expect(field(page, "Text")).to_have_value("")
    page.go_back()
    expect(field(page, "Assignee")).to_have_value("1")
    expect(page.locator(".card")).to_have_text([re.compile("Fix the database")])


def test_what_no_longer_matches_the_filter_leaves_the_board(visit, client):
    client.ticket("Fix the database")
    client.ticket("Write the manual")
    page = visit(client.url + "/#/?assignee_id=none")
    expect(page.locator(".card")).to_have_count(2)
    client.change(1, assignees=[1])
    expect(page.locator(".card")).to_have_text([re.compile("Write the manual")])


def test_what_others_do_appears_and_leaves_alone_what_one_reads_and_types(visit, client):
    for number in range(30):
        client.ticket(f"Ticket no. {number}")
    page = visit(client.url)
    last = card(page, "Ticket no. 0")
    last.hover()
    page.evaluate("document.querySelectorAll('.card').forEach(card => { card.untouched = true; })")
    place = last.bounding_box()
    client.ticket("Ticket no. 30")
    expect(card(page, "Ticket no. 30")).to_have_count(1)
    assert last.bounding_box() == place
    assert (
        page.locator(".card").evaluate_all("cards => cards.filter(c => c.untouched).length") == 30
    )
    client.change(1, title="A better title")
    expect(card(page, "A better title")).to_have_count(1)
    assert titles(page, "open")[-1] == "A better title"
    page.goto(client.url + "/#/tickets/1")
    field(page, "Comment on the change").fill("I am still wri")
    client.change(1, title="The best title")
    expect(field(page, "Title")).to_have_value("The best title")
    expect(field(page, "Comment on the change")).to_have_value("I am still wri")
    expect(field(page, "Comment on the change")).to_be_focused()


def test_ten_thousand_tickets_are_there_after_four_requests_and_more_come_by_scrolling(
    visit, start, database
):
    base = db.open_database(database)
    with base.write() as conn:
        db.create_project(conn, {"name": "Website"})
        for number in range(10_000):
            fields = {"title": f"No. {number}", "description": None, "project_id": 1}
            fields |= {"status": STATUSES[number % 3], "assignees": []}
            db.create_ticket(conn, fields)
    base.close()
    page = visit(start("--quiet").url)
    expect(card(page, "No. 9999")).to_be_visible()
    expect(column(page, "open").locator(".count")).to_have_text("3334")
    # Then the page begins to look what others do, with a request for what was touched last.
    first_view = list(takewhile(lambda url: not url.endswith("&limit=1"), page.asked))
    assert len(first_view) <= 4, first_view
    shown = column(page, "open").locator(".card")
    for more in (100, 200, 300):
        shown.last.scroll_into_view_if_needed()
        eventually(lambda more=more: shown.count() >= more)
    seen = titles(page, "open")
    assert seen == [f"No. {number}" for number in range(9999, 0, -3)][: len(seen)]


# ---------------------------------------------------------------- a ticket


def test_a_change_with_its_comment_is_saved_and_told_as_history_and_mail(
    visit, client, mail_server
):
    client.ticket(assignees=[1])
    page = visit(client.url + "/#/tickets/1")
    field(page, "Title").fill("Fix the database now")
    field(page, "Description").fill("Line 1\nLine 2")
    field(page, "Status").select_option("In progress")
    field(page, "Assignees").fill("Dave <dave@example.com>")
    field(page, "Comment on the change").fill("It happens only under load.")
    button(page, "Save").click()
    story = page.locator(".story")
    for told in ("Fix the database → Fix the database now", "Status: Open → In progress"):
        expect(story).to_contain_text(told)
    expect(story).to_contain_text("added Dave")
    expect(story).to_contain_text("It happens only under load.")
    expect(field(page, "Comment on the change")).to_have_value("")
    expect(page.locator(".mails [data-status=sent]")).to_have_count(3)
    assert client.tickets()[0]["description"] == "Line 1\nLine 2"
    assert len(client.ask("GET", "/tickets/1/history")) == 1
    assert "only under load" in mail_server.to(DAVE)[0].get_content()


@pytest.mark.parametrize("choice", ["Save mine", "Take theirs"])
def test_who_was_slower_sees_both_versions_and_chooses(visit, client, choice):
    client.ticket(assignees=[1])
    max_, dave = (visit(client.url + "/#/tickets/1") for _ in range(2))
    field(max_, "Title").fill("The version of Max")
    field(max_, "Comment on the change").fill("As I said")
    field(dave, "Title").fill("The version of Dave")
    field(dave, "Status").select_option("Closed")
    button(dave, "Save").click()
    expect(dave.locator("#said")).to_have_text("Saved.")
    expect(max_.locator(".meanwhile")).to_contain_text("Somebody else changed it.")
    button(max_, "Save").click()
    dialog = max_.get_by_role("dialog")
    for version in ("The version of Max", "The version of Dave", "Closed", "not changed by you"):
        expect(dialog).to_contain_text(version)
    button(max_, choice).click()
    expect(dialog).to_be_hidden()
    if choice == "Save mine":
        expect(max_.locator(".story")).to_contain_text("The version of Dave → The version of Max")
        assert client.tickets()[0]["title"] == "The version of Max"
    else:
        expect(field(max_, "Title")).to_have_value("The version of Dave")
        expect(field(max_, "Comment on the change")).to_have_value("As I said")
    assert client.tickets()[0]["status"] == "closed"
    assert len(client.ask("GET", "/tickets/1/history")) == 1 + (choice == "Save mine")


def test_what_is_wrong_is_told_at_its_field(visit, client):
    client.ticket()
    page = visit(client.url + "/#/tickets/1")
    field(page, "Title").fill("x" * 201)
    button(page, "Save").click()
    expect(field(page, "Title")).to_have_accessible_description(
        "Title must have at most 200 characters."
    )
    expect(field(page, "Title")).to_be_focused()
    field(page, "Title").fill("Fix it")
    field(page, "Assignees").fill("Nobody of that name")
    button(page, "Save").click()
    expect(page.get_by_text("must be one of the people offered")).to_be_visible()
    field(page, "Assignees").fill("")
    button(page, "Save").click()
    expect(page.locator("#said")).to_have_text("Saved.")
    expect(page.locator(".refused")).to_have_count(0)
    page.goto(client.url + "/#/users")
    button(page, "New person").click()
    field(page, "Name").fill("Yo")
    field(page, "Email").fill("nowhere")
    button(page, "Save").click()
    expect(page.get_by_text("Name must have at least 3 characters.")).to_be_visible()
    expect(page.get_by_text("Email is not a valid email address.")).to_be_visible()


def test_what_was_typed_is_there_again_after_a_look_at_the_board(visit, client):
    client.ticket()
    page = visit(client.url + "/#/tickets/1")
    field(page, "Title").fill("Half a tit")
    page.get_by_role("link", name="Board").click()
    card(page, "Fix the database").click()
    expect(field(page, "Title")).to_have_value("Half a tit")
    button(page, "Discard changes").click()
    expect(field(page, "Title")).to_have_value("Fix the database")


def test_mail_that_failed_is_marked_explained_and_sent_again(visit, client, mail_server):
    mail_server.replies[MAX] = "550 5.1.1 no such mailbox"
    client.ticket(assignees=[1])
    page = visit(client.url)
    bar = page.get_by_role("complementary", name="Mail trouble")
    expect(bar).to_contain_text("1 failed, 0 waiting. The mail server says: 550 5.1.1 no such")
    expect(card(page, "Fix the database")).to_contain_text("Mail failed")
    card(page, "Fix the database").click()
    expect(page.locator(".mails")).to_contain_text("550 5.1.1 no such mailbox")
    field(page, "Title").fill("Half a tit")
    mail_server.replies.clear()
    button(page, "Send again").click()
    expect(page.locator(".mails [data-status=sent]")).to_have_count(1)
    expect(bar).to_be_hidden()
    assert len(mail_server.to(MAX)) == 1
    expect(field(page, "Title")).to_have_value("Half a tit")
    page.get_by_role("link", name="Board").click()
    expect(page.get_by_text("Mail failed")).to_have_count(0)


def test_one_button_sends_all_mail_again_that_failed_or_waits(visit, client, mail_server):
    mail_server.replies |= {MAX: "550 no such mailbox", DAVE: "450 later"}
    client.ticket(assignees=[1, 2])
    page = visit(client.url + "/#/users")
    bar = page.get_by_role("complementary", name="Mail trouble")
    expect(bar).to_contain_text("1 failed, 1 waiting")
    mail_server.replies.clear()
    button(page, "Send all again").click()
    expect(bar).to_be_hidden()
    eventually(lambda: mail_server.to(MAX) and mail_server.to(DAVE))


# ---------------------------------------------------------------- people and projects


def test_people_and_projects_are_renamed_and_deleted(visit, client):
    client.ticket(assignees=[1])
    page = visit(client.url + "/#/users")
    button(page, "Edit Max").click()
    expect(field(page, "Email")).to_have_value(MAX)
    field(page, "Name").fill("Maximilian")
    button(page, "Save").click()
    button(page, "Delete Dave").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".item")).to_have_text([re.compile("Maximilian")])
    page.get_by_role("link", name="Projects").click()
    expect(page.locator(".item")).to_contain_text("1 open, 0 in progress, 0 closed")
    button(page, "Delete Website").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog).to_contain_text(
        "The project still has tickets: 1 open, 0 in progress, 0 closed."
    )
    page.keyboard.press("Escape")
    expect(button(page, "Delete Website")).to_be_focused()
    client.ask("POST", "/projects", {"name": "Shop"})  # by somebody else
    expect(button(page, "Edit Shop")).to_be_visible()
    assert [user["name"] for user in client.ask("GET", "/users")] == ["Maximilian"]


# ---------------------------------------------------------------- for everybody, everywhere


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_view(visit, client, mail_server, scheme):
    mail_server.replies[MAX] = "550 no such mailbox"
    for title in HOSTILE.values():
        client.ticket(title, assignees=[1, 2])
    client.change(1, description="More", status="closed", comment="Why", assignees=[2])
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    page = visit(client.url, color_scheme=scheme)

    def examine(view, wait_for):
        expect(wait_for.first).to_be_visible()
        found = Axe().run(page, options=options).response["violations"]
        return [(view, rule["id"], node["html"]) for rule in found for node in rule["nodes"]]

    wrong = examine("board", page.locator("#mail"))
    page.set_viewport_size({"width": 320, "height": 640})
    wrong += examine("board on a phone", page.locator("#mail"))
    button(page, "Move ticket 4").click()
    wrong += examine("menu", page.locator("#menu"))
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(client.url + "/#/tickets/1")
    wrong += examine("ticket", page.locator(".mails [data-status]"))
    field(page, "Title").fill("")
    button(page, "Save").click()
    wrong += examine("refused", page.locator(".refused"))
    field(page, "Title").fill("Mine")
    client.change(1, title="Theirs")
    button(page, "Save").click()
    wrong += examine("conflict", button(page, "Save mine"))
    button(page, "Take theirs").click()
    for view, wait_for in {
        "tickets/new": field(page, "Title"),
        "users": page.locator(".item"),
        "projects": page.locator(".item"),
        "tickets/99": page.get_by_role("heading", name="There is no ticket 99."),
    }.items():
        page.goto(f"{client.url}/#/{view}")
        wrong += examine(view, wait_for)
    page.goto(client.url + "/#/projects")
    button(page, "New project").click()
    wrong += examine("dialog", field(page, "Name"))
    assert wrong == []


def test_hostile_titles_are_text_and_nothing_scrolls_sideways(visit, client):
    for title in HOSTILE.values():
        client.ticket(title)
    client.ask("POST", "/projects", {"name": "P" * 100})
    client.ask("POST", "/users", {"name": "U" * 100, "email": f"{'e' * 60}@{'d' * 60}.example"})
    client.change(4, project_id=2, assignees=[3], description="D" * 500, comment="C" * 500)
    page = visit(client.url, **PHONE)
    expect(page.locator(".card")).to_have_count(4)
    assert sorted(titles(page, "open")) == sorted(HOSTILE.values())
    assert page.title() == "Board – Tickets"
    arabic = card(page, HOSTILE["right to left"]).locator("a")
    assert arabic.evaluate("node => getComputedStyle(node).direction") == "rtl"
    for view in ("", "tickets/4", "tickets/new", "users", "projects"):
        page.goto(f"{client.url}/#/{view}")
        expect(
            page.locator(".card, form.split, .item").locator("visible=true").first
        ).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320, view


def test_times_are_in_the_language_and_zone_of_the_reader(visit, client):
    created_at = datetime.fromisoformat(client.ticket()["created_at"])
    page = visit(client.url, locale="de-DE", timezone_id="Asia/Tokyo")
    time = card(page, "Fix the database").locator("time")
    expect(time).to_have_text(re.compile("jetzt|vor [0-9]+ Sekunden?"))
    expect(time).to_have_attribute("lang", "de-DE")
    there = created_at.astimezone(ZoneInfo("Asia/Tokyo"))
    expect(time).to_have_attribute("title", f"{there:%-d.%-m.%Y, %H:%M:%S}")


def test_a_tab_in_the_background_asks_nothing(visit, client):
    client.ticket("Fix the database")
    page = visit(client.url)
    expect(card(page, "Fix the database")).to_be_visible()
    hide = """hidden => {
        Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.clock.install()
    page.reload()
    expect(card(page, "Fix the database")).to_be_visible()
    page.evaluate(hide, True)
    page.clock.run_for(3000)  # what was under way comes to its end
    page.wait_for_load_state("networkidle")
    before = len(page.asked)
    client.ticket("Write the manual")
    page.clock.run_for(60_000)
    page.evaluate("fetch('health')")  # what was asked before is told before
    assert [urlsplit(url).path for url in page.asked[before:]] == ["/health"]
    page.evaluate(hide, False)
    expect(card(page, "Write the manual")).to_be_visible()


def test_a_server_that_is_away_is_told_and_what_was_typed_is_saved_when_it_is_back(visit, start):
    server = start("--quiet", port=free_port())
    client = Client(server.url)
    client.cast()
    client.ticket()
    page = visit(server.url + "/#/tickets/1")
    field(page, "Title").fill("Fix the database now")
    server.kill()
    away = page.locator("#away")
    expect(away).to_be_visible()
    button(page, "Save").click()
    expect(page.locator("form .refused")).to_contain_text("cannot be reached")
    expect(field(page, "Title")).to_have_value("Fix the database now")
    start("--quiet", port=server.port)
    expect(away).to_be_hidden()
    button(page, "Save").click()
    expect(page.locator("#said")).to_have_text("Saved.")
    assert client.tickets()[0]["title"] == "Fix the database now"


def test_a_page_that_was_opened_while_the_server_was_away_comes_when_it_is_back(visit, client):
    client.ticket()
    page = visit(client.url)
    expect(card(page, "Fix the database")).to_be_visible()
    page.route("**/tickets*", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("heading", name="cannot be reached")).to_be_visible()
    page.unroute("**/tickets*")
    expect(card(page, "Fix the database")).to_be_visible()


def test_an_answer_that_was_lost_makes_no_second_ticket(visit, client):
    page = visit(client.url + "/#/tickets/new")
    field(page, "Title").fill("Fix the database")

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/tickets", lose, times=1)
    button(page, "Save").click()
    expect(page.locator("form .refused")).to_contain_text("cannot be reached")
    button(page, "Save").click()
    expect(page.get_by_role("heading", name="Ticket #1")).to_be_visible()
    assert len(client.tickets()) == 1


@pytest.fixture
def mounted(app):
    """Serves the app below /tools/tracker, and behind a prefix that only a proxy knows."""

    def stripped(environ, start_response):
        path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        bare = {"SCRIPT_NAME": "", "PATH_INFO": path.removeprefix("/hidden")}
        return app(environ | bare, start_response)

    def not_found(environ, start_response):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there is nothing here"]

    host = DispatcherMiddleware(not_found, {"/tools/tracker": app, "/hidden": stripped})
    server = make_server("127.0.0.1", 0, host, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("prefix", ["/tools/tracker", "/tools/tracker/", "/hidden/"])
def test_it_works_below_any_prefix(visit, mounted, api, prefix):
    api.user(), api.project()
    for number in range(150):
        api.ticket(title=f"No. {number}")
    page = visit(mounted.url + prefix)
    shown = column(page, "open").locator(".card")
    eventually(lambda: shown.count() >= 100)
    shown.last.scroll_into_view_if_needed()
    expect(shown).to_have_count(150)  # along the Link
    card(page, "No. 149").drag_to(column(page, "closed"))
    eventually(lambda: api.get("/tickets/150").json["status"] == "closed")
    page.get_by_role("link", name="New ticket").click()
    field(page, "Title").fill("Fix the database")
    button(page, "Save").click()
    expect(page.get_by_role("heading", name="Ticket #151")).to_be_visible()
    assert page.url == f"{mounted.url}{prefix}#/tickets/151"


def test_line_ends_of_another_system_are_no_change_of_ones_own(visit, client):
    client.ticket(description="one\r\ntwo")
    page = visit(client.url + "/#/tickets/1")
    expect(page.locator(".story li")).to_have_count(1)
    expect(button(page, "Discard changes")).to_be_hidden()
    client.change(1, title="A better title")
    expect(field(page, "Title")).to_have_value("A better title")


def test_more_changes_at_once_than_are_looked_at_leave_nothing_stale(visit, client):
    for number in range(130):
        client.ticket(f"No. {number}")
    page = visit(client.url)
    shown = column(page, "open").locator(".card")
    eventually(lambda: shown.count() >= 100)
    shown.last.scroll_into_view_if_needed()
    expect(shown).to_have_count(130)
    page.context.set_offline(True)
    for number in range(130):
        client.change(number + 1, status="closed")
    page.context.set_offline(False)
    expect(column(page, "closed").locator(".card").first).to_be_visible()
    expect(shown).to_have_count(0)


def test_a_tracker_that_cannot_write_still_shows_the_board_and_says_why(visit, client):
    client.ticket()
    page = visit("about:blank")
    problem = {"title": "Service Unavailable", "status": 503, "detail": "The disk is full."}
    page.route("**/health", lambda route: route.fulfill(status=503, json=problem))
    page.goto(client.url)
    expect(card(page, "Fix the database")).to_be_visible()
    expect(page.locator("#said")).to_have_text("The disk is full.")
    client.ticket("Write the manual")
    expect(card(page, "Write the manual")).to_be_visible()


def test_a_card_that_one_moved_gives_its_place_to_what_is_moved_later(visit, client):
    client.ticket("Fix the database")
    client.ticket("Write the manual")
    page = visit(client.url)
    card(page, "Fix the database").drag_to(column(page, "closed"))
    expect(page.locator("#said")).to_have_text("Ticket #1: Closed.")
    client.change(2, status="closed")
    expect(column(page, "closed").locator(".card")).to_have_count(2)
    assert titles(page, "closed") == ["Write the manual", "Fix the database"]


def test_a_draft_that_one_comes_back_to_tells_what_others_did_meanwhile(visit, client):
    client.ticket()
    page = visit(client.url + "/#/tickets/1")
    field(page, "Title").fill("My title")
    page.get_by_role("link", name="Board").click()
    expect(card(page, "Fix the database")).to_be_visible()
    client.change(1, title="Another title")
    expect(card(page, "Another title")).to_be_visible()
    card(page, "Another title").get_by_role("link").click()
    expect(field(page, "Title")).to_have_value("My title")
    expect(page.locator(".meanwhile")).to_contain_text("Somebody else changed it")


def test_a_ticket_of_a_clock_that_was_wrong_hides_no_news_of_others(visit, client, database):
    client.ticket("Fix the database")
    client.ticket("Write the manual")
    with closing(sqlite3.connect(database)) as conn, conn:
        conn.execute("UPDATE tickets SET updated_at = '2099-01-01T00:00:00.000Z' WHERE id = 1")
    page = visit(client.url)
    for _ in range(2):  # the first finds all new
        with page.expect_response(lambda answer: answer.url.endswith("sort=-updated&limit=1")):
            pass
    for id, title in ((2, "Translate the manual"), (1, "Mend the database")):
        client.change(id, title=title)
        expect(card(page, title)).to_be_visible()


@pytest.mark.parametrize("id", ["..", "1.5", "x"])
def test_an_address_of_no_ticket_asks_for_none(visit, client, id):
    page = visit(f"{client.url}/#/tickets/{id}")
    expect(page.locator("#board")).to_be_visible()
    expect(page.locator("#away")).to_be_hidden()
    assert not any("/tickets/" in urlsplit(url).path for url in page.asked)
