"""The wording of the mail, which all peers share: to the letter that of the tracker."""

import uuid
from collections.abc import Iterable


def subject(ticket_id: int, title: str) -> str:
    return f"[Ticket #{ticket_id}] {title}"


def body(
    ticket_id: int,
    title: str,
    status: str,
    assignees: Iterable[str],
    description: str | None,
    project: str,
    status_before: str | None = None,
) -> str:
    """About a new ticket or, if there is a `status_before`, about the change of its status."""
    lines = [
        f"Ticket #{ticket_id} {'updated' if status_before else 'created'}:",
        f'Title: "{title}"',
        f'Status: "{status.capitalize()}"',
        "",
        f"Current assignees: {', '.join(assignees) or 'none'}.",
        "",
    ]
    if status_before:
        change = f'Status: "{status_before.capitalize()}" -> "{status.capitalize()}"'
        lines += ["What changed:", f"  {change}", ""]
    elif description:
        lines += ["Description:", description, ""]
    return "\n".join([*lines, "-- ", f"Project: {project}"]) + "\n"


def message_id() -> str:
    return f"<{uuid.uuid4()}@localhost>"
