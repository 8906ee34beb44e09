"""What a value from outside may be: pure rules, untrusted value in, clean value out.

All faults are told at once, each with its place; what a service makes of them is its own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from .text import fault_of_line, fault_of_text, is_address

ID = r"[1-9][0-9]{0,17}"  # in a path or a query

# A rule takes a value from outside and a function to tell each fault to, with the place
# inside the value if need be. It returns the clean value; after a fault nobody looks at it.
Fault = Callable[..., None]
Rule = Callable[[Any, Fault], Any]
Body = dict[str, Rule]  # by field
Query = dict[str, Rule | list[Rule]]  # by parameter; [rule]: it may be repeated


def line(shortest: int, longest: int) -> Rule:
    """A name or title."""
    return _string(shortest, longest, fault_of_line)


def text(longest: int) -> Rule:
    """A text that may have several lines, or none."""
    return _string(0, longest, fault_of_text)


def _string(shortest: int, longest: int, fault_of: Callable[[str], str | None]) -> Rule:
    def rule(value: Any, fault: Fault) -> Any:
        if not isinstance(value, str):
            return fault("must be a string")
        value = value.strip()
        if len(value) < shortest:
            fault(f"must have at least {shortest} character{'s' * (shortest > 1)}")
        if len(value) > longest:
            fault(f"must have at most {longest:,} characters")
        if found := fault_of(value):
            fault(found)
        return value

    return rule


def optional(rule: Rule) -> Rule:
    """The rule, or null."""
    return lambda value, fault: None if value is None else rule(value, fault)


def email(value: Any, fault: Fault) -> Any:
    """One plain address that every mail server can reach."""
    if not isinstance(value, str):
        return fault("must be a string")
    value = value.strip()
    if not value.isascii():
        fault("must be ASCII; an address in another script cannot be reached by every server")
    elif not is_address(value):
        fault("is not a valid email address")
    return value


def reference(value: Any, fault: Fault) -> Any:
    """An id in a body."""
    if type(value) is not int:  # a bool is an int, too
        return fault("must be an id, a whole number")
    return value if 0 < value < 2**63 else fault("does not exist")  # what a column can hold


def references(most: int, members: set[str]) -> Rule:
    """A list of so many ids, or of objects with these members, as a GET returns them."""

    def rule(value: Any, fault: Fault) -> Any:
        if not isinstance(value, list):
            return fault("must be a list of ids")
        ids = [
            item["id"] if isinstance(item, dict) and members >= item.keys() >= {"id"} else item
            for item in value
        ]
        if len({id for id in ids if type(id) is int}) > most:
            return fault(f"must have at most {most} items")
        return [
            reference(id, lambda detail, place=place: fault(detail, f"/{place}"))
            for place, id in enumerate(ids)
        ]

    return rule


def one_of(*values: str) -> Rule:
    """One of some words."""

    def rule(value: Any, fault: Fault) -> Any:
        return value if value in values else fault(f"must be one of: {', '.join(values)}")

    return rule


def word(*values: str) -> Rule:
    """The same, with margins that are cut off."""
    rule = one_of(*values)
    return lambda value, fault: rule(value.strip() if isinstance(value, str) else value, fault)


# ---------------------------------------------------------------- in a query


def id_in_query(value: str, fault: Fault) -> Any:
    """An id in a query."""
    return int(value) if re.fullmatch(ID, value) else fault("must be an id")


def id_or_none(value: str, fault: Fault) -> Any:
    """An id in a query, or "none", which is told as 0."""
    return 0 if value == "none" else id_in_query(value, fault)


class Cursor(NamedTuple):
    """Where a page starts: the first item's place in the order, and its id."""

    order: str
    place: str
    id: int


def write_cursor(order: str, place: str, id: int) -> str:
    """A Cursor as an opaque word."""
    return base64.urlsafe_b64encode(f"{order} {place} {id}".encode()).decode().rstrip("=")


def _page_size(value: str, fault: Fault) -> Any:
    size = int(value) if re.fullmatch(r"[0-9]{1,3}", value) else 0
    return size if 1 <= size <= 200 else fault("must be a whole number from 1 to 200")


def _cursor(value: str, fault: Fault) -> Any:
    with suppress(ValueError):
        words = base64.urlsafe_b64decode(value.encode("ascii") + b"==").decode()
        if found := re.fullmatch(rf"(\S+) ([0-9TZ:.-]*) ({ID})", words):
            cursor = Cursor(found[1], found[2], int(found[3]))
            if write_cursor(*cursor) == value:
                return cursor
    return fault("is not from a Link of this list")


PAGE: Query = {"limit": _page_size, "after": _cursor}


# ---------------------------------------------------------------- all of them


def validate(
    data: dict[str, Any], rules: Body, ignored: Iterable[str], missing: str | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The clean fields, and all faults; `missing` says what is wrong with leaving a field out."""
    clean: dict[str, Any] = {}
    errors = [
        error_at(name, "is not a field that can be set here")
        for name in sorted(data.keys() - rules.keys() - set(ignored))
    ]
    for name, rule in rules.items():
        if name in data:
            clean[name] = rule(
                data[name], lambda *fault, name=name: errors.append(error_at(name, *fault))
            )
        elif missing:
            errors.append(error_at(name, missing))
    return clean, errors


def error_at(name: str, detail: str, inside: str = "") -> dict[str, str]:
    """An entry of `errors`, with a JSON pointer (RFC 6901) as a URI fragment."""
    name = name.replace("~", "~0").replace("/", "~1")
    return {"pointer": f"#/{quote(name, '~', errors='replace')}{inside}", "detail": detail}
