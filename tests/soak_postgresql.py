"""Two trackers on one PostgreSQL at length: deliverers, servers and a primary are killed.

`make soak` runs it. It prints how soon a change is saved again, and fails where a request was
not told the truth, or a mail was lost.
"""

import sys
import threading
import time
from contextlib import contextmanager

import clusters
import psycopg
from conftest import MailServer, Server
from trackers import LOCK, Team

import db

DELIVERERS, SERVERS = 8, 20  # how often they are killed


@contextmanager
def team_on(url):
    """Two trackers on the database, which are ended afterwards."""
    mail, servers = MailServer(), []

    def start(*options):
        servers.append(Server(url, *options))
        return servers[-1]

    try:
        yield Team(start, mail)
    finally:
        for server in servers:
            server.end()
        mail.stop()


def report(what, team, seconds=()):
    told = ", ".join(f"{each:.1f}" for each in seconds)
    counts = (
        f"{len(team.saved):,} saved, {len(team.refused):,} refused, {len(team.unknown):,} unknown"
    )
    print(f"{what}: {counts}{'; well again after s: ' * bool(told)}{told}", flush=True)


def kill_deliverers(cluster):
    url = cluster.create()
    with team_on(url) as team:
        with team:
            for _ in range(DELIVERERS):
                team.works(100)
                team.kill_deliverer(url)
            team.works(100)
        team.check(url)
        report("deliverers killed", team)


def kill_servers(cluster):
    url, seconds = cluster.create(), []
    with team_on(url) as team:
        with team:
            for _ in range(SERVERS):
                team.works(100)
                team.expect_disturbance(url)
                cluster.kill()
                cluster.start()
                seconds.append(team.seconds_until_well())
            team.works(100)
        team.check(url)
        report("servers killed", team, seconds)


def hold_the_lock(cluster):
    url, seconds = cluster.create(), []
    with team_on(url) as team:
        with team:
            for _ in range(3):
                team.works(100)
                with psycopg.connect(url) as conn:
                    conn.execute(f"SELECT pg_advisory_xact_lock({LOCK}, 0)")
                    time.sleep(10)
                seconds.append(team.seconds_until_well())
            team.works(100)
        team.check(url)
        report("lock held for 10 s", team, seconds)


def suspend_the_server(cluster):
    url, seconds = cluster.create(), []
    with team_on(url) as team:
        with team:
            for length in (5, 5, 60):  # the last is more than an answer is waited for
                team.works(100)
                team.expect_disturbance(url)
                cluster.suspend()
                time.sleep(length)
                cluster.resume()
                seconds.append(team.seconds_until_well())
            team.works(100)
        team.check(url)
        report("server suspended", team, seconds)


def promote_the_standby(cluster):
    url = cluster.create()
    db.open_database(url).close()
    standby = clusters.Cluster(cluster, synchronous_standby_names="")
    try:
        cluster.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        cluster.execute("SELECT pg_reload_conf()")
        with team_on(
            url.replace(f":{cluster.port}/", f":{cluster.port},127.0.0.1:{standby.port}/")
        ) as team:
            with team:
                team.works(500)
                team.expect_disturbance(url)
                cluster.kill()
                promotion = threading.Timer(2, standby.promote)
                promotion.start()
                promotion.join()
                seconds = [team.seconds_until_well()]
                team.works(500)
            team.check(url.replace(f":{cluster.port}/", f":{standby.port}/"))
            report("standby promoted", team, seconds)
    finally:
        standby.remove()


def main():
    if not clusters.find_programs():
        print(clusters.HOW_TO_GET_IT)
        return 1
    for part in (
        kill_deliverers,
        kill_servers,
        suspend_the_server,
        hold_the_lock,
        promote_the_standby,
    ):
        cluster = clusters.Cluster()
        try:
            part(cluster)
        finally:
            cluster.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
