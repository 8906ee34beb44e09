"""The wheel, as somebody installs it who has never seen the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from types import SimpleNamespace

import pytest
from conftest import ROOT

import tracker


def run(*command):
    """The command must succeed; where no package index can be reached, the test is skipped."""
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode and re.search("No matching distribution|Connection", done.stderr):
        pytest.skip(f"no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr


def clean_environment():
    """An environment from which nothing leads back to the repository."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRACKER_"))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel (built from the sdist, so that this is whole too) and its console script."""
    folder = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(".git", "*venv*", "*cache*", "*.db*", "bench")
    shutil.copytree(ROOT, folder / "repo", ignore=ignored)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "repo")
    [wheel] = (folder / "dist").glob("*.whl")
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", wheel)
    return SimpleNamespace(wheel=wheel, script=venv / "bin/tracker", python=venv / "bin/python")


@pytest.fixture
def installed_server(installed, tmp_path):
    """The URL of `tracker`, started in an empty folder."""
    process = subprocess.Popen(
        [installed.script, "--port", "0"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    line = process.stdout.readline()
    url = re.search(r"http://[^, ]+", line)
    yield url[0] if url else pytest.fail(line + process.stdout.read())
    process.kill()
    process.communicate()


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_installed_tracker_starts_in_an_empty_folder_and_works(installed_server, tmp_path):
    assert get(installed_server + "/health")["status"] == "ok"
    assert get(installed_server + "/tickets") == []
    assert (tmp_path / "tickets.db").exists()


def test_the_installed_tracker_serves_the_description_of_its_api(installed_server):
    document = json.loads((ROOT / "openapi.json").read_text())
    assert get(installed_server + "/openapi.json") == document


def test_the_wheel_holds_what_the_tracker_needs_and_nothing_else(installed):
    names = zipfile.ZipFile(installed.wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    tracked = [*ROOT.glob("plumbing/*.*"), *ROOT.glob("upgrades/*.sql")]
    assert held == {f"tracker/{path.relative_to(ROOT)}" for path in tracked} | {
        "tracker/__init__.py", "tracker/__main__.py", "tracker/db.py", "tracker/mailer.py",
        "tracker/schema.sql", "tracker/postgres.sql", "tracker/openapi.json", "tracker/board.html",
    }  # fmt: skip


def test_the_wheel_has_the_version_and_the_dependencies_of_the_tracker(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    needed = re.findall(r"^Requires-Dist: ([a-z]+)[^;\n]*$", metadata, re.MULTILINE)
    assert f"\nVersion: {tracker.__version__}\n" in metadata
    assert sorted(needed) == ["bottle", "waitress"]


HOST = """
import json, {framework}, db, mailer, tracker
from wsgiref.util import setup_testing_defaults

assert (db.NAME, mailer.NAME) == ("the host's database", "the host's mail")
app = tracker.create_app("t.db", smtp="")
{mounting}

def ask(path, body=None):
    environ = {{"PATH_INFO": path, "HTTP_HOST": "localhost", "REQUEST_METHOD": "GET"}}
    setup_testing_defaults(environ)
    statuses = []
    answer = b"".join(host(environ, lambda status, headers, exc_info=None: statuses.append(status)))
    return statuses[0], answer.decode()

print(ask("/own"), ask("/tracker/users"))
app.close()
"""
MOUNTINGS = {
    "bottle": """
host = bottle.Bottle()
host.route("/own", callback=lambda: db.NAME)
host.mount("/tracker/", app)""",
    "flask": """
from werkzeug.middleware.dispatcher import DispatcherMiddleware
host = flask.Flask("host")
host.add_url_rule("/own", view_func=lambda: db.NAME)
host = DispatcherMiddleware(host, {"/tracker": app})""",
}


@pytest.mark.parametrize("framework", MOUNTINGS)
def test_a_host_with_a_db_and_a_mailer_of_its_own_can_embed_it(installed, tmp_path, framework):
    if framework == "flask":
        run(sys.executable, "-m", "pip", "--python", installed.python, "install", "flask")
    (tmp_path / "db.py").write_text('NAME = "the host\'s database"\n')
    (tmp_path / "mailer.py").write_text('NAME = "the host\'s mail"\n')
    (tmp_path / "host.py").write_text(
        HOST.format(framework=framework, mounting=MOUNTINGS[framework])
    )
    done = subprocess.run(
        [installed.python, "host.py"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('200 OK', \"the host's database\") ('200 OK', '[]')\n"


def test_it_is_started_as_a_module_as_well(installed, tmp_path):
    for command in ([installed.python, "-m", "tracker"], [installed.script]):
        done = subprocess.run(
            [*command, "backup", "copy.db"],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        said = "tracker: --db (TRACKER_DB): tickets.db: There is no such database.\n"
        assert (done.stderr, done.returncode) == (said, 1)


FOREIGN = """
[project]
name = "foreign"
version = "1"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.hatch.build.targets.wheel]
only-include = ["db.py"]
"""


def test_it_lives_beside_a_distribution_that_owns_db_and_goes_without_a_trace(installed, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/pyproject.toml").write_text(FOREIGN)
    (tmp_path / "foreign/db.py").write_text("NAME = 'foreign'\n")
    run(*pip, "install", tmp_path / "foreign")
    run(*pip, "install", installed.wheel)
    code = "import db, tracker; tracker.create_app('t.db', '').close(); print(db.NAME)"
    command = [venv / "bin/python", "-c", code]
    options = {"cwd": tmp_path, "env": clean_environment(), "capture_output": True, "text": True}
    assert subprocess.run(command, **options).stdout == "foreign\n"
    run(*pip, "uninstall", "--yes", "ticket-tracker")
    assert subprocess.run([venv / "bin/python", "-c", "import db"], **options).returncode == 0
    left = [path for path in venv.rglob("*") if "tracker" in path.name]
    assert left == []
