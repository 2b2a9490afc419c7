"""Ask a served ensemble for the probabilities of samples in an .npy file."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble_core.errors import UserError
from ensemble_core.serving.client import describe, predict, predict_with_disagreement
from ensemble_core.serving.errors import ServingError, UnreachableError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, metavar="HOST:PORT", help="gRPC endpoint of the server")
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the EnsembleDeployment")
    parser.add_argument("--input", required=True, type=Path, metavar="X.npy", help="raw samples, [N, …]")
    parser.add_argument("--output", required=True, type=Path, metavar="Y.npy", help="probabilities, float32 [N, C]")
    parser.add_argument(
        "--disagreement", type=Path, metavar="U.npy", help="how much the members disagree in nats, float32 [N]"
    )


def run(arguments: argparse.Namespace) -> int:
    _check_url(arguments.url)
    samples = _read(arguments.input)
    _check_files(arguments)
    try:
        signature = describe(arguments.url, arguments.model).signature
        _check(arguments.input, samples, signature.input_type, signature.input_shape)
        answers = _answers(arguments, samples)
    except ServingError as error:
        hint = "; --url must be the gRPC endpoint of a server" if isinstance(error, UnreachableError) else ""
        print(f"ensemble predict: {error}{hint}", file=sys.stderr)
        return 1
    for path, answer in answers.items():
        with open(path, "wb") as file:  # np.save would append .npy to another name
            np.save(file, answer)
    probabilities = answers[arguments.output]
    print(f"{len(probabilities)} samples, {probabilities.shape[1]} classes: {arguments.output}")
    return 0


def _check_url(url: str) -> None:
    """UserError unless it is HOST:PORT."""
    found = re.fullmatch(r"(\[[^\s/\[\]]+\]|[^\s:/\[\]]+):(\d{1,5})", url)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise UserError("--url", f"{url!r} must be HOST:PORT of a gRPC endpoint, such as 127.0.0.1:8001")


def _check_files(arguments: argparse.Namespace) -> None:
    """UserError for a file that cannot be written, or that is named twice."""
    given = {"--input": arguments.input, "--output": arguments.output, "--disagreement": arguments.disagreement}
    seen: dict[Path, str] = {}
    for option, file in given.items():
        if file is None:
            continue
        if not file.absolute().parent.is_dir():
            raise UserError(option, f"there is no folder {file.absolute().parent}")
        if file.is_dir():
            raise UserError(option, f"{file} is a folder; give a file")
        if (other := seen.setdefault(file.resolve(), option)) != option:
            raise UserError(option, f"{file} is the file of {other}; give another")


def _answers(arguments: argparse.Namespace, samples: npt.NDArray[Any]) -> dict[Path, npt.NDArray[np.float32]]:
    """What goes to which file."""
    if arguments.disagreement is None:
        return {arguments.output: predict(arguments.url, arguments.model, samples)}
    probabilities, disagreement = predict_with_disagreement(arguments.url, arguments.model, samples)
    return {arguments.output: probabilities, arguments.disagreement: disagreement[:, 0]}


def _read(path: Path) -> npt.NDArray[Any]:
    """The array in a file, memory-mapped; UserError if there is none."""
    try:
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"--input {path}", f"cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        # NumPy takes whatever it does not know for a pickle, and says so at length.
        told = "" if "pickle" in str(error) else f": {error}"
        raise UserError(f"--input {path}", f"is not a readable .npy file of numbers{told}") from error
    if not isinstance(samples, np.ndarray):
        samples.close()
        raise UserError(f"--input {path}", "is an archive of arrays; one .npy file is needed")
    return samples


def _check(path: Path, samples: npt.NDArray[Any], dtype: str, shape: tuple[int, ...]) -> None:
    if samples.dtype.name != dtype:
        raise UserError(f"--input {path}", f"the samples are {samples.dtype.name}; the model takes {dtype}")
    if samples.shape[1:] != shape or samples.ndim != len(shape) + 1:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise UserError(f"--input {path}", f"the samples have shape {list(samples.shape)}; the model takes [{wanted}]")
