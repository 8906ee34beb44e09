"""Minutes of full load on one tracker: memory, threads, open files and the WAL must not grow.

`make soak` runs it; `python tests/soak.py MINUTES` for longer. Needs /proc (Linux).
"""

import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from conftest import MailServer, Server

CLIENTS = 8
TICKETS = 500


def watch(server):
    """(MB of memory, threads, open files, MB of the WAL) of the process."""
    process = Path("/proc") / str(server.process.pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    wal = Path(f"{server.database}-wal")
    return (
        int(status["VmRSS"].split()[0]) / 1024,
        int(status["Threads"]),
        len(list((process / "fd").iterdir())),
        wal.stat().st_size / 2**20 if wal.exists() else 0.0,
    )


def fill(ask):
    for name in ("Max", "Dave", "Yaris"):
        ask("POST", "/users", {"name": name, "email": f"{name.lower()}@example.com"})
    for n in range(5):
        ask("POST", "/projects", {"name": f"Project {n}"})
    for n in range(TICKETS):
        text = {"title": f"Ticket {n}", "description": "The database is slow. " * 20}
        ask("POST", "/tickets", {**text, "project_id": 1, "status": "open", "assignees": [1, 2]})


def requests():
    """What a team does, again and again: its mail and history grow, its tickets do not."""
    while True:
        ticket = f"/tickets/{random.randint(1, TICKETS)}"
        yield "GET", ticket, None
        yield "GET", f"/tickets?project_id={random.randint(1, 5)}&status=open", None
        yield "GET", "/tickets?text=database&sort=-updated", None
        yield "GET", "/projects", None
        yield "PATCH", ticket, {"status": random.choice(("open", "in progress", "closed"))}
        yield "PATCH", ticket, {"assignees": random.sample((1, 2, 3), random.randint(0, 3))}
        yield "GET", f"{ticket}/history", None
        yield "POST", "/users", {"name": "", "email": "nobody"}
        yield "GET", "/emails?state=queued", None
        yield "GET", "/health", None


def client(port, until, statuses):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number, (method, path, body) in enumerate(requests()):
        if time.monotonic() > until:
            return connection.close()
        if number % 100 == 99:
            connection.close()  # http.client connects anew
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        statuses[answer.status] += 1


def soak(minutes):
    """The figures of each ten seconds, and how often each status was answered."""
    statuses, figures = Counter(), []
    mail = MailServer()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "tickets.db", "--quiet", "--smtp", mail.url)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

            def ask(method, path, body):
                connection.request(
                    method, path, json.dumps(body), {"Content-Type": "application/json"}
                )
                assert connection.getresponse().read()

            fill(ask)
            connection.close()
            until = time.monotonic() + 60 * minutes
            clients = [
                threading.Thread(target=client, args=(server.port, until, statuses))
                for _ in range(CLIENTS)
            ]
            for each in clients:
                each.start()
            print("requests  memory MB  threads  files  WAL MB  mail sent")
            while time.monotonic() < until - 10:
                time.sleep(10)
                figures.append(watch(server))
                memory, threads, files, wal = figures[-1]
                print(
                    f"{statuses.total():8,} {memory:10.1f} {threads:8} {files:6} {wal:7.1f}"
                    f" {len(mail.messages):10,}",
                    flush=True,
                )
            for each in clients:
                each.join()
        finally:
            server.terminate()
            mail.stop()
    assert "Traceback" not in "".join(server.lines)
    return figures, statuses


def main():
    figures, statuses = soak(float(sys.argv[1]) if len(sys.argv) > 1 else 3)
    print("answers", dict(statuses))
    third = len(figures) // 3
    early, late = figures[third : 2 * third], figures[2 * third :]  # the first third warms up
    grown = []
    for place, (what, allowed) in enumerate(
        # What is allowed above the highest early figure: SQLite's caches and the heap breathe.
        (("memory", 1.1), ("threads", 1.0), ("open files", 1.1), ("the WAL", 1.5))
    ):
        before, after = (max(row[place] for row in rows) for rows in (early, late))
        if after > before * allowed:
            grown.append(f"{what} grew from {before:g} to {after:g}")
    failed = [status for status in statuses if status >= 500]
    print("; ".join(grown) or "Nothing grew.")
    return 1 if grown or failed else 0


if __name__ == "__main__":
    sys.exit(main())
