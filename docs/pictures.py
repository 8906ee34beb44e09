"""Takes the pictures of the README: python docs/pictures.py, with the tracker's dev environment.

It starts a tracker on a database of its own, with the work of a small team in it, and has a
headless Chromium visit it. Nothing is left behind but board.png and ticket.png beside this file.
"""

import shutil
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

from playwright.sync_api import sync_playwright
from webtest import TestApp

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tracker  # noqa: E402

PEOPLE = ["Max Weber", "Dave Okafor", "Yaris Demir", "Zoë Lindqvist", "Omar Haddad"]
PROJECTS = ["Website", "Shop", "Warehouse"]
# Days ago, project, status, assignees, title; the oldest first.
WORK = [
    (41, 1, "closed", [2], "Redirect the old help pages"),
    (38, 3, "closed", [4, 5], "Label printer stops after 200 labels"),
    (30, 2, "closed", [1], "VAT for deliveries to Norway"),
    (26, 1, "closed", [], "Remove the cookie banner we no longer need"),
    (24, 2, "open", [], "Let customers save a second address"),
    (19, 1, "closed", [3, 1], "Search finds nothing with an umlaut"),
    (17, 3, "open", [5], "Count stock in the cold room every night"),
    (15, 2, "in progress", [2, 4], "Invoice total is a cent off with three discounts"),
    (12, 1, "open", [1], "ترجمة صفحة الاتصال إلى العربية"),
    (9, 3, "in progress", [4], "Scanner loses its connection between aisles 4 and 5"),
    (8, 2, "closed", [3], "Send the receipt again on request"),
    (6, 1, "in progress", [1, 3], "Login is slow on mobile networks"),
    (4, 2, "open", [2, 5, 3], "Checkout fails when the cart is older than a day"),
    (3, 1, "open", [3], "Write the release notes for spring 🌱"),
    (1, 2, "open", [1], "Refunds appear twice in the monthly report"),
    (0.4, 1, "in progress", [1], "Fix the database"),
]


class Clock:
    now = datetime.now(UTC)

    def __call__(self):
        return self.now


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


def fill(api, clock):
    """The people, their projects and their work; the last ticket has a story."""
    for name in PEOPLE:
        email = f"{name.split()[0].lower().replace('ë', 'e')}@example.com"
        api.post_json("/users", {"name": name, "email": email})
    for name in PROJECTS:
        api.post_json("/projects", {"name": name})
    today = clock.now
    for days, project, status, assignees, title in WORK:
        clock.now = today - timedelta(days=days)
        body = {"title": title, "project_id": project, "assignees": assignees}
        api.post_json("/tickets", body | {"status": "open" if title == WORK[-1][-1] else status})
    lost = (
        "Orders of the last hour are missing. The log says 'database is locked' 14 times.\n\n"
        "Steps:\n1. Open the shop in two tabs.\n2. Order in both at once."
    )
    load = (
        "It happens only under load. With one tab I saw it never, with ten at every second order."
    )
    story = [
        ("Dave Okafor", 7, {"status": "in progress", "comment": "I can see it on my machine."}),
        ("Max Weber", 3, {"assignees": [1, 2], "description": lost}),
        ("Yaris Demir", 1, {"comment": load}),
    ]
    for by, hours, change in story:
        clock.now = today - timedelta(hours=hours)
        api.patch_json(f"/tickets/{len(WORK)}", change, extra_environ={"REMOTE_USER": by})
    clock.now = today


def take(url):
    """Visit the page, and take the pictures."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        program = shutil.which("chromium")
        with playwright.chromium.launch(executable_path=program, args=arguments) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 760}, locale="en-GB")
            page.goto(url)
            page.locator(".card").first.wait_for()
            page.screenshot(path=HERE / "board.png")
            page.goto(f"{url}#/tickets/{len(WORK)}")
            page.locator(".mails [data-status=sent]").first.wait_for()
            page.screenshot(path=HERE / "ticket.png", full_page=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        with open(Path(folder) / "mail.txt", "w") as output:
            app = tracker.create_app(f"{folder}/t.db", smtp="", clock=clock, output=output)
            fill(TestApp(app), clock)
            server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
            threading.Thread(target=server.serve_forever).start()
            try:
                take(f"http://127.0.0.1:{server.server_port}/")
            finally:
                server.shutdown()
                server.server_close()
                app.close()


if __name__ == "__main__":
    main()
