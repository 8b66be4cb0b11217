"""Our SAE behind kserve's own server without our plane, as one writes it in twenty lines: PORT NAME=FOLDER..."""

import asyncio
import sys

WORDS, sys.argv = sys.argv, sys.argv[:1]  # kserve reads the command line when it is imported

import kserve  # noqa: E402
import kserve.model_server  # noqa: E402
from kserve import InferOutput, InferRequest, InferResponse  # noqa: E402

from sae_runtime import load  # noqa: E402


class Encoder(kserve.Model):  # type: ignore[misc]  # kserve ships no types
    """The features of rows of activations."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"{name}.encode")
        self.sae, self.ready = load(path), True

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> object:
        """Indices and values [n, slots]."""
        indices, values = await asyncio.to_thread(self.sae.encode_slots, payload.inputs[0].as_numpy())
        outputs = [
            InferOutput("indices", list(indices.shape), "INT64"),
            InferOutput("values", list(values.shape), "FP32"),
        ]
        for output, array in zip(outputs, (indices, values), strict=True):
            output.set_data_from_numpy(array, binary_data=True)
        return InferResponse(payload.id, self.name, outputs, use_binary_outputs=True)


class Local(kserve.model_server.RESTServer):  # type: ignore[misc]
    """kserve's server on this machine alone; it has no option for it."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.config.host = "127.0.0.1"


if __name__ == "__main__":
    kserve.model_server.RESTServer = Local
    models = [Encoder(*word.split("=", 1)) for word in WORDS[2:]]
    kserve.ModelServer(http_port=int(WORDS[1]), enable_grpc=False, enable_latency_logging=False).start(models)
