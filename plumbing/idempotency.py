"""What was answered to a creation that came with an Idempotency-Key, kept for a day.

The service has a table `answers` with the columns key, request, answer and answered_at.
"""

from __future__ import annotations

from typing import Any

from .worker import later

DAY = 24 * 3600.0  # seconds


def recall(conn: Any, key: str) -> tuple[str, str] | None:
    """What was asked within a day with this key, and what was answered."""
    sql = "SELECT request, answer FROM answers WHERE key = :key AND answered_at > :yesterday"
    row: tuple[str, str] | None
    row = conn.execute(sql, {"key": key, "yesterday": later(conn.now, -DAY)}).fetchone()
    return row


def remember(conn: Any, key: str, request: str, answer: str) -> None:
    """Have recall() find the answer; some of those that are too old are forgotten."""
    sql = """
        DELETE FROM answers
         WHERE key IN (SELECT key FROM answers WHERE answered_at <= :yesterday LIMIT 10)
            OR key = :key"""
    conn.execute(sql, {"key": key, "yesterday": later(conn.now, -DAY)})
    sql = "INSERT INTO answers (key, request, answer, answered_at)"
    values = {"key": key, "request": request, "answer": answer, "now": conn.now}
    conn.execute(f"{sql} VALUES (:key, :request, :answer, :now)", values)
