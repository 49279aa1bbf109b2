"""What is wrong with a request, in the words a user can act on: field, value, limit, remedy.

Raised by ``store.images`` and ``store.admission``, shown by the server as a problem document and by the worker as the message of a
failed job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Value = str | int | float | bool | list[str] | list[int] | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``field`` is the dotted path in the spec ("budget.limit"), ``value`` what was given, ``limit`` what would be allowed (None where no
    number or list says it), ``remedy`` what to do, ``message`` the whole in one sentence.
    """

    field: str
    value: Value
    limit: Value
    remedy: str
    message: str


class InvalidSpec(ValueError):  # noqa: N818 - named for what it says
    """A spec that can't be carried out as it stands; ``problems`` holds everything found, at least one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in self.problems))
