"""Several trackers on one PostgreSQL under load, and the ledger of what each request was told.

Used by the tests in short and by the soak at length.
"""

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from http.client import HTTPException

import psycopg
from conftest import CAST, eventually
from wire import ask

import mailer

TICKETS = 10
NOTHING, UNKNOWN = "Nothing was changed", "It is not known whether this was saved"
LOCK = 0x7469636B  # of trackers; 0 beside it is of who writes, 1 of who delivers
MESSAGE_IDS = "SELECT '<' || id || '.' || token || '@' || domain || '>' FROM emails, system"


def connect(url):
    return psycopg.connect(url, autocommit=True, options="-c search_path=tracker")


class Team:
    """Trackers that are written to until the end of the `with`, as start() of the tests makes them.

    Each request writes a title that is used once, so that the history tells what became of it.
    """

    def __init__(self, start, mail_server, count=2):
        self.start, self.mail = start, mail_server
        self.servers = [self.start_one() for _ in range(count)]
        self.saved, self.refused, self.unknown = [], [], []
        self._sent = []  # at each disturbance: the mail recorded as sent, the messages so far
        for name in CAST[:2]:
            user = {"name": name, "email": f"{name.lower()}@example.com"}
            assert ask(self.servers[0], "POST", "/users", user)[0] == 201
        assert ask(self.servers[0], "POST", "/projects", {"name": "Website"})[0] == 201
        for n in range(TICKETS):
            ticket = {"title": f"{n}", "project_id": 1, "status": "open", "assignees": [1, 2]}
            assert ask(self.servers[0], "POST", "/tickets", ticket)[0] == 201
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(worker,)) for worker in range(2 * count)
        ]

    def start_one(self):
        return self.start("--quiet", "--smtp", self.mail.url)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, worker):
        n = 0
        while not self._stop.is_set():
            n += 1
            time.sleep(0.01)  # enough is enough: all this mail has to go out
            change = ticket, title = random.randint(1, TICKETS), f"{worker}-{n}"
            server = self.servers[worker % len(self.servers)]
            try:
                status, _, told = ask(server, "PATCH", f"/tickets/{ticket}", {"title": title})
            except (OSError, HTTPException, ValueError):
                self.unknown.append(change)
                time.sleep(0.05)
                continue
            if status == 200:
                self.saved.append(change)
                continue
            assert status == 503, told
            known = NOTHING in told["detail"]
            assert known != (UNKNOWN in told["detail"]), told
            (self.refused if known else self.unknown).append(change)

    def works(self, more=20):
        """Wait until so many more changes are saved, and all trackers say that they are well."""
        aim = len(self.saved) + more
        eventually(lambda: len(self.saved) >= aim)
        eventually(lambda: all(self._is_well(server) for server in self.servers))

    def _is_well(self, server):
        with suppress(OSError, HTTPException, ValueError):
            return ask(server, "GET", "/health")[0] == 200

    def seconds_until_well(self):
        """How long it takes from now on until a change is saved."""
        began, aim = time.monotonic(), len(self.saved) + 1
        eventually(lambda: len(self.saved) >= aim)
        return time.monotonic() - began

    def expect_disturbance(self, url):
        """Note, just before it, which mail is recorded as sent and so must not go out again."""
        with connect(url) as conn:
            recorded = {id for (id,) in conn.execute(f"{MESSAGE_IDS} WHERE sent_at IS NOT NULL")}
        self._sent.append((recorded, len(self.mail.messages)))

    def kill_deliverer(self, url):
        """Kill the tracker that delivers, once there is one, and start another."""
        sql = f"""
            SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
             WHERE locktype = 'advisory' AND classid = {LOCK} AND objid = 1 AND granted"""
        with connect(url) as conn:
            [name] = eventually(lambda: conn.execute(sql).fetchone())
        [place] = [
            n for n, each in enumerate(self.servers) if name == f"tracker {each.process.pid}"
        ]
        self.expect_disturbance(url)
        self.servers[place].kill()
        self.servers[place] = self.start_one()

    def check(self, url):
        """See, once nobody writes, that each request was told the truth, and all mail was sent."""
        eventually(lambda: ask(self.servers[0], "GET", "/health").json["mail"]["queued"] == 0, 300)
        with connect(url) as conn:
            changes = Counter(
                conn.execute("""
                    SELECT ticket_id, changes::json #>> '{title,to}'
                      FROM history
                     WHERE changes IS NOT NULL""").fetchall()
            )
            mailed = conn.execute("""
                SELECT ticket_id, count(*)
                  FROM emails JOIN history ON history.id = history_id
                 GROUP BY ticket_id""").fetchall()
            ids = {id for (id,) in conn.execute(MESSAGE_IDS)}
        assert not set(self.saved) - changes.keys(), "acknowledged changes are lost"
        assert not set(self.refused) & changes.keys(), "what was said not to be saved is there"
        assert not changes.keys() - {*self.saved, *self.unknown}, "nobody asked for that"
        assert max(changes.values()) == 1
        # Two people are told of each ticket at its creation, and of each change.
        expected = Counter(dict.fromkeys(range(1, TICKETS + 1), 2))
        for ticket, _ in changes:
            expected[ticket] += 2
        assert dict(mailed) == expected
        messages = [message["Message-ID"] for _, message in self.mail.messages]
        assert set(messages) == ids
        # Only what was under way may have gone twice: a part of one batch each time.
        assert len(messages) - len(ids) <= len(self._sent) * mailer.BATCH
        for recorded, so_far in self._sent:
            assert not recorded & set(messages[so_far:]), "what was recorded as sent went again"
