"""What FastAPI and Flask take and give: Pydantic models, with the tracker's fields and rules."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

Title = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"
    ),
]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=10_000)]
Status = Literal["open", "in progress", "closed"]


class TicketIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Title
    description: Description | None = None
    project_id: int
    status: Status
    assignees: list[int] = []


class StatusIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Status


class Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project_id: int | None = None
    status: Status | None = None
    text: str = ""
    after: int | None = None  # the id to go on behind


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    email: str


class TicketOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    description: str | None
    project_id: int
    status: Status
    assignees: list[UserOut]
    created_at: datetime
    updated_at: datetime | None
