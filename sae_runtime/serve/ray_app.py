"""The server's application under Ray Serve: Ray starts replicas, shares callers out among them, and replaces dead ones.

serve run sae_runtime.serve.ray_app:application paths=sae=/models/sae
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve

from sae_runtime.bundle.typed_json import from_dict
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.live import Live
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy


def application(arguments: Mapping[str, Any]) -> Any:
    """A Ray Serve application of what `sae-runtime serve` serves. Every replica opens the models for itself.

    Args:
        arguments: `paths`, one or a list, as `sae-runtime serve` takes them; `api_key_file`, a key a line; `limits`,
            fields of `Limits`; `policy`, fields of `Policy`, which bound edits; `options` of `ray.serve.deployment`,
            such as num_replicas. A replica computes with as many threads as Ray gives it processors
            (`ray_actor_options: {num_cpus: 2}`).

    Returns:
        What `serve.run`, and a Serve config file by its `import_path`, takes.

    Raises:
        ValueError: an argument is unknown or of another type, or `paths` is missing.
    """
    known = ("paths", "api_key_file", "limits", "policy", "options")
    if unknown := [name for name in arguments if name not in known]:
        raise ValueError(f"there is no argument {unknown[0]!r}; the arguments are {', '.join(known)}")
    if not (paths := arguments.get("paths")):
        raise ValueError("there is nothing to serve; give paths, such as sae=/models/sae")
    paths = [paths] if isinstance(paths, str) else list(paths)
    limits = from_dict(Limits, arguments.get("limits", {}), "limits")
    policy = from_dict(Policy, arguments.get("policy", {}), "policy")
    key_file = arguments.get("api_key_file")

    def build() -> Any:
        """The ASGI application, made where it runs."""
        from sae_runtime.serve.http.app import App
        from sae_runtime.serve.http.keys import read_keys

        threads = max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1)
        keys = () if key_file is None else read_keys(Path(key_file))
        loaded = open_all(paths, threads=threads)
        plane = Plane(loaded, limits=limits, policy=Guards(policy, loaded), watcher=Live(loaded))
        return App(plane, keys=keys)

    deployment = serve.deployment(serve.ingress(build)(), name="sae-runtime", **arguments.get("options", {}))
    return deployment.bind()
