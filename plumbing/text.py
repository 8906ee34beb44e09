"""What text people may show each other: no disguises, no control characters, real addresses.

Pure functions: untrusted text in, a fault in words or the form to compare by out.
"""

from __future__ import annotations

import re
import unicodedata
from email.utils import unquote

# No control characters, no separators of lines, no zero-width spaces, and nothing that
# turns the direction of writing round: a name shows what it is. The joiners of emoji and
# of Persian are allowed. The last range is halves of surrogate pairs.
_NOT_IN_A_LINE = re.compile(
    "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\u2060\ufeff\ud800-\udfff]"
)
_NOT_IN_A_TEXT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Fillers, joiners, tags, variation selectors, soft hyphens: invisible, and so without a
# purpose where there is nothing but ASCII beside them.
_INVISIBLE = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u2061-\u2064\u206a-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_DISGUISE = re.compile(rf"(?<![^\0-\x7f])[{_INVISIBLE}]+(?![^\0-\x7f])")
_ANY_INVISIBLE = re.compile(rf"[{_INVISIBLE}\u200b\u200e\u200f\u2060\ufeff]")

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(
    r"(?=.{1,254}\Z)(?=[^@]{1,64}@)(?!.*=\?.*\?=)"  # =?utf-8?q?max?=: some servers decode that
    rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+(?![0-9]+\Z){_LABEL}"
)
_SENDER = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")


def fault_of_line(line: str) -> str | None:
    """What is wrong with the characters of a name or title, if anything."""
    found = _NOT_IN_A_LINE.search(line) or (not line.isascii() and _DISGUISE.search(line))
    return f"must not hold the character U+{ord(found[0][0]):04X}" if found else _too_marked(line)


def fault_of_text(text: str) -> str | None:
    """The same of a text, which may have line breaks and tabs."""
    found = _NOT_IN_A_TEXT.search(text)
    return f"must not hold the character U+{ord(found[0]):04X}" if found else _too_marked(text)


def _too_marked(text: str) -> str | None:
    # UAX #15 knows no language that needs more; to put them in order is quadratic.
    if not text.isascii() and "M" * 31 in "".join(
        "M" if unicodedata.combining(char) else " " for char in text
    ):
        return "must not hold more than 30 combining marks in a row"
    return None


def is_address(text: str) -> bool:
    """Whether this is one plain `local@domain` that every mail server can reach."""
    return _ADDRESS.fullmatch(text) is not None


def read_sender(text: str) -> tuple[str, str]:
    """The name, maybe empty, and the address in `Tickets <tickets@example.com>`.

    The address may be at a host without a domain. Raises ValueError if it is not that.
    """
    found = re.fullmatch(r"\s*(?:(?P<name>[^<>]*?)\s*<(?P<in>[^<>]*)>|(?P<only>\S+))\s*", text)
    name = unquote((found and found["name"]) or "").strip()
    address = (found and (found["in"] or found["only"])) or ""
    if not _SENDER.fullmatch(address) or len(name) > 100 or fault_of_line(name):
        raise ValueError(f"{text!r} is not an email address")
    return name, address


def same(one: str, other: str) -> bool:
    """Whether two texts read the same, whatever their line ends and Unicode form."""
    return one == other or _plain(one) == _plain(other)


def fold(text: str) -> str:
    """The form in which texts are searched: without regard to case, line ends, Unicode form."""
    if text.isascii():
        return _plain(text).lower()
    return unicodedata.normalize("NFC", _plain(text).casefold())


def name_key(name: str) -> str:
    """The form in which names are compared: fold() without invisible marks and double blanks."""
    return " ".join(_ANY_INVISIBLE.sub("", fold(name)).split())


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
