"""Random requests to a running server, each of which must be answered as openapi.json says.

Schemathesis makes them up, with all its checks and phases; schemathesis.toml says how, and
fuzz_exceptions.py what is no failure. `make test` sends a few, `make fuzz` 200 and more to
each operation, with several seeds.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

HERE = Path(__file__).parent
FUZZ = int(os.environ.get("FUZZ", "0"))  # examples for each operation, in `make fuzz`

BRIEFLY = [
    ["--phases=examples,fuzzing,stateful", "--max-examples=2"],
    # Without bodies, over whose edge cases Schemathesis thinks for a long time.
    ["--phases=coverage", "--include-method=GET", "--include-method=DELETE"],
]
AT_LENGTH = [
    ["--phases=examples,coverage,fuzzing", f"--max-examples={FUZZ}"],
    # This phase ends early where the same call meets another state, and is then begun anew.
    ["--phases=stateful", f"--max-examples={FUZZ}", "--max-time=60"],
]


def send(server, method, path, body=None):
    headers = {"Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(server.url + path, data, headers, method=method)) as answer:
        return json.load(answer)


def fill(server):
    for name in ("Max", "Dave", "Yaris"):
        send(server, "POST", "/users", {"name": name, "email": f"{name.lower()}@example.com"})
    send(server, "POST", "/projects", {"name": "Website"})
    for title in ("Fix the database", "Buy paper"):
        ticket = {"title": title, "project_id": 1, "status": "open", "assignees": [1, 2]}
        send(server, "POST", "/tickets", ticket)
    send(server, "PATCH", "/tickets/1", {"status": "closed", "assignees": [2, 3]})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 4 if FUZZ else 2))
@pytest.mark.parametrize("amount", AT_LENGTH if FUZZ else BRIEFLY, ids=lambda options: options[0])
def test_any_request_is_answered_as_documented(amount, seed, start, mail_server, tmp_path):
    # So that there is mail in each state: sent, failed and queued.
    mail_server.replies = {"dave@example.com": "550 Gone", "yaris@example.com": "450 Full"}
    server = start("--quiet", "--smtp", mail_server.url)
    log = threading.Thread(target=server.lines.extend, args=[server.process.stdout])
    log.start()  # or a full pipe would stop the server
    fill(server)

    fuzzer = [sys.executable, "-m", "schemathesis.cli", "--no-color"]
    fuzzer += ["--config-file", HERE / "schemathesis.toml", "run", f"{server.url}/openapi.json"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # not of it
    run = subprocess.run(
        [*fuzzer, f"--seed={seed}", *amount],
        cwd=tmp_path,
        env=environ | {"SCHEMATHESIS_HOOKS": str(HERE / "fuzz_exceptions.py")},
        capture_output=True,
        text=True,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stderr

    assert send(server, "GET", "/health")["status"] == "ok"
    server.process.terminate()
    assert server.process.wait(30) == 0
    log.join()
    assert not [line for line in server.lines if "defect" in line or "Traceback" in line]
