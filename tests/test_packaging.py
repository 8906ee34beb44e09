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
    with urllib.request.urlopen(url, timeout=10) as answer:
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
    assert {name for name in names if ".dist-info/" not in name} == {
        "tracker.py", "db.py", "mailer.py", "schema.sql", "openapi.json",
    }  # fmt: skip


def test_the_wheel_has_the_version_and_the_dependencies_of_the_tracker(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    needed = re.findall(r"^Requires-Dist: ([a-z]+)[^;\n]*$", metadata, re.MULTILINE)
    assert f"\nVersion: {tracker.__version__}\n" in metadata
    assert sorted(needed) == ["bottle", "waitress"]


def test_a_program_that_installed_the_tracker_can_embed_it(installed, tmp_path):
    code = "import tracker; app = tracker.create_app('t.db', ''); app.close(); print('closed')"
    done = subprocess.run(
        [installed.python, "-c", code],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.returncode) == ("closed\n", 0), done.stderr
