"""A publisher that is killed at any moment leaves a library without a scratch."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ensemble_core.library import Library
from ensemble_core.library.records import Claim, ModelRecord

_FORK = multiprocessing.get_context("fork")


def test_models_appear_whole_or_not_at_all(
    library: Library,
    record: Callable[..., ModelRecord],
    files: Callable[[int], dict[str, Path]],
    claim: Callable[..., Claim],
) -> None:
    prepared = [(record(seed), files(seed)) for seed in range(60)]
    for seed in range(60):
        library.claim("digits", claim(seed))
    chance = random.Random(0)

    def publish() -> None:
        for ready, sources in prepared:
            library.publish(ready, sources)

    for _ in range(20):
        publisher = _FORK.Process(target=publish)
        publisher.start()
        time.sleep(chance.uniform(0, 0.1))
        assert publisher.pid is not None
        os.kill(publisher.pid, signal.SIGKILL)
        publisher.join()
        assert Library.open(library.store).verify() == []
    publish()
    assert [model.id for model in library.models()] == [ready.id for ready, _ in prepared]
    assert library.verify() == []
