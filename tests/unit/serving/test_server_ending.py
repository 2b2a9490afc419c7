from __future__ import annotations

import pytest

from ensemble_core.serving import launch
from ensemble_core.serving.server import how_it_ended

LOCKED = """I1122 03:50:45.410668 8230 started
terminate called after throwing an instance of 'boost::interprocess::lock_exception'
  what():  boost::interprocess::lock_exception
Signal (6) received.
"""


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (-9, "I1122 nothing\n", "the server was killed by signal 9; it is started again"),
        (
            -9,
            f"I1122 nothing\n{launch.STUCK}\n",
            "the server was killed by signal 9: a model's process had died, and it waited for that process with a load "
            "or a call; it is started again",
        ),
        (
            -6,
            LOCKED,
            "the server was killed by signal 6: a model's process had died or stood still in a call; "
            "it is started again",
        ),
    ],
)
def test_why_a_server_ended_is_told_as_far_as_its_log_knows(code: int, log: str, told: str) -> None:
    assert how_it_ended(code, log) == told
