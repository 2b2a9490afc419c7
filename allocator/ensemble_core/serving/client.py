"""Asks a served ensemble over gRPC; samples go through shared memory where the server is on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from ensemble_core.errors import UserError
from ensemble_core.library.records import Signature
from ensemble_core.serving.errors import ServingError, UnreachableError
from ensemble_core.serving.sharedmemory import Region

Samples = npt.NDArray[Any]
Probabilities = npt.NDArray[np.float32]
Disagreement = npt.NDArray[np.float32]

# Outputs of a front model.
PROBABILITIES, DISAGREEMENT = "PROBABILITIES", "DISAGREEMENT"
FRONT = "averaging"  # backend of a front model

CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is found at once; gRPC's own backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
]
UNAVAILABLE = "StatusCode.UNAVAILABLE"  # gRPC's word for a connection that cannot be made, or is lost
SECONDS = 600.0  # for an answer, unless the caller knows better
ASK_SECONDS = 30.0  # for what needs no computing


@dataclass(frozen=True)
class Endpoint:
    """What a served ensemble takes and gives."""

    signature: Signature
    max_batch_size: int  # samples of one request at most


@contextlib.contextmanager
def connect(url: str) -> Iterator[Any]:
    """A gRPC client; every error of Triton or of the connection becomes a ServingError."""
    try:
        with grpc.InferenceServerClient(url, channel_args=CHANNEL) as client:
            yield client
    except InferenceServerException as error:
        kind = UnreachableError if error.status() == UNAVAILABLE else ServingError
        raise kind(f"{url}: {error.message()}") from error


def describe(url: str, model: str) -> Endpoint:
    """Ask the server what a front model takes.

    Raises:
        ServingError: the server or the model is not there.
        UserError: the model is none, but perhaps one of a front model's workers.
    """
    with connect(url) as client:
        metadata = client.get_model_metadata(model, client_timeout=ASK_SECONDS)
        config = client.get_model_config(model, client_timeout=ASK_SECONDS).config
    if config.backend != FRONT:
        problem = "is no ensemble that is served; the model to ask has the name of its EnsembleDeployment"
        raise UserError(f"{url}: {model}", problem)
    given, answer = metadata.inputs[0], metadata.outputs[0]
    signature = Signature(
        input_type=np.dtype(triton_to_np_dtype(given.datatype)).name,
        input_shape=tuple(given.shape[1:]),
        classes=answer.shape[-1],
    )
    return Endpoint(signature, config.max_batch_size)


def ask(url: str, model: str, samples: Samples, seconds: float = SECONDS) -> Probabilities:
    """One request with the samples in its body; ServingError if it is not answered within `seconds`."""
    with connect(url) as client:
        return _ask(client, model, samples, (PROBABILITIES,), seconds)[0]


def _ask(
    client: Any, model: str, samples: Samples, outputs: Sequence[str], seconds: float = SECONDS
) -> list[Probabilities]:
    given = grpc.InferInput("INPUT", list(samples.shape), np_to_triton_dtype(samples.dtype))
    given.set_data_from_numpy(np.ascontiguousarray(samples))
    wanted = [grpc.InferRequestedOutput(name) for name in outputs]  # who names none is given all that there are
    answer = client.infer(model, [given], outputs=wanted, client_timeout=seconds)
    return [np.asarray(answer.as_numpy(name), np.float32) for name in outputs]


class SharedRequest:
    """A request whose samples and answer lie in shared memory, with room for `capacity` samples; can be sent again."""

    def __init__(self, client: Any, region: Region, model: str, signature: Signature, capacity: int) -> None:
        self._client, self._region, self._model, self._signature = client, region, model, signature
        self.samples = region.array(signature.input_type, (capacity, *signature.input_shape))
        self.answer = region.array(np.float32, (capacity, signature.classes), self.samples.nbytes)

    def send(self, samples: int, seconds: float = SECONDS) -> Probabilities:
        """Ask about the first `samples` of `self.samples`; the answer is overwritten by the next request."""
        return self.send_for((), samples, seconds)[0]

    def send_for(self, further: Sequence[str], samples: int, seconds: float = SECONDS) -> list[Probabilities]:
        """As `send`, with further outputs, which come in the body."""
        size = samples * self.samples[:1].nbytes
        shape = [samples, *self._signature.input_shape]
        given = grpc.InferInput("INPUT", shape, np_to_triton_dtype(self.samples.dtype))
        given.set_shared_memory(self._region.name, size)
        wanted = grpc.InferRequestedOutput(PROBABILITIES)
        wanted.set_shared_memory(self._region.name, self.answer[:samples].nbytes, self.samples.nbytes)
        outputs = [wanted, *map(grpc.InferRequestedOutput, further)]
        told = self._client.infer(self._model, [given], outputs=outputs, client_timeout=seconds)
        return [self.answer[:samples], *(np.asarray(told.as_numpy(name), np.float32) for name in further)]


@contextlib.contextmanager
def shared_request(client: Any, model: str, signature: Signature, capacity: int) -> Iterator[SharedRequest]:
    """A request through shared memory; the server must see this machine's /dev/shm."""
    row = int(np.prod(signature.input_shape)) * np.dtype(signature.input_type).itemsize + 4 * signature.classes
    with Region(capacity * row) as region:
        client.register_system_shared_memory(region.name, f"/{region.name}", region.size, client_timeout=ASK_SECONDS)
        try:
            yield SharedRequest(client, region, model, signature, capacity)
        finally:
            with contextlib.suppress(InferenceServerException):  # a server that died has forgotten it
                client.unregister_system_shared_memory(region.name, client_timeout=ASK_SECONDS)


def predict(url: str, model: str, samples: Samples) -> Probabilities:
    """Probabilities float32 [N,C] of N samples, in requests of as many as the model takes.

    Raises ServingError if the server cannot answer, ValueError if the samples do not have its type and shape.
    """
    return _predict(url, model, samples, ())[0]


def predict_with_disagreement(url: str, model: str, samples: Samples) -> tuple[Probabilities, Disagreement]:
    """As `predict`, and how much the members disagree about each sample: float32 [N, 1] in nats."""
    probabilities, disagreement = _predict(url, model, samples, (DISAGREEMENT,))
    return probabilities, disagreement


def _predict(url: str, model: str, samples: Samples, further: Sequence[str]) -> list[Probabilities]:
    """Probabilities, and further outputs of one number for each sample."""
    endpoint = describe(url, model)
    signature = endpoint.signature
    if samples.dtype.name != signature.input_type or samples.shape[1:] != signature.input_shape:
        wanted = f"{signature.input_type} {['N', *signature.input_shape]}"
        raise ValueError(f"samples are {samples.dtype.name} {list(samples.shape)}; {model} takes {wanted}")
    widths = (signature.classes, *[1] * len(further))
    answers = [np.empty((len(samples), width), np.float32) for width in widths]
    size = min(len(samples), endpoint.max_batch_size)
    if size == 0:
        return answers
    with connect(url) as client, _sender(client, model, signature, size, further) as send:
        for start in range(0, len(samples), size):
            for answer, part in zip(answers, send(samples[start : start + size]), strict=True):
                answer[start : start + size] = part
    return answers


@contextlib.contextmanager
def _sender(
    client: Any, model: str, signature: Signature, capacity: int, further: Sequence[str]
) -> Iterator[Callable[[Samples], list[Probabilities]]]:
    """How to send up to `capacity` samples: through shared memory if the server can see it, else in the body."""
    with contextlib.ExitStack() as opened:
        try:
            request = opened.enter_context(shared_request(client, model, signature, capacity))
        except (InferenceServerException, OSError):
            yield lambda samples: _ask(client, model, samples, (PROBABILITIES, *further))
            return

        def send(samples: Samples) -> list[Probabilities]:
            request.samples[: len(samples)] = samples
            return request.send_for(further, len(samples))

        yield send
