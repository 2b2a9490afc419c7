"""How to ask the endpoint: commands and code that run as they stand."""

from __future__ import annotations

import json
import math
import shlex
from urllib.parse import quote

from ensemble_core.runner.facts import Endpoint

NUMPY_TYPES = {"UINT8": "uint8", "FP32": "float32"}


def curl(endpoint: Endpoint) -> str:
    """One sample of zeros by the KServe v2 protocol in JSON; for a POSIX shell."""
    url = shlex.quote(f"http://{endpoint.http}/v2/models/{quote(endpoint.model, safe='')}/infer")
    tensor = json.dumps({"name": "INPUT", "shape": [1, *endpoint.input_shape], "datatype": endpoint.input_type})
    values = math.prod(endpoint.input_shape)
    return (
        f"# {values} zeros stand for the sample's values, row by row\n"
        f"ZEROS=$(yes 0 | head -n {values} | paste -s -d, -)\n"
        f"curl --silent --header 'Content-Type: application/json' --data @- {url} <<JSON\n"
        f'{{"inputs": [{tensor[:-1]}, "data": [$ZEROS]}}]}}\n'
        "JSON"
    )


def predict(endpoint: Endpoint) -> str:
    """A file of samples through `ensemble predict`."""
    model, url = shlex.quote(endpoint.model), shlex.quote(endpoint.grpc)
    return (
        f"# samples.npy: {_type(endpoint)} {_shape(endpoint)}\n"
        f"ensemble predict --url {url} --model {model} --input samples.npy --output probabilities.npy"
    )


def python(endpoint: Endpoint) -> str:
    """tritonclient over gRPC, as an application would ask."""
    shape = ", ".join(str(size) for size in (1, *endpoint.input_shape))
    return f"""# pip install 'tritonclient[grpc]'
import numpy as np
import tritonclient.grpc as triton

samples = np.zeros(({shape}), np.{_type(endpoint)})  # one sample or many

tensor = triton.InferInput("INPUT", list(samples.shape), {json.dumps(endpoint.input_type)})
tensor.set_data_from_numpy(samples)
client = triton.InferenceServerClient({json.dumps(endpoint.grpc)})
answer = client.infer({json.dumps(endpoint.model)}, [tensor])
probabilities = answer.as_numpy("PROBABILITIES")  # float32 [N, {len(endpoint.classes)}]
print(probabilities.argmax(axis=1))"""


def _type(endpoint: Endpoint) -> str:
    return NUMPY_TYPES.get(endpoint.input_type, endpoint.input_type.lower())


def _shape(endpoint: Endpoint) -> str:
    return f"[N, {', '.join(str(size) for size in endpoint.input_shape)}]"
