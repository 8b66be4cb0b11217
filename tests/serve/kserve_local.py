"""KServe's server with our models on this machine alone; it has no option for that. Arguments are those of our command.

With `grpc PORT` first: a caller by gRPC, since no process may have kserve's stubs and tritonclient's. It reads arrays
of stdin (npz) for lines `MODEL`, and writes the answer's.
"""

import io
import sys
from typing import Any

import numpy as np


def serve() -> None:
    import grpc.aio
    from kserve import model_server
    from kserve.protocol.rest.server import RESTServer

    from sae_runtime.serve import kserve_model

    class Local(RESTServer):  # type: ignore[misc]  # kserve ships no types
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.config.host = "127.0.0.1"

    made = grpc.aio.server

    def server(*given: Any, **named: Any) -> Any:
        own = made(*given, **named)
        bind = own.add_insecure_port
        own.add_insecure_port = lambda address: bind(address.replace("[::]", "127.0.0.1"))
        return own

    from kserve.protocol.grpc import server as grpc_server

    model_server.RESTServer = Local
    grpc_server.aio.server = server
    kserve_model.main()


def ask(port: str, model: str) -> None:
    import grpc
    from kserve import InferInput, InferRequest, InferResponse
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    inputs = []
    for name, array in np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False).items():
        texts = array.dtype.kind in "US"
        array = array.astype(object) if texts else array
        datatype = "BYTES" if texts else {"float32": "FP32", "int64": "INT64"}[str(array.dtype)]
        inputs.append(InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=True)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = GRPCInferenceServiceStub(channel).ModelInfer(InferRequest(model, inputs).to_grpc())
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    got = {output.name: output.as_numpy() for output in InferResponse.from_grpc(answer).outputs}
    out = io.BytesIO()
    np.savez(out, **{name: array.astype("S") if array.dtype == object else array for name, array in got.items()})
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    if sys.argv[1:2] == ["grpc"]:
        words, sys.argv[1:] = sys.argv[2:], []  # kserve reads the command line when it is imported
        ask(*words)
    else:
        serve()
