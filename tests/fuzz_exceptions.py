"""What Schemathesis finds that is no failure of the tracker, and why.

Schemathesis loads this file as its hooks. All its checks run on all answers; dropped are
only these findings of the two that compare the request with its schema.
"""

import re

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData

from plumbing.text import fault_of_line

BEYOND_A_SCHEMA = re.compile(
    # A schema cannot say which ids exist now,
    "there is no (user|project) [0-9]+|does not exist"
    # which cursors a Link has given,
    "|is not from a Link of this list|is from a list in another order"
    # that 1.0, an integer to JSON Schema, is no id,
    "|must be an id, a whole number"
    # which characters combine with others,
    "|must not hold more than 30 combining marks in a row"
    # or which need a letter beside them to be seen. (Others that are forbidden it does say.)
    "|must not hold the character U\\+(?P<code>[0-9A-F]+)"
)


def is_beyond_a_schema(detail):
    found = BEYOND_A_SCHEMA.fullmatch(detail)
    return found and not (
        found["code"] and fault_of_line(f"\u0101{chr(int(found['code'], 16))}\u0101")
    )


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether the failure counts."""
    if not isinstance(failure, (AcceptedNegativeData, RejectedPositiveData)):
        return True
    # A random If-Match is outdated, whether the rest of the request is valid or not.
    if response.status_code == 412:
        return False
    if isinstance(failure, AcceptedNegativeData):
        return True
    # Schemathesis calls a request valid whose path is, although the body, left over from the
    # case before, is not.
    if any(part.mode.is_negative for part in case.meta.components.values()):
        return False
    errors = response.json().get("errors", [])
    return not errors or not all(is_beyond_a_schema(error["detail"]) for error in errors)
