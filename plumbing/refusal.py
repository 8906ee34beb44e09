"""Why a message did not go out, and what a mail server means by a refusal: whom it is about.

Learned from the replies of Postfix, Exim, Sendmail, OpenSMTPD, Exchange, Gmail, Amazon SES
and others; tests/test_refusals.py has them.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Failure(Exception):
    """A message did not go out. `about` says whom the reason concerns:

    "recipient" and "message": this will never be taken. "us": nothing is taken from us, for
    a wrong password, a missing login or our sender. "unclear": refused for good, but for whom?
    "later": not now. "connection": it was lost in the middle. "uncertain": it was lost after
    all was sent, so the server may have the message. "server": it cannot be reached at all.
    """

    def __init__(self, about: str, words: str) -> None:
        super().__init__("".join(char if char.isprintable() else " " for char in words)[:300])
        self.about = about


class Reply(NamedTuple):
    """What a server says to a command."""

    code: int
    text: str


# By the enhanced status (RFC 3463, 4954, 7372, and what Exchange adds), where that is clear.
_STATUSES = {
    "us": r"5\.(1\.[78]|7\.(2[03-7]|3|8|11|14|57|60|64|509|515)|2\.252)",
    "recipient": r"5\.(1\.([1346]|10)|2\.[1-24]|4\.(1|310)|7\.(5|12\d|13\d))",
    "message": r"5\.(2\.3|3\.4|6\.\d+)",
}
# By words, in this order, where the status says nothing or is missing: at which steps they
# count, and whom they are about.
_WORDS = [
    (r"resolver\.rst", None, "recipient"),
    (r"\bspf\b|dkim|dmarc|unauthenticated", None, "us"),
    (r"recipient (address )?(is )?(rejected|refused|invalid)(?!.*(policy|rate|limit))", None,
     "recipient"),
    (r"sender|send ?as|sending (is )?(paused|suspended|domain)|not owned|return.?path", None, "us"),
    (r"mailbox .*(unavailable|not found)|mailbox (is )?full|mailbox (storage )?quota exceeded"
     r"|invalid mailbox|n[o']t have an? \S* ?account"
     r"|(no such|unknown) (user|mailbox|recipient)\b|(user|mailbox|recipient) (unknown|not local)",
     ".", "recipient"),
    (r"from (address|header|domain)|mail from|disallowed as|ses:\S+", None, "us"),
    (r"authenticat|smtp auth|credential|log ?in|starttls|password", None, "us"),
    (r"encryption (is )?(required|needed)|not verified|\b(helo|ehlo)\b", None, "us"),
    (r"not authori[sz]ed to send|(allowed|permitted) to send", None, "us"),
    (r"relay|block|policy|reputation|spamhaus|rbl|reverse|\bptr\b|\brate\b|limit|too many|\bip\b"
     r"|client host|access denied|(sending|daily|outgoing)[\w ]* quota|unsolicited|suspicious"
     r"|try again|temporar", None, "unclear"),
    (r"recipient|user|(?<!command )unknown(?! command| error)|no such|(does not|doesn't) exist"
     r"|mailbox|quota|(?<!system )storage|invalid address|unrout|undeliverable|disabled|inactive"
     r"|suspended|no longer|not our customer|account", "RCPT", "recipient"),
    (r"too (big|large|long)|size|content|virus|infected|malware|spam|attachment|header"
     r"|line length|message (was |is )?(rejected|refused)", "DATA .", "message"),
]  # fmt: skip


def whom(step: str, reply: Reply) -> str:
    """Whom a refusal is about, by what it means, and not by the step alone.

    `step` is the command, "." after the data: Postfix reports a bad sender at RCPT, Exchange
    after the data. One of "recipient", "message", "us", "unclear"; for 4xx "later", for 421
    "connection".
    """
    if reply.code // 100 == 4:
        return "connection" if reply.code == 421 else "later"
    if step == "AUTH" or reply.code in (530, 534, 535, 538):
        return "us"
    found = re.match(r"5\.\d{1,3}\.\d{1,3}\b", reply.text)
    status = found[0] if found else ""
    for about, pattern in _STATUSES.items():
        if re.fullmatch(pattern, status):
            return about
    if reply.code == 552 and step != "RCPT":
        return "message"
    words = re.sub(r"<[^>]*>|\S+@\S+|https?://\S+", " ", reply.text[:1000])  # names mean nothing
    for pattern, steps, about in _WORDS:
        if (steps is None or step in steps.split()) and re.search(pattern, words, re.IGNORECASE):
            return about
    return "us" if step == "MAIL" else "unclear"
