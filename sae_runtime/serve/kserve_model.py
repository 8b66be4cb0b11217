"""A plane inside KServe: a `kserve.Model` for each operation, by REST and gRPC, and the command of its container.

    python -m sae_runtime.serve.kserve_model NAME=PATH... [--policy JSON] [--limits JSON] [--http_port 8080]

All options of kserve's server are there. kserve reads the command line as soon as its server is imported, so options
have kserve's own names here.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import kserve
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve import model_server as kserve_server
from kserve.errors import InvalidInput, ModelNotReady
from numpy.typing import NDArray

from sae_runtime.bundle.typed_json import read_json
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Closing, Full, Refused, TimedOut
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy
from sae_runtime.serve.tensors import Tensor


class PlaneModel(kserve.Model):  # type: ignore[misc]  # kserve ships no types
    """One operation of a plane, such as "my-sae.encode".

    Args:
        plane: what is served.
        name: of the operation, as `plane.index` has it.
    """

    def __init__(self, plane: Plane, name: str) -> None:
        super().__init__(name)
        self._plane, self._metadata = plane, plane.metadata(name)
        self._datatypes = {tensor.name: tensor.datatype for tensor in self._metadata.outputs}
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """The answer to a request of protocol v2. It waits for the plane without holding up the server's loop.

        Raises:
            InvalidInput: the request cannot be answered as it is (400, INVALID_ARGUMENT).
            ModelNotReady: the plane is full, ends, or has no time left (503, UNAVAILABLE).
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput(f"this model speaks protocol v2; post to /v2/models/{self.name}/infer")
        try:
            future = self._plane.submit(
                self.name,
                {given.name: _array(given) for given in payload.inputs},
                version=payload.model_version or None,
                outputs=[asked.name for asked in payload.request_outputs or ()],
                parameters=_parameters(payload.parameters),
            )
            answer = await asyncio.wrap_future(future)
        except (Full, Closing, TimedOut) as error:
            raise _Busy(self.name, str(error)) from None
        except Refused as error:
            raise InvalidInput(str(error)) from None
        outputs = [InferOutput(name, list(a.shape), self._datatypes[name], data=a) for name, a in answer.items()]
        if payload.from_grpc:  # kserve's writer for gRPC fails on arrays, the one for REST on empty bytes
            for output in outputs:
                output.set_data_from_numpy(output.data, binary_data=True)
        return InferResponse(
            payload.id or "",  # kserve refuses to write an answer without one
            self.name,
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def get_input_types(self) -> list[dict[str, Any]]:
        """The tensors of a request, for the metadata."""
        return _told(self._metadata.inputs)

    def get_output_types(self) -> list[dict[str, Any]]:
        """The tensors of an answer likewise."""
        return _told(self._metadata.outputs)


class _Busy(ModelNotReady):  # type: ignore[misc]
    """What kserve answers by 503 and UNAVAILABLE; its gRPC server reads `reason`, which ModelNotReady lacks."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = self.error_msg = reason


def models(plane: Plane) -> list[PlaneModel]:
    """What `kserve.ModelServer().start` takes: a model for each operation of a plane."""
    return [PlaneModel(plane, name) for name in dict.fromkeys(one.name for one in plane.index())]


def main() -> None:
    """Serve what the command line names, until SIGTERM; what was accepted is answered first."""
    parser = argparse.ArgumentParser(description=__doc__, parents=[kserve_server.parser], allow_abbrev=False)
    parser.add_argument("paths", nargs="+", metavar="NAME=PATH", help="bundles and deployed models")
    parser.add_argument("--policy", default="{}", metavar="JSON", help='bounds for edits: {"largest_multiple": 3}')
    parser.add_argument("--limits", default="{}", metavar="JSON", help='limits of a request: {"rows": 4096}')
    options = parser.parse_args()
    if options.workers > 1:
        parser.error("one process serves all callers; give the InferenceService more replicas instead of --workers")
    try:
        limits, policy = read_json(Limits, options.limits, "--limits"), read_json(Policy, options.policy, "--policy")
        loaded = open_all(options.paths)
        plane = Plane(loaded, limits=limits, policy=Guards(policy, loaded))
    except (ValueError, OSError, ImportError, MemoryError) as error:
        sys.exit(f"error: {error}")
    try:
        kserve.ModelServer().start(models(plane))
    finally:
        plane.close()


def _array(given: InferInput) -> NDArray[Any]:
    try:
        array: NDArray[Any] = given.as_numpy()
    except Exception as error:  # a stranger's data in kserve's reader: it raises whatever numpy does
        raise InvalidInput(f"the input {given.name} is not a tensor of its shape and datatype ({error})") from None
    if array.dtype == object and not all(isinstance(one, bytes | str) for one in array.reshape(-1)):
        raise InvalidInput(f"the input {given.name} must hold texts")
    return array


def _parameters(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as plain values; by gRPC each is a message with one of several fields."""
    plain = dict(given.items()) if given else {}
    plain.pop("binary_data_output", None)  # kserve's own
    return {
        name: getattr(value, value.WhichOneof("parameter_choice")) if hasattr(value, "WhichOneof") else value
        for name, value in plain.items()
    }


def _told(tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in tensors]


if __name__ == "__main__":
    main()
