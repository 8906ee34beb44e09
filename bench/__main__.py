"""All benchmarks: `make bench`, or `python -m bench [PART ...] [--quick]`.

Shows progress, and writes results.json and summary.md into bench/results, or bench/results/quick.
What a whole run has found stands in bench/README.md, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
import traceback
from typing import Any

from bench import data, engines, http, limits, mail, mixed, pages, scale
from bench.tools import table

PARTS = {
    "pages": pages.run,
    "limits": limits.run,
    "http": http.compare_peers,
    "server": http.compare_servers,
    "scale": scale.run,
    "mail": mail.run,
    "mixed": mixed.run,
    "engines": engines.run,
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
    folder.mkdir(parents=True, exist_ok=True)
    results, began = {}, time.monotonic()

    def progress(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3}:{seconds:02}  {text}", flush=True)

    for part in args.parts or PARTS:
        try:
            results[part] = PARTS[part](progress, args.quick)
        except Exception:
            traceback.print_exc()
            continue
        print("", summary({part: results[part]}, args.quick), sep="\n")
        written = json.dumps(results, indent=1, ensure_ascii=False)
        (folder / "results.json").write_text(written + "\n", "utf-8")
        (folder / "summary.md").write_text(summary(results, args.quick), "utf-8")
    if results.keys() == PARTS.keys() and not args.quick:
        readme = data.HERE / "README.md"
        text, heading, _ = readme.read_text("utf-8").partition("## Figures\n")
        readme.write_text(f"{text}{heading}\n{summary(results, args.quick)}", "utf-8")
    return int(len(results) < len(args.parts or PARTS))


def summary(results: dict[str, Any], quick: bool) -> str:
    """Machine, goals and tables, in Markdown."""
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    run = "A quick run, which only shows that all works," if quick else "One run"
    machine = f"{run} on {os.cpu_count()} cores shared with other work, {versions}."
    goals = (goal for result in results.values() for goal in result["goals"])
    rows = ([g["goal"], g["figure"], "met" if g["met"] else "**missed**"] for g in goals)
    tables = (result["table"] for result in results.values())
    return "\n\n".join([machine, table(["Goal", "measured", ""], *rows), *tables]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
