"""In the client's pod: the answers of the service against the mean of the members' stored predictions.

usage: client.py SAMPLES LIBRARY MEMBERS, with the members as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-5


def main(samples: str, library: str, members: str) -> None:
    answers, labels = (np.load(Path(samples) / f"{name}.npy") for name in ("answers", "labels"))
    assert (labels == load(f"{library}/splits/heldout/labels.npy")).all(), "the samples are not those of the library"
    expected = sum(member["weight"] * predictions(library, member["modelId"]) for member in json.loads(members))
    difference = float(np.abs(answers - expected).max())
    error = 100 * float((answers.argmax(axis=1) != labels).mean())
    print(f"{len(answers)} answers, error {error:.2f} %, largest difference {difference:.1e}")
    assert difference <= TOLERANCE, f"more than {TOLERANCE}"


def predictions(library: str, model: str) -> npt.NDArray[np.float64]:
    """What a model said of the held-out samples when it was trained."""
    with fsspec.open(f"{library}/models/{model}/record.json") as file:
        path = json.load(file)["files"]["predictions-heldout.npy"]["path"]
    return load(f"{library}/{path}").astype(np.float64)


def load(url: str) -> npt.NDArray[Any]:
    with fsspec.open(url, "rb") as file:
        content: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    return content


if __name__ == "__main__":
    main(*sys.argv[1:])
