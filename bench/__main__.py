"""All benchmarks: `make bench`, or `python -m bench [PART ...] [--quick]`.

Shows progress, and writes bench/results/results.json, bench/results/summary.md and, for the
README, bench/chart.svg. A quick run only shows that all works; it writes to bench/results/quick.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sqlite3
import sys
import time
import traceback
from datetime import datetime
from html import escape
from typing import Any

from bench import data, http, limits, mail, mixed, scale, server
from bench.limits import Progress

PARTS = {
    "http": http,
    "server": server,
    "limits": limits,
    "scale": scale,
    "mail": mail,
    "mixed": mixed,
}


def main() -> int:
    """Run the parts; returns 1 if one of them could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="All benchmarks.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that it works")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"unknown: {', '.join(unknown)}")

    folder = data.HERE / "results" / ("quick" if args.quick else "")
    chart = (folder if args.quick else data.HERE) / "chart.svg"
    folder.mkdir(parents=True, exist_ok=True)
    path, results = folder / "results.json", {}
    if args.parts and path.exists():  # what is not measured anew stays
        results = json.loads(path.read_text("utf-8"))
    began, failed = time.monotonic(), False

    def progress(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3}:{seconds:02}  {text}", flush=True)

    for part in args.parts or PARTS:
        try:
            results[part] = measure(part, args.quick, progress)
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "summary.md").write_text(summary(results), "utf-8")
        if part == "http":
            chart.write_text(draw(results[part]), "utf-8")
    print("", summary(results), sep="\n")
    return int(failed)


def measure(part: str, quick: bool, progress: Progress) -> dict[str, Any]:
    if part != "http":
        result = PARTS[part].run(progress, quick)
        table = PARTS[part].table(result)
    else:
        options = {"tickets": 1000, "seconds": 1, "rounds": 1} if quick else {}
        result = http.run(progress=progress, **options)
        table = compact(result)
    moment = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"goals": [], **result, "date": moment, "where": machine(), "table": table}


def machine() -> str:
    kernel = re.match(r"[\d.]*", platform.release())[0]
    return (
        f"{os.cpu_count()} cores, {platform.system()} {kernel},"
        f" Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def compact(result: dict[str, Any]) -> str:
    """Requests per second of each server, in Markdown."""
    names = list(result["configurations"])
    lines = [f"| Requests/s | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for kind, servers in result["results"].items():
        figures = (f"{servers[name]['requests_per_second']:,.0f}" for name in names)
        lines.append(f"| {kind} | {' | '.join(figures)} |")
        lines += [f"| ERROR: {error} |" for name in names for error in servers[name]["errors"]]
    settings = (f"{name}: {setting}" for name, setting in result["configurations"].items())
    return "\n".join([*lines, "", f"Configurations: {'; '.join(settings)}."])


def summary(results: dict[str, Any]) -> str:
    """Machine, goals and tables, in Markdown."""
    lines = ["# Benchmark", ""]
    lines += dict.fromkeys(f"{r['date'][:10]}, {r['where']}." for r in results.values())
    lines += ["", "| Goal | Measured | |", "|---|---|---|"]
    for result in results.values():
        for goal in result["goals"]:
            met = "met" if goal["met"] else "**not met**"
            lines.append(f"| {goal['goal']} | {goal['figure']} | {met} |")
    for result in results.values():
        lines += ["", result["table"]]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the chart

STYLE = """
    text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
    .kind, .ours text { font-weight: 600 }
    .paper { fill: #ffffff }
    .bar { fill: #b6bfc9 }
    .ours .bar { fill: #0969da }
    .note { fill: #59636e }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .paper { fill: #0d1117 }
      .bar { fill: #4b5561 }
      .ours .bar { fill: #4493f8 }
      .note { fill: #9198a1 }
    }"""
WIDTH, LEFT, LONGEST, ROW = 800, 230, 490, 17


def draw(result: dict[str, Any]) -> str:
    """Bars of requests per second as SVG; of each kind, the fastest server has the longest."""
    settings, rows, y = result["settings"], [], 66
    for kind, servers in result["results"].items():
        most = max(found["requests_per_second"] for found in servers.values())
        rows.append(f'<text class="kind" x="16" y="{y}">{escape(kind.capitalize())}</text>')
        for name, found in servers.items():
            y += ROW
            rate = found["requests_per_second"]
            of = "ours" if name == http.OURS else "peer"
            width = max(1, round(LONGEST * rate / most))
            rows.append(
                f'<g class="{of}">'
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="bar" x="{LEFT}" y="{y - 11}" width="{width}" height="13" rx="2"/>'
                f'<text x="{LEFT + width + 6}" y="{y}">{rate:,.0f}</text></g>'
            )
        y += 28
    note = (
        f"{settings['tickets']:,} tickets, {settings['connections']} connections, each server as"
        f" it is fastest; each kind on a scale of its own. {os.cpu_count()} cores."
    )
    height = y - 12
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" role="img">',
            "<title>Requests per second of the tracker and of its peers</title>",
            f"<style>{STYLE}\n</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
            '<text class="kind" x="16" y="24">Requests per second, more is better</text>',
            f'<text class="note" x="16" y="41">{escape(note)}</text>',
            *rows,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
