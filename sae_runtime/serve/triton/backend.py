"""A model of Triton's Python backend over our plane. A repository's model.py imports it from here."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.typed_json import read_json
from sae_runtime.engine.sessions import CPU, CUDA, Provider
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Closing, Full, Invalid, NotFound, TimedOut
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy
from sae_runtime.serve.triton.wire import Wire

PROGRAM = "from sae_runtime.serve.triton.backend import TritonPythonModel as TritonPythonModel\n"
"""The text of a repository's model.py."""
_LOOK = 0.05  # seconds between looks for a caller that has left
_CODES = {NotFound: "NOT_FOUND", Invalid: "INVALID_ARG", Full: "UNAVAILABLE", Closing: "UNAVAILABLE"}


def policy_parameters(policy: Policy, names: Collection[str]) -> dict[str, str]:
    """Bounds for edits as parameters of a configuration.

    Args:
        policy: of the repository.
        names: of all that the repository serves, and of its SAEs; an entry of the policy may begin with one.

    >>> policy_parameters(Policy(largest_edit=5.0), ["mine"])
    {'policy': '{"largest_edit": 5.0}', 'names': '["mine"]'}
    """
    if not policy.bounded:
        return {}
    fields = [field for field in dataclasses.fields(policy) if getattr(policy, field.name) != field.default]
    return {
        "policy": json.dumps({field.name: getattr(policy, field.name) for field in fields}),
        "names": json.dumps(sorted(names)),
    }


def open_plane(name: str, version: Path, parameters: Mapping[str, str], *, merge: bool, **options: Any) -> Plane:
    """What a version of a model of the Python backend serves, within its bounds for edits.

    Args:
        name: of the model, such as "my-sae.steer".
        version: its folder.
        parameters: of its configuration.
        merge: of `Plane`.
        options: of `open_all`.

    Raises:
        ValueError: the bounds do not fit, or what is served cannot be opened.
    """
    own = name.rpartition(".")[0]
    loaded = open_all([f"{own}@{version.name}={version / parameters['path']}"], **options)
    policy = read_json(Policy, parameters.get("policy", "{}"), "the parameter policy")
    names = read_json(tuple[str, ...], parameters.get("names", "[]"), "the parameter names")
    return Plane(loaded, policy=Guards(policy, loaded, elsewhere=names), merge=merge)


class TritonPythonModel:
    """One operation of a bundle or a deployed model, for Triton. Triton calls its three methods in one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what the model serves; `args` are Triton's."""
        import triton_python_backend_utils as utils  # only Triton has this module

        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        self._utils, self._wire = utils, Wire(utils)
        self._wire.refuse_texts(config)
        providers: Sequence[Provider] = CPU
        if args["model_instance_kind"] == "GPU":
            providers = ((CUDA, {"device_id": args["model_instance_device_id"]}), *CPU)
        threads = parameters.get("threads")
        self._name = config["name"]
        # Without a batch, Triton gives one request after another, and a trial of merging would be for nothing.
        self._plane = open_plane(
            self._name,
            Path(args["model_repository"], args["model_version"]),
            parameters,
            merge=config.get("max_batch_size", 0) > 0,
            providers=providers,
            threads=None if threads is None else int(threads),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, which the plane may merge."""
        begun = [self._begin(request) for request in requests]
        return [self._answer(request, future) for request, future in zip(requests, begun, strict=True)]

    def finalize(self) -> None:
        """Close what the model serves."""
        self._plane.close()

    def _begin(self, request: Any) -> "Future[Any]":
        try:
            # Triton's memory is valid until the answer is given, and a request that is cancelled may run on.
            inputs = {tensor.name(): np.array(self._wire.read(tensor)) for tensor in request.inputs()}
            return self._plane.submit(
                self._name,
                inputs,
                outputs=sorted(request.requested_output_names()),
                parameters=json.loads(request.parameters() or "{}"),
                timeout=request.timeout() / 1e6 or None,
            )
        except Exception as error:  # of this request alone
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _answer(self, request: Any, future: "Future[Any]") -> Any:
        try:
            while True:
                try:
                    arrays = future.result(_LOOK)
                    break
                except FutureTimeout:
                    if request.is_cancelled():
                        future.cancel()
            return self._utils.InferenceResponse([self._wire.make(name, array) for name, array in arrays.items()])
        except (Exception, CancelledError) as error:
            return self._utils.InferenceResponse(error=self._told(error))

    def _told(self, error: BaseException) -> Any:
        """Triton's form of an error."""
        kinds = [code for kind, code in _CODES.items() if isinstance(error, kind)]
        code = kinds[0] if kinds else "CANCELLED" if isinstance(error, CancelledError | TimedOut) else "INTERNAL"
        if isinstance(error, ValueError):
            code = "INVALID_ARG"
        text = " ".join(str(error).split()) or type(error).__name__
        return self._utils.TritonError(text, getattr(self._utils.TritonError, code))
