"""What a small service trusts: requests, a server, engines, SMTP and text, knowing no domain.

Each file could serve another service unchanged, and none imports the core. What an engine is
stands in engine.py; its errors stand here.
"""

from __future__ import annotations


class Unavailable(Exception):
    """The database cannot be read or written now. Carries sentences; `advice` is what follows.

    `damaged` says that what is stored is at fault, maybe one row only, and not the access to it;
    `busy`, that others were at it for too long.
    """

    advice = "Nothing was changed; trying again is safe."

    def __init__(self, sentences: str, damaged: bool = False, busy: bool = False) -> None:
        super().__init__(sentences)
        self.damaged, self.busy = damaged, busy


class Unknown(Unavailable):
    """The server was lost while it committed, and cannot be asked."""

    advice = (
        "It is not known whether this was saved; look before you repeat it, or repeat it with"
        " the same Idempotency-Key."
    )
