"""The one error a user sees: what is wrong, where, and what is allowed. Every command turns it into exit code 2."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)  # not frozen: Python sets the traceback of an error that leaves a context manager
class UserError(Exception):
    """Something the user gave cannot be used; nothing was written.

    Args:
        where: The file, and the field in it: `digits.yaml: spec.budgets[1].name`.
        problem: One sentence with the offending value and what is allowed.
    """

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" if self.where else self.problem
