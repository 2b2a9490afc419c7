"""The allocation matrix: which member runs on which device, in batches of how many samples (thesis, section 8.3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ABSENT = 0


@dataclass(frozen=True)
class Matrix:
    """Batch sizes by device and member; 0 means that the member is absent from the device.

    Args:
        batch_sizes: `[device][member]`, shape (D, M), D ≥ 1, M ≥ 1.

    Raises:
        ValueError: the rows differ in length, an element is negative, or a column is all zero (a member nowhere).
    """

    batch_sizes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.batch_sizes or not self.batch_sizes[0]:
            raise ValueError("a matrix has at least one device and one member")
        if len({len(row) for row in self.batch_sizes}) > 1:
            raise ValueError(f"rows of different lengths: {self.batch_sizes}")
        if any(element < 0 for row in self.batch_sizes for element in row):
            raise ValueError(f"negative batch size: {self.batch_sizes}")
        for member, column in enumerate(zip(*self.batch_sizes, strict=True)):
            if not any(column):
                raise ValueError(f"member {member} is on no device: {self.batch_sizes}")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Matrix:
        return cls(tuple(tuple(row) for row in rows))

    @property
    def devices(self) -> int:
        return len(self.batch_sizes)

    @property
    def members(self) -> int:
        return len(self.batch_sizes[0])

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """(device, member, batch size) of every worker, devices first."""
        for device, row in enumerate(self.batch_sizes):
            for member, batch_size in enumerate(row):
                if batch_size != ABSENT:
                    yield device, member, batch_size

    def workers_of(self, member: int) -> int:
        """On how many devices a member runs."""
        return sum(row[member] != ABSENT for row in self.batch_sizes)

    @property
    def divided(self) -> bool:
        """Whether a member runs on several devices."""
        return any(self.workers_of(member) > 1 for member in range(self.members))

    def replaced(self, device: int, member: int, batch_size: int) -> Matrix:
        """The matrix with one element changed."""
        rows = [list(row) for row in self.batch_sizes]
        rows[device][member] = batch_size
        return Matrix.of(rows)

    def rows(self) -> list[list[int]]:
        """As JSON has it."""
        return [list(row) for row in self.batch_sizes]


def neighbours(matrix: Matrix, batch_sizes: Sequence[int]) -> tuple[Matrix, ...]:
    """All valid matrices that differ from this one in exactly one element, in order of device, member, batch size.

    Of the B+1 values of each of the D·M elements, B are other than the present one, and the one that would leave a
    column without a worker is forbidden: B·D·M - F, where F is the number of members with a single worker. The thesis
    (equation 8.2) counts the present value too: (B+1)·D·M - F.
    """
    values = (ABSENT, *batch_sizes)
    return tuple(
        matrix.replaced(device, member, value)
        for device, row in enumerate(matrix.batch_sizes)
        for member, present in enumerate(row)
        for value in values
        if value != present and not (value == ABSENT and matrix.workers_of(member) == 1)
    )


def total_matrices(devices: int, members: int, batch_sizes: int) -> int:
    """How many valid matrices there are: ((B+1)^D - 1)^M (thesis, equation 8.1)."""
    return int(((batch_sizes + 1) ** devices - 1) ** members)
