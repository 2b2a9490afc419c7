"""The two errors a user sees: something to set right (exit code 2), or something that may work again (exit code 1)."""

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


class OutageError(Exception):
    """What the work needs, storage for example, does not answer for now; the same command continues later."""
