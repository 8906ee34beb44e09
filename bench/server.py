"""How to serve the tracker: its own way against plain waitress, gunicorn and granian.

python -m bench server
"""

from __future__ import annotations

import statistics
from typing import Any

from bench import http
from bench.http import Configuration, Progress, gunicorn

APP = "tracker_app:app"
KINDS = ("one ticket", "page of 50", "filtered page of 50", "change of status")


def waitress(threads: int) -> list[str]:
    return f"-m waitress --listen=127.0.0.1:{{port}} --threads={threads} {APP}".split()


def granian(workers: int) -> list[str]:
    options = f"--interface wsgi --host 127.0.0.1 --port {{port}} --workers {workers}"
    return f"-m granian {options} --no-access-log --log-level warning {APP}".split()


WAYS = [
    http.TRACKER,
    Configuration("waitress, 1 thread", "", "tracker", waitress(1)),
    Configuration("waitress, 4 threads", "", "tracker", waitress(4)),
    Configuration("gunicorn, 2 workers of 4 threads", "", "tracker", gunicorn(APP, 2, 4)),
    Configuration("granian, 1 worker", "", "tracker", granian(1)),
    Configuration("granian, 2 workers", "", "tracker", granian(2)),
]


def run(progress: Progress = print, quick: bool = False) -> dict[str, Any]:
    """Medians of requests per second and of the p99, of each way and kind, and ratios to ours."""
    rounds, seconds = (1, 1) if quick else (3, 4)
    load = {"tickets": 1000 if quick else 10_000, "connections": 16}
    results: dict[str, dict[str, Any]] = {}
    with http.running(WAYS, load["tickets"], progress) as servers:
        for kind in KINDS:
            samples: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
            for turn in range(rounds + 1):  # the first is short, to warm up
                for server in servers:
                    sample = http.measure(server, kind, seconds=seconds if turn else 1, **load)
                    samples[server.name].append(sample)
                    progress(f"server, {kind}, {server.name}: {http.line(sample)}")
            results[kind] = {
                name: {
                    figure: statistics.median(sample[figure] for sample in taken[1:])
                    for figure in ("requests_per_second", "p99_ms")
                }
                for name, taken in samples.items()
            }
    return {"goals": [], "results": results, "settings": load}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    names = [way.name for way in WAYS]
    lines = [
        f"| Served by: requests/s (p99, ms) | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
    ]
    for kind, ways in result["results"].items():
        cells = (f"{ways[n]['requests_per_second']:,.0f} ({ways[n]['p99_ms']:.1f})" for n in names)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)
