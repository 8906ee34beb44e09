"""What a small service trusts: requests, a server, engines, SMTP and text, knowing no domain.

Each file could serve another service unchanged, and none imports the core. An engine is
a Database with read(), write(), batch(), try_write(), may_deliver(), backup() and close(), which
hands out Connections. Its error is that of this file.
"""

from __future__ import annotations


class Unavailable(Exception):
    """The database cannot be read or written now; nothing was changed. Carries sentences.

    `damaged` says that what is stored is at fault, maybe one row only, and not the access to it;
    `busy`, that others were at it for too long.
    """

    def __init__(self, sentences: str, damaged: bool = False, busy: bool = False) -> None:
        super().__init__(sentences)
        self.damaged, self.busy = damaged, busy
