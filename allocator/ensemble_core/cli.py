"""`ensemble`: finds the verb among the installed entry points, so that the core need not import the trainer."""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ensemble_core import __version__
from ensemble_core.errors import OutageError, UserError

VERBS = {
    "run": "run the three documents of a file on this machine",
    "validate": "check documents and name every wrong field",
    "train": "train a library of models (HPOSearch)",
    "profile": "measure what each model costs, alone on a device",
    "select": "pick ensembles under budgets (EnsembleSelection)",
    "allocate": "spread an ensemble over devices (EnsembleDeployment)",
    "plan": "plan an allocation on paper, on devices that need not be here",
    "serve": "serve an allocated ensemble with Triton",
    "render": "write the files from which a pod serves an allocated ensemble",
    "server": "run Triton on rendered files",
    "agent": "keep the models of rendered files loaded in that Triton",
    "drain": "have that Triton answer what it was asked, and take no more, before it is ended",
    "predict": "ask a served ensemble",
    "dataset": "write a split of the data set as arrays",
    "library": "list, check, extend and clean a model library",
}

FAILED, USAGE, INTERRUPTED = 1, 2, 130
UNREAD = 128 + signal.SIGPIPE
# The disk is full or may not be written: nothing that a traceback would explain.
PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Exit code 0 done, 1 failed, 2 bad input, 3 fenced by a newer attempt, 130 interrupted, 141 if nobody reads the
    output to its end, as `head` does not.
    """
    try:
        try:
            return _verb(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # now, when it can be told
    except BrokenPipeError:
        if not _unread():  # it was another pipe or connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is written at the very end
        return UNREAD


def _unread() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return bool(output.poll(0))


def _verb(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--version", "-V"):
        print(f"ensemble {__version__}")
        return 0
    if name in ("--help", "-h"):
        print(_help())
        return 0 if arguments else USAGE
    found = entry_points(group="ensemble.commands", name=name)
    if not found:
        print(f"ensemble: no verb {name!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return USAGE
    try:
        return _run(next(iter(found)), arguments[1:])
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"ensemble {name}: {place}{error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"ensemble {name}: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


def _run(entry: EntryPoint, arguments: list[str]) -> int:
    try:
        verb: Any = entry.load()
    except ModuleNotFoundError as missing:
        print(f"ensemble {entry.name}: needs the package {missing.name}, which is not installed", file=sys.stderr)
        return USAGE
    parser = argparse.ArgumentParser(prog=f"ensemble {entry.name}", description=(verb.__doc__ or "").split("\n\n")[0])
    verb.add_arguments(parser)
    try:
        return int(verb.run(parser.parse_args(arguments)))
    except UserError as error:
        print(f"ensemble {entry.name}: {error}", file=sys.stderr)
        return USAGE
    except OutageError as error:
        print(f"ensemble {entry.name}: {error}", file=sys.stderr)
        return FAILED


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    about = "Deep ensembles under a budget, from search to served answers."
    return f"usage: ensemble VERB ...\n\n{about}\n\n{verbs}\n\nensemble VERB --help tells more."


if __name__ == "__main__":
    sys.exit(main())
