"""Two trackers on one PostgreSQL: both are written to while parts of all this die.

`make soak` does the same at length. See Team.check() for what must hold afterwards.
"""

import threading
import time

import clusters
import psycopg
import pytest
from trackers import LOCK, NOTHING, Team, ask

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
            team.disturbances += 1
            cluster.kill()
            cluster.start()
        team.works()
    assert team.refused or team.unknown
    team.check(database)


def test_writes_are_refused_while_the_lock_hangs_and_reads_are_answered(
    start, database, mail_server
):
    with Team(start, mail_server) as team:
        team.works()
        with psycopg.connect(database) as conn:
            conn.execute(f"SELECT pg_advisory_xact_lock({LOCK}, 0)")
            status, answer = ask(team.servers[0], "POST", "/projects", {"name": "Intranet"})
            assert (status, NOTHING in answer["detail"]) == (503, True)
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
            team.disturbances += 1
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
