"""The documents say what the code says: options, routes, columns, names of files and sections."""

import re
import sqlite3
from contextlib import closing

import pytest
from conftest import ROOT

import tracker


def read(name):
    return (ROOT / name).read_text("utf-8")


def rows(text, first):
    """The cells of the tables whose first column has this heading."""
    for table in re.findall(rf"^\| {first} \|.*\n\|[-|:]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        yield from ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())


def test_the_options_are_those_of_the_command_line():
    told = rows(read("docs/operating.md"), "Option")
    for option, (usage, variable, default) in zip(tracker.OPTIONS, told, strict=True):
        assert usage.startswith(f"`{option.usage}`")
        assert option.variable == variable.partition(",")[0].strip("`")
        assert not option.default or f"`{option.default}`" in default


def test_the_commands_are_those_of_the_command_line():
    told = [command.strip("`") for command, _ in rows(read("docs/operating.md"), "Command")]
    assert told == [f"tracker {command.usage}".strip() for command in tracker.COMMANDS]


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_the_routes_are_those_of_the_tracker(name):
    told = set()
    for methods, paths, *_ in rows(re.sub("{.*?}", "{}", read(name)), "Method"):
        told |= {(method, path) for method in methods.split(", ") for path in paths.split(", ")}
    routes = {(route.method, re.sub("<.*?>", "{}", route.path)) for route in tracker.ROUTES}
    assert told == {(method, f"`{path}`") for method, path in routes}


def test_the_diagram_shows_the_columns_of_the_database():
    entities = re.findall(r"    (\w+) {\n(.*?)\n    }", read("docs/design.md"), re.DOTALL)
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.executescript(read("schema.sql"))
        for table, columns in entities:
            there = [row[1] for row in conn.execute(f"PRAGMA table_xinfo({table})")]
            assert [line.split()[1] for line in columns.splitlines()] == there, table


@pytest.mark.parametrize("name", ["README.md", "docs/design.md", "docs/operating.md"])
def test_what_is_named_is_there(name):
    text, targets = read(name), re.findall(r"^\w+(?=:)", read("Makefile"), re.MULTILINE)
    assert {*re.findall(r"`make ([a-z]+)", text)} <= {*targets}
    for file in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / file).exists(), file
    for file, section in re.findall(r"\]\((?!https:)([^#)]*)#?(.*?)\)", text):
        place = (ROOT / name).parent / file if file else ROOT / name
        headings = re.findall("^#+ (.*)", place.read_text("latin-1"), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]
        assert section in [*anchors, ""], section
