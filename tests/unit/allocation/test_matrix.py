from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.allocation.matrix import Matrix, neighbours, total_matrices

SIZES = (8, 32)


def every_matrix(devices: int, members: int, batch_sizes: tuple[int, ...]) -> list[Matrix]:
    found = []
    for values in product((0, *batch_sizes), repeat=devices * members):
        rows = tuple(values[d * members : (d + 1) * members] for d in range(devices))
        if all(any(column) for column in zip(*rows, strict=True)):
            found.append(Matrix(rows))
    return found


def matrices(batch_sizes: tuple[int, ...] = SIZES) -> st.SearchStrategy[Matrix]:
    def of(shape: tuple[int, int]) -> st.SearchStrategy[Matrix]:
        row = st.tuples(*[st.sampled_from((0, *batch_sizes))] * shape[1])
        valid = st.tuples(*[row] * shape[0]).filter(lambda rows: all(map(any, zip(*rows, strict=True))))
        return valid.map(Matrix)

    return st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(of)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "at least one device"),
        (((),), "at least one device"),
        (((8, 0), (8,)), "different lengths"),
        (((8, -8),), "negative"),
        (((8, 0), (8, 0)), "member 1 is on no device"),
    ],
)
def test_an_invalid_matrix_is_refused(rows: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matrix(rows)


def test_entries_are_the_workers_devices_first() -> None:
    matrix = Matrix(((8, 0, 32), (8, 8, 0)))
    assert list(matrix.entries()) == [(0, 0, 8), (0, 2, 32), (1, 0, 8), (1, 1, 8)]
    assert [matrix.workers_of(member) for member in range(3)] == [2, 1, 1]
    assert (matrix.devices, matrix.members) == (2, 3)


@pytest.mark.parametrize(
    ("devices", "members", "sizes"), [(1, 1, (8,)), (2, 2, (8, 32)), (3, 1, (8, 32)), (2, 3, (8,))]
)
def test_as_many_matrices_as_equation_8_1_says(devices: int, members: int, sizes: tuple[int, ...]) -> None:
    assert len(every_matrix(devices, members, sizes)) == total_matrices(devices, members, len(sizes))


def test_the_example_of_the_thesis_has_1_3e31_matrices() -> None:
    assert total_matrices(devices=5, members=8, batch_sizes=5) == pytest.approx(1.3e31, rel=0.05)


@pytest.mark.parametrize("every_column_single", [True, False])
def test_the_example_of_the_thesis_has_232_to_240_neighbours(every_column_single: bool) -> None:
    """Equation 8.2 counts the present value of each of the D·M elements too, 40 of them here."""
    sizes = (8, 16, 32, 64, 128)
    second = [0] * 8 if every_column_single else [8] * 8
    matrix = Matrix.of([[8] * 8, second, *[[0] * 8] * 3])
    found = len(neighbours(matrix, sizes)) + matrix.devices * matrix.members
    forbidden = 8 if every_column_single else 0
    assert found == (len(sizes) + 1) * 5 * 8 - forbidden
    assert found == (232 if every_column_single else 240)


@given(matrices())
def test_neighbours_are_all_valid_matrices_that_differ_in_one_element(matrix: Matrix) -> None:
    def differing(other: Matrix) -> int:
        return sum(
            a != b
            for mine, theirs in zip(matrix.batch_sizes, other.batch_sizes, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )

    found = neighbours(matrix, SIZES)
    assert len(set(found)) == len(found)
    if matrix.devices * matrix.members <= 6:
        everything = every_matrix(matrix.devices, matrix.members, SIZES)
        assert set(found) == {other for other in everything if differing(other) == 1}
    else:
        assert all(differing(other) == 1 for other in found)
