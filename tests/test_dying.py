"""Two servers on one database are killed again and again while they are written to."""

import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from http.client import HTTPException

from conftest import eventually
from wire import ask, fill, ticket

import mailer

KILLS = 15
CHANGES = 300  # at least, also on a slow disk
MESSAGE_IDS = "SELECT '<' || id || '.' || token || '@' || domain || '>' FROM emails, system"


def test_nothing_acknowledged_is_lost_to_kills_at_random_moments(start, database, mail_server):
    options = ("--quiet", "--smtp", mail_server.url)
    servers = [start(*options), start(*options)]
    fill(servers[0])
    for n in range(10):
        ticket(servers[0], 1, 2, title=f"{n}")

    acknowledged, stop = [], threading.Event()
    sent = []  # before each kill: the mail recorded as sent, the messages so far

    def write(worker):
        n = 0
        while not stop.is_set():
            n += 1
            time.sleep(0.005)  # enough is enough: all this mail has to go out
            number, title = random.randint(1, 10), f"{worker}-{n}"
            try:
                server, body = servers[worker % 2], {"title": title}
                status, _, _ = ask(server, "PATCH", f"/tickets/{number}", body)
            except (OSError, HTTPException, ValueError):
                time.sleep(0.05)  # killed; what it did not acknowledge may be there or not
            else:
                assert status in (200, 503)
                if status == 200:
                    acknowledged.append((number, title))

    workers = [threading.Thread(target=write, args=(worker,)) for worker in range(2)]
    for worker in workers:
        worker.start()
    try:
        for kill in range(KILLS):
            time.sleep(random.uniform(0.1, 0.4))
            with closing(sqlite3.connect(database)) as conn:
                recorded = {
                    id for (id,) in conn.execute(f"{MESSAGE_IDS} WHERE sent_at IS NOT NULL")
                }
            sent.append((recorded, len(mail_server.messages)))
            servers[kill % 2].kill()
            servers[kill % 2] = start(*options)
        eventually(lambda: len(acknowledged) > CHANGES)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    eventually(lambda: ask(servers[0], "GET", "/health")[2]["mail"]["queued"] == 0, 300)
    for server in servers:
        assert server.terminate() == 0

    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
        changes = Counter(
            conn.execute("""
                SELECT ticket_id, json_extract(changes, '$.title.to')
                  FROM history
                 WHERE changes IS NOT NULL""")
        )
        # Two people are told of each ticket at its creation, and of each change.
        expected = Counter(dict.fromkeys(range(1, 11), 2))
        for number, _ in changes.elements():
            expected[number] += 2
        mailed = conn.execute("""
            SELECT ticket_id, count(*)
              FROM emails
              JOIN history ON history.id = history_id
             GROUP BY ticket_id""")
        assert dict(mailed) == expected
        message_ids = {id for (id,) in conn.execute(MESSAGE_IDS)}
    assert len(acknowledged) > CHANGES
    assert not set(acknowledged) - changes.keys(), "acknowledged changes are lost"
    assert max(changes.values()) == 1
    messages = [message["Message-ID"] for _, message in mail_server.messages]
    assert set(messages) == message_ids
    # Only what a kill caught in flight may have gone twice: a part of one batch each.
    assert len(messages) - len(message_ids) <= KILLS * mailer.BATCH
    for recorded, so_far in sent:
        assert not recorded & set(messages[so_far:]), "what was recorded as sent went again"
