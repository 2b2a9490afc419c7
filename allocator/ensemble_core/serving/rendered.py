"""A folder that an ensemble is served from without its library: written by `render`, run by `server`, kept by `agent`.

    plan.json        what is served; comes last, so that a folder with it is complete
    control-key      opens Triton's repository API to who can read this file
    weights/<sha256>.onnx
    models/          Triton's model repository; its ONNX files are hard links to those in weights/
    backends/        made by `server`, for the Triton that it finds

Any process that has the folder can serve it: no ONNX file is a link to outside.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ensemble_core.allocation.plan import Plan
from ensemble_core.errors import UserError
from ensemble_core.frozen import Frozen
from ensemble_core.library.parsing import parse
from ensemble_core.library.records import Sha256
from ensemble_core.library.store import sha256_of
from ensemble_core.serving import installation, repository

PLAN, KEY, WEIGHTS, MODELS, BACKENDS = "plan.json", "control-key", "weights", "models", "backends"
KEY_LENGTH = 64  # hexadecimal digits
KEY_MODE = 0o640  # the agent is another user of the same group


class Rendered(Frozen):
    """`plan.json`: what is served, and what it comes from."""

    spec_hash: Sha256  # of the bytes of the documents' file
    selection: Sha256  # digest of its result
    allocation: Sha256  # likewise
    plan: Plan


def open_to_group() -> None:
    """Let this process's group change what it writes from now on.

    Each of the three commands may correct what another has written, and need not be the same user: a server that was
    the agent's user could read the agent's token from /proc.
    """
    os.umask(0o002)


def write(folder: Path, content: Rendered) -> Rendered:
    """Write the folder, or what a write that was cut off has left to do; returns it with the paths of its files.

    Weights are hard links to the plan's files, or copies; either way what is there afterwards has the members' digests.

    Raises:
        UserError: the folder holds something else, or a file is not what its digest says.
    """
    _claim(folder)
    (folder / PLAN).unlink(missing_ok=True)
    (folder / WEIGHTS).mkdir(exist_ok=True)
    own = _with_own_weights(folder, content)
    for member, copy in zip(content.plan.members, own.plan.members, strict=True):
        _take(Path(member.onnx), Path(copy.onnx), member.sha256)
    repository.write(own.plan, folder / MODELS)
    _keep_only(folder / MODELS, own.plan.models)
    _keep_only(folder / WEIGHTS, {Path(member.onnx).name for member in own.plan.members})
    _write_plan(folder, own)
    return own


def read(folder: Path) -> Rendered:
    """What the folder holds; UserError if nothing was rendered there, or it was not finished."""
    path = folder / PLAN
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(str(folder), f"holds no rendered ensemble (no {PLAN}): run `ensemble render` first") from None
    return _with_own_weights(folder, parse(Rendered, data, str(path)))


def control_key(folder: Path) -> str:
    """The folder's key; UserError if it has none."""
    key = _text(folder / KEY)
    if len(key) != KEY_LENGTH:
        raise UserError(str(folder / KEY), "is missing or too short: run `ensemble render` again")
    return key


def prepare(folder: Path, cores: Sequence[int], shared: bool) -> Rendered:
    """Make the folder ready for a server that may use these cores: its configurations, and the backends.

    `shared` tells whether other pods may use them too. UserError if nothing was rendered there, or the plan needs more
    cores.
    """
    content = read(folder)
    try:
        ready = content.model_copy(update={"plan": content.plan.on_cores(cores, shared)})
    except ValueError as error:
        raise UserError(str(folder / PLAN), str(error)) from None
    if ready != content:
        _write_plan(folder, ready)
    repository.write(ready.plan, folder / MODELS)
    shutil.rmtree(folder / BACKENDS, ignore_errors=True)
    (folder / BACKENDS).mkdir()
    installation.prepare_backends(folder / BACKENDS)
    return ready


def check_weights(plan: Plan, models: Iterable[str]) -> None:
    """UserError unless the files of these models are what their digests say."""
    wanted = {worker.member for worker in plan.workers if plan.model_name(worker) in models}
    for member in (plan.members[index] for index in sorted(wanted)):
        if not _is(Path(member.onnx), member.sha256):
            raise UserError(member.onnx, "is not what its digest says: delete the pod, so that it is rendered again")


def _claim(folder: Path) -> None:
    """Make the folder, or see that what is in it comes from here; the key tells."""
    if folder.exists() and not folder.is_dir():
        raise UserError(str(folder), "is a file; a folder is needed")
    folder.mkdir(parents=True, exist_ok=True)
    if len(_text(folder / KEY)) == KEY_LENGTH:
        return
    if any(path.name not in (KEY, f".{KEY}") for path in folder.iterdir()):
        raise UserError(str(folder), "is not empty, and holds no rendered ensemble; give another folder")
    scratch = folder / f".{KEY}"
    scratch.touch(mode=KEY_MODE)
    scratch.write_text(secrets.token_hex(KEY_LENGTH // 2))
    scratch.replace(folder / KEY)


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _with_own_weights(folder: Path, content: Rendered) -> Rendered:
    """The same with the folder's files, wherever it is mounted now."""
    members = tuple(
        member.model_copy(update={"onnx": str((folder / WEIGHTS / f"{member.sha256}.onnx").absolute())})
        for member in content.plan.members
    )
    return content.model_copy(update={"plan": content.plan.model_copy(update={"members": members})})


def _take(source: Path, target: Path, sha256: str) -> None:
    if _is(target, sha256):
        return
    scratch = target.with_name(f".{target.name}")
    scratch.unlink(missing_ok=True)
    try:
        scratch.hardlink_to(source)
    except OSError:  # another file system, or another user's file
        shutil.copyfile(source, scratch)
    if not _is(scratch, sha256):
        scratch.unlink()
        raise UserError(str(source), f"is not what its digest says: {sha256}")
    scratch.replace(target)


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_of(file) == sha256


def _keep_only(folder: Path, names: Iterable[str]) -> None:
    for path in [path for path in folder.iterdir() if path.name not in set(names)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_plan(folder: Path, content: Rendered) -> None:
    scratch = folder / f".{PLAN}"
    scratch.write_text(content.model_dump_json(by_alias=True, indent=1))
    scratch.replace(folder / PLAN)
