"""Models that no search trained: an ONNX file with its predictions, or predictions alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.engines import DEFAULT, Place, loader
from ensemble_core.errors import UserError
from ensemble_core.library.inputs import REPRODUCED, check_samples, drawn
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.parsing import load_array, load_probabilities
from ensemble_core.library.records import SPLITS, Header, KeptInputs, ModelRecord, Origin, Signature, Split
from ensemble_core.library.splits import LabelledIds, outside
from ensemble_core.library.store import sha256_of
from ensemble_core.metrics import metrics

_BATCH = 64  # samples of a call
_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


@dataclass(frozen=True)
class Import:
    """The user's files of one model."""

    predictions: dict[Split, Path]
    onnx: Path | None = None
    family: str = "imported"


def check_import(model: Import, header: Header) -> None:
    """Raise a UserError that names the file unless the model fits a library with this header."""
    for split, path in model.predictions.items():
        _readable(path)
        load_probabilities(path, (header.samples[split], header.signature.classes), str(path))
    if model.onnx is not None:
        _readable(model.onnx)
        check_onnx(model.onnx, header.signature)


def add(library: Library, model: Import) -> ModelRecord:
    """Publish a checked import; a model that is there already is left as it is.

    The id is the beginning of the SHA-256 of the ONNX file, or of the validation predictions where there is none.
    """
    shape = (library.header.samples["validation"], library.header.signature.classes)
    predictions = load_probabilities(model.predictions["validation"], shape, str(model.predictions["validation"]))
    record = ModelRecord(
        id=sha256_of(model.onnx or model.predictions["validation"])[:16],
        family=model.family,
        hyperparameters={},
        validation=metrics(predictions, library.labels("validation")),
        parameters=count_parameters(model.onnx) if model.onnx else None,
        origin=Origin(),
        servable=model.onnx is not None,
        files={},
    )
    files = {f"predictions-{split}.npy": model.predictions[split] for split in SPLITS}
    if model.onnx:
        files[SERVABLE] = model.onnx
    return publish_same(library, record, files)


def publish_same(library: Library, record: ModelRecord, files: dict[str, Path]) -> ModelRecord:
    """Publish; UserError if the library has another model of this id."""
    stored = library.publish(record, files)
    for key, source in files.items():
        if key not in stored.files or stored.files[key].sha256 != sha256_of(source):
            raise UserError(library.store.url, f"has another model {record.id} already: its {key} differs")
    return stored


def load_labels(path: Path, classes: int) -> NDArray[np.int64]:
    """Labels (N,) of a `.npy` file of any integer type."""
    _readable(path)
    labels = load_array(path, str(path))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(str(path), f"is {labels.dtype} {labels.shape}; it must be integers (N,), N ≥ 1")
    if (wrong := outside(labels, classes)) is not None:
        raise UserError(str(path), f"label {labels[wrong]} of sample {wrong} is outside the classes 0 to {classes - 1}")
    return labels.astype(np.int64)


def add_inputs(library: Library, path: Path) -> KeptInputs:
    """Keep samples of the validation split from a `.npy` file that has all of them in the order of the labels.

    UserError that names the file, and nothing is written, unless they are such as the library's models take, and one
    of these answers to them what its predictions say.
    """
    _readable(path)
    samples, header = load_array(path, str(path)), library.header
    check_samples(samples, header.samples["validation"], header, str(path))
    _check_reproduced(library, samples, path)
    return library.keep_inputs(samples, str(path))


def _check_reproduced(library: Library, samples: NDArray[Any], path: Path) -> None:
    """By one model, where there is one; every other is checked before an engine is judged with it."""
    record = next((model for model in library.models() if SERVABLE in model.files), None)
    if record is None:
        return
    rows = drawn(len(samples), samples[:1].nbytes)
    model = loader(DEFAULT)(library.file(record, SERVABLE), Place(1, (), None, _BATCH))
    answers = np.concatenate([model.run(samples[some]) for some in np.array_split(rows, -(-len(rows) // _BATCH))])
    distances = np.abs(answers - library.predictions(record, "validation")[rows]).max(axis=1)
    if not (distances <= REPRODUCED).all():
        worst = int(rows[int(np.argmax(np.nan_to_num(distances, nan=np.inf)))])
        raise UserError(
            str(path),
            f"does not go with the library's predictions: {record.id} answers to sample {worst} by up to "
            f"{distances.max():.2g} otherwise ({REPRODUCED:g} is allowed); are the samples in the order of the labels, "
            "and as the models take them?",
        )


def numbered(labels: NDArray[np.int64]) -> LabelledIds:
    """A split whose samples are named 0 … N-1."""
    return LabelledIds(ids=np.arange(len(labels)).astype(np.str_), labels=labels)


def check_onnx(path: Path, signature: Signature) -> None:
    """Raise a UserError unless ONNX Runtime loads the file and it has the signature and gives probabilities."""
    import onnxruntime

    _graph(path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types, none exported
        raise UserError(str(path), f"ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != ["INPUT"] or "PROBABILITIES" not in [o.name for o in outputs]:
        given = f"{[i.name for i in inputs]} and {[o.name for o in outputs]}"
        raise UserError(str(path), f"must have the input INPUT and the output PROBABILITIES, not {given}")
    if inputs[0].type != _ONNX_TYPES[signature.input_type] or not _fits(inputs[0].shape, signature.input_shape):
        wanted = f"{signature.input_type} [N, {', '.join(map(str, signature.input_shape))}]"
        raise UserError(str(path), f"INPUT is {inputs[0].type} {inputs[0].shape}, the library's models take {wanted}")
    _check_answer(session, path, signature)


def _check_answer(session: Any, path: Path, signature: Signature) -> None:
    samples = np.zeros((2, *signature.input_shape), signature.input_type)
    try:
        answer = session.run(["PROBABILITIES"], {"INPUT": samples})[0]
    except Exception as error:  # as above
        raise UserError(str(path), f"ONNX Runtime cannot run it: {str(error).splitlines()[0]}") from error
    if answer.dtype != np.float32 or answer.shape != (2, signature.classes):
        told = f"{answer.dtype} {list(answer.shape)} for 2 samples"
        raise UserError(str(path), f"PROBABILITIES is {told}; it must be float32 [2, {signature.classes}]")
    if not np.allclose(answer.sum(axis=1), 1, atol=1e-3) or (answer < 0).any():
        raise UserError(str(path), "PROBABILITIES is no probability distribution; is the softmax missing?")


def _fits(shape: list[Any], sample: tuple[int, ...]) -> bool:
    """Whether a graph's input takes any number of samples of a shape; a name stands for a free dimension."""
    if len(shape) != 1 + len(sample) or isinstance(shape[0], int):
        return False
    return all(not isinstance(given, int) or given == size for given, size in zip(shape[1:], sample, strict=True))


def count_parameters(path: Path) -> int:
    """Number of floating point values among the initializers of an ONNX file."""
    import onnx

    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return sum(int(np.prod(t.dims)) for t in _graph(path).initializer if t.data_type in floating)


def _graph(path: Path) -> Any:
    """The graph of a self-contained ONNX file."""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's, of several types
        raise UserError(str(path), f"is no ONNX file: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(graph)):
        raise UserError(str(path), "keeps weights in other files; save it as one file")
    return graph


def _tensors(graph: Any) -> Iterator[Any]:
    """All initializers and constants, those of inner graphs too."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _readable(path: Path) -> None:
    if not path.is_file():
        raise UserError(str(path), "is missing")
