"""Small real bundles with hand-made weights, exported once for the whole run."""

import contextlib
import functools
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tiers import tier

from sae_runtime import SAE, Features, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.quota import Quota
from sae_runtime.exports import witness
from sae_runtime.exports.export import export


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a module with its tier."""
    for item in items:
        marker = tier(item.path.stem)
        if marker is not None:
            item.add_marker(marker)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give no test its name: those of a gzip file hold the second that made them, and the workers must agree."""
    return argname if isinstance(val, bytes) else None


# sparsify chooses its kernel when it is imported, and would take a GPU's; test modules import it in any order.
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

SHARED = "SAE_RUNTIME_TESTS_SHARED"
D_IN, K = 24, 6
KINDS = ("token", "mutual", "feature")
QUOTA = Quota(exponent=0.8, offset=3.0, slack=1.5)


def make_weights(d_sae: int, kind: str, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    decoder = rng.standard_normal((d_sae, D_IN))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    weights = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": rng.normal(-0.1, 0.05, d_sae),
        "b_dec": rng.normal(0, 0.3, D_IN),
    }
    if kind != "token":
        weights["threshold"] = np.full(d_sae, 2.0) if kind == "mutual" else rng.uniform(1.6, 2.4, d_sae)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def with_b_pre(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """As `Bundle.weights` gives them."""
    return {**weights, "b_pre": weights["b_dec"]}


def make_tied_weights(d_sae: int, kind: str) -> dict[str, NDArray[np.float32]]:
    """Small whole numbers, the second half of the features a copy of the first: every sum is exact, ties abound."""
    rng = np.random.default_rng(5)
    encoder = rng.integers(-1, 2, (D_IN, d_sae))
    encoder[:, d_sae // 2 :] = encoder[:, : d_sae - d_sae // 2]
    weights = {
        "W_enc": encoder,
        "W_dec": rng.integers(-1, 2, (d_sae, D_IN)),
        "b_enc": np.full(d_sae, -1),
        "b_dec": rng.integers(-1, 2, D_IN),
    }
    if kind != "token":
        weights["threshold"] = rng.integers(5, 9, d_sae)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def make_manifest(d_sae: int, kind: str, k: int = K, slots: int | None = None) -> Manifest:
    architecture = Architecture(
        d_in=D_IN,
        d_sae=d_sae,
        selection="topk" if kind == "token" else "threshold",
        k=k if kind == "token" else None,
    )
    allocation = Allocation(kind=kind, k=float(k), quota=QUOTA if kind == "feature" else None)
    return Manifest(architecture=architecture, allocation=allocation, slots=slots or (k if kind == "token" else 4 * k))


@pytest.fixture(scope="session", autouse=True)
def folder_shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for what no two processes of one run of the tests should make; its path is the variable SHARED."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHARED, str(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
        yield


@pytest.fixture(scope="session", name="reference")
def vllm_reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers and `attach` for the tests of vLLM, with bundles of every kind for SmolLM2; see `vllm_reference`."""
    from vllm_reference import make_reference

    return make_reference(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process of vLLM's environment that runs functions of `llm_calls.py`; see `vllm_processes.called`."""
    from vllm_processes import LLM_CALLS, called

    with called(LLM_CALLS, tmp_path_factory.mktemp("engine") / "log") as call:
        yield call


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real Chromium for the tests of a module, by Playwright; without either the tests skip. See `watched_pages`."""
    from watched_pages import browser

    with browser() as started:
        yield started


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open a folder or an address in Chromium; the test fails where a page does what it may not."""
    from watched_pages import Pages

    pages = Pages(chromium)
    yield pages
    violations = pages.close()
    assert not violations, "\n".join(violations)


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the path of an exported bundle of an allocation; made once for each set of arguments. Do not alter it."""
    made: dict[tuple[str, int, int | None, bool, bool], Path] = {}

    def give(
        kind: str, d_sae: int = 150, slots: int | None = None, *, tied: bool = False, sampled: bool = False
    ) -> Path:
        key = (kind, d_sae, slots, tied, sampled)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("bundles") / f"{kind}-{d_sae}"
            weights = make_tied_weights(d_sae, kind) if tied else make_weights(d_sae, kind)
            sample = make_x(300, seed=8) if sampled else None
            bundle.write(made[key], weights, make_manifest(d_sae, kind, slots=slots), sample=sample)
            export(made[key])
        return made[key]

    return give


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: in models as small as those of the tests, threads only wait for each other."""
    import torch  # here: not all tests need it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copy_of(bundle_of: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Give the path of a bundle that the test may spoil."""

    def give(kind: str, d_sae: int = 150, *, sampled: bool = False) -> Path:
        return Path(shutil.copytree(bundle_of(kind, d_sae, sampled=sampled), tmp_path / f"copy-{kind}"))

    return give


@pytest.fixture(scope="session")
def loaded(bundle_of: Callable[..., Path]) -> Callable[[str], SAE]:
    """Give the SAE of an allocation, opened once for the whole run."""
    return functools.cache(lambda kind: load(bundle_of(kind)))


@pytest.fixture
def sae(loaded: Callable[[str], SAE], kind: str) -> SAE:
    return loaded(kind)


def make_x(n: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1.2, (n, D_IN)).astype(np.float32)


def make_tied_x(n: int) -> NDArray[np.float32]:
    """Whole numbers for the bundles with ties; the second half of the rows a copy of the first."""
    x = np.random.default_rng(6).integers(-2, 3, (n, D_IN)).astype(np.float32)
    x[n // 2 :] = x[: n - n // 2]
    return x


def run_graph(folder: Path, name: str, **feed: NDArray[Any]) -> list[NDArray[Any]]:
    """Outputs of a graph as any user of onnxruntime gets them, without this project's runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def served(kind: str, d_sae: int, x: NDArray[np.float32], k: int = K) -> witness.Matches:
    """What the witness keeps by the served rule."""
    weights = make_weights(d_sae, kind)
    z = witness.pre_activations(weights, x)
    return witness.token_choice(z, k) if kind == "token" else witness.threshold(z, weights["threshold"])


def joint(
    kind: str, d_sae: int, x: NDArray[np.float32], k: float = K, valid: NDArray[np.bool_] | None = None
) -> witness.Matches:
    """What the witness keeps by the batch rule."""
    z = witness.pre_activations(make_weights(d_sae, kind), x)
    max_density = quota.max_densities(QUOTA, K, d_sae) if kind == "feature" else None
    return witness.joint(z, k, max_density, valid)


def slots_of(features: Features) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Features in the layout of the graphs, each row by falling value."""
    indices, values = features.to_slots()
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let the kernel refuse to make files of this process larger, in bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class GatherElements(OpRun):
    """As the standard has it: that of onnx 1.23 gives one number a row, or an error, beyond 64 columns."""

    op_domain = ""

    def _run(self, data: NDArray[Any], indices: NDArray[np.int64], axis: int = 0) -> tuple[NDArray[Any]]:
        return (np.take_along_axis(data, indices, axis=axis),)


def reference(model: Any) -> ReferenceEvaluator:
    """ONNX's own evaluator of a model or file."""
    return ReferenceEvaluator(model, new_ops=[GatherElements])
