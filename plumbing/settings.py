"""The settings of a service, from its command line, its environment or a call; its commands.

One table holds all of an option. A setting is read and checked when it is asked for, so that a
bad one concerns only those who use it; it is told by the names of its option and its variable.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Option(NamedTuple):
    """One setting. `check` makes the clean value, or raises ValueError with what is wrong."""

    name: str  # in the code, and as the parameter of a call
    usage: str  # "--port PORT"; without a word behind it, a switch
    variable: str  # of the environment; "": none
    default: str
    help: str
    check: Callable[[Any], Any] = str
    many: bool = False  # any number of words, with commas or blanks between them

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        return self.usage.partition(" ")[0]


class Command(NamedTuple):
    """What the program can do: `run(settings, *arguments)` returns the exit status."""

    usage: str  # "backup FILE"; "": what it does where no command is named
    help: str
    run: Callable[..., int]


class Settings:
    """What was given, by name; then the environment; then the defaults.

    A variable that is blank counts as not set, and blanks around its value do not count.
    """

    def __init__(
        self, options: Sequence[Option], given: Mapping[str, Any], called: bool = False
    ) -> None:
        self._options = {option.name: option for option in options}
        self._given, self._called = given, called

    def __getitem__(self, name: str) -> Any:
        """The clean value. Raises ValueError."""
        option, value = self._options[name], self._given.get(name)
        if value is None:
            value = os.environ.get(option.variable, "").strip() or option.default
        try:
            if not option.many:
                return option.check(value)
            words = [value] if isinstance(value, str) else value
            return [option.check(word) for word in re.split(r"[,\s]+", ",".join(words)) if word]
        except ValueError as error:
            raise self.fault(str(error), name) from None

    def only(self, *names: str) -> Settings:
        """These, and the defaults of all others: a bad one of them then concerns nobody."""
        options = [
            option if name in names else option._replace(variable="")
            for name, option in self._options.items()
        ]
        return Settings(options, {name: self._given[name] for name in names}, self._called)

    def fault(self, words: str, *names: str) -> ValueError:
        """The error of these settings, by all the names that they have."""
        told = []
        for option in (self._options[name] for name in names):
            name = f"{option.name}, " if self._called else ""
            told.append(f"{name}{option.flag} ({option.variable})")
        return ValueError(f"{' or '.join(told)}: {words}")


def read_command_line(
    program: str,
    about: str,
    options: Sequence[Option],
    commands: Sequence[Command],
    argv: Sequence[str] | None,
) -> tuple[Command, list[str], Settings]:
    """The command, its arguments and the settings. Exits where the line cannot be understood.

    `program` is its name and version.
    """
    parser = argparse.ArgumentParser(prog=program.split()[0], description=about)
    parser.add_argument("--version", action="version", version=program)
    _add_options(parser, options, None)
    named = {command.usage.partition(" ")[0]: command for command in commands}
    parsers = parser.add_subparsers(dest="command", metavar=" | ".join(filter(None, named)))
    for name, command in named.items():
        if name:
            inner = parsers.add_parser(name, help=command.help, description=command.help)
            for argument in command.usage.split()[1:]:
                inner.add_argument(argument)
            _add_options(inner, options, argparse.SUPPRESS)  # they may stand behind it as well
    given = vars(parser.parse_args(argv))
    chosen = named[given["command"] or ""]
    arguments = [given[argument] for argument in chosen.usage.split()[1:]]
    return chosen, arguments, Settings(options, given)


def _add_options(
    parser: argparse.ArgumentParser, options: Sequence[Option], default: str | None
) -> None:
    for option in options:
        flag, _, metavar = option.usage.partition(" ")
        more: dict[str, Any] = {"action": "store_true"}
        if metavar:
            more = {"action": "append" if option.many else "store", "metavar": metavar}
        facts = [option.variable] * bool(option.variable)
        facts += [f"default {option.default}"] * bool(option.default)
        words = f"{option.help} ({', '.join(facts)})" if facts else option.help
        parser.add_argument(flag, dest=option.name, default=default, help=words, **more)


# ---------------------------------------------------------------- checks


def port(text: str) -> int:
    """A port to listen on; 0 is any."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def own_host(text: str) -> str:
    """A name or address to listen on, which can be resolved."""
    try:
        socket.getaddrinfo(text, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{text!r} cannot be resolved ({error})") from None
    return text


def host_name(text: str) -> str:
    """A host as browsers name it in the header Host, without its port; or "*"."""
    named, alone = "", text.lower().strip("[]")
    with suppress(ValueError):
        named = urlsplit(text if "//" in text else f"//{text}").hostname or ""
    with suppress(ValueError):
        if alone == "*" or ipaddress.ip_address(alone):
            return alone
    if not re.fullmatch(r"[\w.:-]+", named, re.ASCII):
        raise ValueError(
            f"{text!r} is not the name of a host, as browsers send it (in ASCII; * is any host)"
        )
    if named != alone:
        raise ValueError(f"{text!r} is more than the name of a host; write {named}")
    return named


def web_address(text: str) -> str:
    """An absolute URL, or nothing."""
    if text and not (re.fullmatch(r"https?://[!-~]+", text) and urlsplit(text).hostname):
        raise ValueError(f"{text!r} is not an absolute http or https URL")
    return text


def header(text: str) -> str:
    """The WSGI variable of a header, or nothing."""
    if not re.fullmatch(r"[A-Za-z0-9-]*", text):
        raise ValueError(f"{text!r} is not the name of a header")
    return text and f"HTTP_{text.upper().replace('-', '_')}"
