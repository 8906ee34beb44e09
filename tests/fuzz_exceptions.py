"""What Schemathesis finds that is no failure of the tracker, and why.

Schemathesis loads this file as its hooks. All its checks run on all answers; dropped are
only these findings of the two that compare the request with its schema.
"""

import json
import re
from pathlib import Path

import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData

from plumbing.text import fault_of_line

DOCUMENT = json.loads(Path(__file__).parents[1].joinpath("openapi.json").read_text("utf-8"))
READ_ONLY = ("id", "created_at", "updated_at", "tickets")

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


def is_wrong_only_in_what_is_ignored(case):
    """Whether the request is valid but for what may be sent back as it was read.

    The document gives that the type with which it is read, as a generated client has no other;
    the tracker takes whatever it is.
    """
    negative = {place for place, part in case.meta.components.items() if part.mode.is_negative}
    if {place.value for place in negative} != {"body"} or not isinstance(case.body, dict):
        return False
    rest = {name: value for name, value in case.body.items() if name not in READ_ONLY}
    if isinstance(rest.get("assignees"), list):
        rest["assignees"] = [
            user.get("id")
            if isinstance(user, dict) and user.keys() <= {"id", "name", "email"}
            else user
            for user in rest["assignees"]
        ]
    operation = DOCUMENT["paths"][case.operation.path][case.method.lower()]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    whole = schema | {"components": DOCUMENT["components"]}
    return rest != case.body and Draft202012Validator(whole).is_valid(rest)


@schemathesis.check
def only_the_server_answers_by_default(context, response, case):
    """Any other status must be listed: as `default` is documented, Schemathesis takes all."""
    listed = DOCUMENT["paths"][case.operation.path][case.operation.method.lower()]["responses"]
    assert str(response.status_code) in listed or response.status_code in (405, 413, 431, 501)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether the failure counts."""
    if not isinstance(failure, (AcceptedNegativeData, RejectedPositiveData)):
        return True
    # A random If-Match is outdated, whether the rest of the request is valid or not.
    if response.status_code == 412:
        return False
    if isinstance(failure, AcceptedNegativeData):
        return not is_wrong_only_in_what_is_ignored(case)
    # A schema cannot say which keys were used, and with which body.
    if "This Idempotency-Key came with" in response.json()["detail"]:
        return False
    # Schemathesis calls a request valid whose path is, although the body, left over from the
    # case before, is not.
    if any(part.mode.is_negative for part in case.meta.components.values()):
        return False
    errors = response.json().get("errors", [])
    return not errors or not all(is_beyond_a_schema(error["detail"]) for error in errors)
