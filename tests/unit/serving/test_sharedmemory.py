from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ensemble_core.serving import sharedmemory
from ensemble_core.serving.backends.averaging.regions import Region as Mapping
from ensemble_core.serving.backends.averaging.regions import Regions, parse
from ensemble_core.serving.sharedmemory import FOLDER, Region

MAPS = """\
55d0c0000000-55d0c0001000 r-xp 00000000 08:01 123                        /usr/bin/python3
7f1000000000-7f1000100000 rw-s 00001000 00:19 42                         /dev/shm/mine
7f1000100000-7f1000200000 rw-p 00000000 00:19 43                         /dev/shm/private
7f1000200000-7f1000300000 rw-s 00000000 00:19 44                         /dev/shm/gone (deleted)
7f1000300000-7f1000400000 rw-p 00000000 00:00 0
"""


def test_only_shared_mappings_with_a_name_are_regions():
    assert parse(MAPS) == [Mapping(0x7F1000000000, 0x7F1000100000, 0x1000, "mine")]


def test_an_array_is_found_in_its_region():
    regions = Regions()
    with Region(10_000) as region:
        array = region.array("uint8", (10, 100), offset=1000)
        assert regions.find(array) == (region.name, 1000)
        assert regions.find(array[3:7]) == (region.name, 1300)
        assert (FOLDER / region.name).stat().st_size == 10_000


def test_an_array_elsewhere_is_not_found():
    with pytest.raises(LookupError, match="not in shared memory"):
        Regions().find(np.zeros(10))


def test_a_region_holds_arrays_and_leaves_no_name():
    with Region(100) as region:
        first, second = region.array("float32", (2, 5)), region.array("uint8", (60,), 40)
        first[:] = 1
        second[:] = 7
        assert (FOLDER / region.name).read_bytes() == first.tobytes() + second.tobytes()
    assert not (FOLDER / region.name).exists()


def test_sweeping_removes_regions_with_a_prefix_only():
    prefix, other = sharedmemory.new_prefix(), sharedmemory.new_prefix()
    (FOLDER / f"{prefix}a").touch()
    (FOLDER / f"{other}a").touch()
    sharedmemory.sweep(prefix)
    assert not (FOLDER / f"{prefix}a").exists()
    assert (FOLDER / f"{other}a").exists()
    sharedmemory.sweep(other)


def test_what_the_dead_left_is_removed_and_what_the_living_have_is_kept(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = FOLDER / f"{sharedmemory.new_prefix()}mine"
    left = FOLDER / mine.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    foreign = FOLDER / "ensemble-1-1-of-another-namespace"
    for path in (mine, left, foreign):
        path.touch()
    sharedmemory.sweep_dead()
    assert [path.exists() for path in (mine, left, foreign)] == [True, False, True]
    mine.unlink()
    foreign.unlink()

    remove = sharedmemory._remove_own

    def remove_after_another_did(path):
        path.unlink()
        remove(path)

    left.touch()
    with monkeypatch.context() as patched:
        patched.setattr(sharedmemory, "_remove_own", remove_after_another_did)
        sharedmemory.sweep_dead()
    assert not left.exists()

    (tmp_path / left.name / "models").mkdir(parents=True)
    sharedmemory.sweep_dead(tmp_path)
    assert list(tmp_path.iterdir()) == []
