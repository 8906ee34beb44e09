"""Two trackers on one PostgreSQL: both are written to while parts of all this die.

`make soak` does the same at length. See Team.check() for what must hold afterwards.
"""

import base64
import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException

import clusters
import proxy
import psycopg
import pytest
from conftest import ROOT, eventually
from trackers import LOCK, NOTHING, Team
from wire import ask, free_port

import db
from plumbing import Unavailable

KILLS = 3  # of each kind


@pytest.fixture
def cluster():
    """A server of our own, to be killed."""
    if not clusters.find_programs():
        pytest.skip(clusters.HOW_TO_GET_IT)
    cluster = clusters.Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture
def database(cluster):
    return cluster.create()


def test_a_deliverer_that_is_killed_is_replaced_and_no_mail_is_lost(start, database, mail_server):
    with Team(start, mail_server) as team:
        for _ in range(KILLS):
            team.works()
            team.kill_deliverer(database)
        team.works()
    team.check(database)


def test_a_server_that_is_killed_and_comes_back_has_all_that_was_acknowledged(
    start, cluster, database, mail_server
):
    with Team(start, mail_server) as team:
        for _ in range(KILLS):
            team.works()
            team.expect_disturbance(database)
            cluster.kill()
            cluster.start()
        team.works()
    assert team.refused or team.unknown
    team.check(database)


def test_a_server_that_is_suspended_for_a_while_costs_time_only(
    start, cluster, database, mail_server
):
    with Team(start, mail_server) as team:
        for _ in range(KILLS):
            team.works()
            team.expect_disturbance(database)
            cluster.suspend()
            time.sleep(0.5)
            cluster.resume()
        team.works()
    assert not team.refused
    assert not team.unknown
    team.check(database)


def test_a_tracker_ends_also_while_its_server_says_nothing(start, cluster):
    server = start("--quiet")
    assert ask(server, "GET", "/users")[0] == 200
    cluster.suspend()
    try:
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(ask, server, "GET", "/users"),
                pool.submit(ask, server, "POST", "/projects", {"name": "Website"}),
            ]
            time.sleep(0.5)  # so that they wait, which nothing shows
            assert server.terminate() == 0
            for each in asked:
                with suppress(OSError, HTTPException):
                    each.result()
    finally:
        cluster.resume()


def test_writes_are_refused_while_the_lock_hangs_and_reads_are_answered(
    start, database, mail_server
):
    with Team(start, mail_server) as team:
        team.works()
        with psycopg.connect(database) as conn:
            conn.execute(f"SELECT pg_advisory_xact_lock({LOCK}, 0)")
            status, _, told = ask(team.servers[0], "POST", "/projects", {"name": "Intranet"})
            assert (status, NOTHING in told["detail"]) == (503, True)
            assert ask(team.servers[1], "GET", "/tickets")[0] == 200
            assert ask(team.servers[0], "GET", "/health")[0] == 503
        team.works()
    team.check(database)


def test_a_standby_is_told_as_read_only_also_where_the_url_takes_any_server(cluster, database):
    db.open_database(database).close()
    standby = clusters.Cluster(cluster)
    try:
        url = database.replace(f":{cluster.port}/", f":{standby.port}/")
        for options in ("", "?target_session_attrs=any"):
            with pytest.raises(Unavailable, match="is read-only"):
                db.open_database(url + options)
    finally:
        standby.remove()


def test_a_synchronous_standby_that_is_promoted_has_all_that_was_acknowledged(
    start, cluster, database, mail_server
):
    db.open_database(database).close()
    standby = clusters.Cluster(cluster, synchronous_standby_names="")
    try:
        cluster.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        cluster.execute("SELECT pg_reload_conf()")
        both = database.replace(f":{cluster.port}/", f":{cluster.port},127.0.0.1:{standby.port}/")

        def start_on_both(*options):
            return start(*options, database=both)

        with Team(start_on_both, mail_server) as team:
            team.works()
            team.expect_disturbance(database)
            promotion = threading.Thread(target=lambda: (time.sleep(0.5), standby.promote()))
            promotion.start()
            cluster.kill()
            promotion.join()
            team.works()
        team.check(database.replace(f":{cluster.port}/", f":{standby.port}/"))
        for server in team.servers:
            assert server.terminate() == 0
    finally:
        standby.remove()


# ---------------------------------------------------------------- behind the nginx of the manual

# Dies at a change of a ticket that is committed, before it is answered.
DIES = "import os; from plumbing.worker import Worker; Worker.wake = lambda self: os._exit(1)"


class Nginx(proxy.Nginx):
    """nginx as docs/operating.md prints it for several trackers, but for TLS and its names."""

    def __init__(self, folder, servers):
        alone, several = re.findall(
            "```nginx\n(.*?)```", (ROOT / "docs/operating.md").read_text("utf-8"), re.DOTALL
        )
        http = re.sub("(?s)^upstream.*?\n}\n", several, alone)
        http = http.replace("listen 443 ssl", "listen 127.0.0.1:PORT")
        http = re.sub("ssl_certificate.*", "", http)
        for number, server in enumerate(servers, 1):
            http = http.replace(f"10.0.0.{number}:8080", f"127.0.0.1:{server.port}")
        (folder / "users").write_text("max@example.com:{PLAIN}geheim\n")
        super().__init__(folder, http.replace("/etc/nginx/tracker.users", f"{folder}/users"))

    def ask(self, method, path, body=None, **headers):
        """The status and the text of the answer."""
        login = base64.b64encode(b"max@example.com:geheim").decode()
        headers |= {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        headers["Origin"] = f"http://127.0.0.1:{self.port}"
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as conn:
            conn.request(method, path, json.dumps(body), headers)
            answer = conn.getresponse()
            return answer.status, answer.read().decode()

    def create(self, path, key, **body):
        """Create it as a client does that repeats until it knows."""
        answer = 502, ""
        while answer[0] in (502, 503):
            answer = self.ask("POST", path, body, **{"Idempotency-Key": key})
        assert answer[0] == 201, answer
        return json.loads(answer[1])


@pytest.fixture
def behind(start, tmp_path):
    """Starts nginx before trackers: behind(the options of each)."""
    if proxy.NGINX is None:
        pytest.skip(proxy.HOW_TO_GET_IT)
    proxies = []

    def run(*trackers):
        servers = [start("--quiet", "--user-header", "X-Remote-User", **each) for each in trackers]
        proxies.append(Nginx(tmp_path, servers))
        proxies[0].create("/users", "user", name="Max", email="max@example.com")
        proxies[0].create("/projects", "project", name="Website")
        return proxies[0], servers

    yield run
    for each in proxies:
        each.kill()


def test_behind_nginx_reads_and_creations_with_a_key_go_on_while_trackers_are_killed(
    behind, start, database
):
    nginx, servers = behind({"port": free_port()}, {})
    stop, reads, created = threading.Event(), Counter(), []

    def read():
        while not stop.is_set():
            reads[nginx.ask("GET", "/tickets")[0]] += 1

    def create(worker):
        while not stop.is_set():
            title = f"{worker}-{len(created)}"
            ticket = {"title": title, "project_id": 1, "status": "open"}
            created.append((title, nginx.create("/tickets", title, **ticket)["id"]))

    def goes_on():
        aims = reads.total() + 20, len(created) + 20
        eventually(lambda: reads.total() >= aims[0] and len(created) >= aims[1])

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads += [threading.Thread(target=create, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        goes_on()
        servers[0].kill()
        goes_on()
        again = start("--user-header", "X-Remote-User", port=servers[0].port)
        for _ in range(2):  # the second comes when nginx has the first answer of it
            assert again.process.stdout.readline()
        servers[1].kill()
        goes_on()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert reads.keys() == {200}
    with psycopg.connect(database) as conn:
        found = conn.execute("SELECT title, id FROM tracker.tickets").fetchall()
    assert sorted(found) == sorted(created)


@pytest.mark.parametrize(
    ("method", "answers", "noted"), [("PUT", [200] * 4, 5), ("PATCH", [200] * 3 + [502], 4)]
)
def test_nginx_repeats_a_put_whose_tracker_ended_after_it_was_done_and_no_patch(
    behind, method, answers, noted
):
    nginx, servers = behind({"prelude": DIES}, {})
    ticket = {"title": "Fix the database", "project_id": 1, "status": "open"}
    ticket = nginx.create("/tickets", "ticket", **ticket)
    got = [
        nginx.ask(method, "/tickets/1", ticket | {"assignees": [1], "comment": f"{n}"})[0]
        for n in range(4)
    ]
    assert sorted(got) == answers
    assert servers[0].process.wait(30) == 1
    history = json.loads(nginx.ask("GET", "/tickets/1/history")[1])
    assert len(history) == noted
    assert {entry["comment"] for entry in history} == set("0123")
    assert {entry["by"] for entry in history} == {"max@example.com"}


def test_nginx_repeats_a_delete_whose_tracker_ended_after_it_was_done(behind):
    nginx, servers = behind({"prelude": DIES}, {})
    for n in range(2, 6):
        nginx.create("/users", f"user {n}", name="Dave", email=f"dave{n}@example.com")
    ticket = {"title": "Fix the database", "project_id": 1, "status": "open"}
    assert ask(servers[1], "POST", "/tickets", ticket | {"assignees": [2, 3, 4, 5]})[0] == 201
    got = [nginx.ask("DELETE", f"/users/{n}")[0] for n in range(2, 6)]
    assert sorted(got) == [204] * 3 + [404]
    assert servers[0].process.wait(30) == 1
    assert len(json.loads(nginx.ask("GET", "/users")[1])) == 1
