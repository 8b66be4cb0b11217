"""Triton's interpreter runs the kernels on the CPU. It must be asked for before triton is imported, so this file is
also the program of another process, which writes down what the kernels give."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_runtime.train.step.matches import Matches
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Limits, Losses, Step, plain_step
from sae_runtime.train.step.sparse_step import Kernels, SparseStep

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

Case = tuple[Matches, Tensor, Tensor, Tensor]
"""Matches, rows of the features [d_sae, d_in], rows of the tokens [n, d_in], weights [m]."""

CPU = torch.device("cpu")
CHUNK = 8  # for the interpreter, which is slow
LIMITS: dict[str, Limits] = {
    "token": {"per_token": 3},
    "mutual": {"total": 20},
    "feature": {"total": 20, "per_feature": torch.arange(24) % 4},
}


def case_of(match: Tensor, d_in: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Case:
    """Random numbers for the matches that a mask [n, d_sae] shows."""
    generator = torch.Generator().manual_seed(0)
    n, d_sae = match.shape
    at = match.flatten().nonzero().squeeze(1)
    values, weights = torch.rand(len(at), generator=generator), torch.randn(len(at), generator=generator)
    features, tokens = torch.randn(d_sae, d_in, generator=generator), torch.randn(n, d_in, generator=generator)
    found = Matches(at.to(device), values.to(device), n, d_sae)
    return found, features.to(device, dtype), tokens.to(device, dtype), weights.to(device)


def ragged(n: int, d_sae: int, share: float = 0.3) -> Tensor:
    """A mask with a token and a feature that match nothing, and a feature that every other token matches."""
    match = torch.rand(n, d_sae, generator=torch.Generator().manual_seed(n)) < share
    match[:, 1], match[:, 2], match[n // 2] = True, False, False
    return match


def long(chunk: int) -> Tensor:
    """A mask whose features match the first so many tokens: numbers around one, two and three chunks."""
    lengths = torch.tensor([chunk, 0, 3 * chunk - 1, chunk + 1, 1, 2 * chunk])
    return torch.arange(3 * chunk)[:, None] < lengths


def cases() -> dict[str, Case]:
    return {
        "1 column": case_of(ragged(7, 5), 1),
        "20 columns": case_of(ragged(13, 9), 20),
        "96 columns": case_of(ragged(6, 7), 96),
        "300 columns": case_of(ragged(5, 4), 300),
        "768 columns": case_of(ragged(4, 4), 768),
        "bfloat16": case_of(ragged(5, 6), 40, torch.bfloat16),
        "no match": case_of(torch.zeros(3, 4, dtype=torch.bool), 6),
        "no token": case_of(torch.zeros(0, 4, dtype=torch.bool), 6),
        "every match": case_of(torch.ones(9, 8, dtype=torch.bool), 5),
        "long features": case_of(long(CHUNK), 3),
        "long tokens": case_of(long(CHUNK).T, 3),
    }


def alone(feature: int) -> Case:
    """The matches of one of the long features, without the others."""
    found, features, tokens, weights = cases()["long features"]
    mine = found.feature == feature
    return Matches(found.positions[mine], found.values[mine], found.n, found.d_sae), features, tokens, weights[mine]


def far() -> Case:
    """Rows whose numbers lie beyond the 2^31st: all but the last are never touched, and so take no memory."""
    d_in, count = 256, 2**23 + 1
    features = torch.empty(count, d_in, dtype=torch.bfloat16)
    features[-1] = torch.arange(d_in)
    found = Matches(torch.tensor([count - 1]), torch.tensor([0.5]), 1, count)
    return found, features, torch.ones(1, d_in), torch.ones(1)


class Short:
    """The Triton kernels with chunks that are short enough for the interpreter."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def reconstruct(self, matches: Matches, rows: Tensor) -> Tensor:
        return torch.as_tensor(self._kernels.reconstruct(matches, rows, chunk=CHUNK))

    def dots(self, rows: Tensor, columns: Tensor, matches: Matches) -> Tensor:
        return torch.as_tensor(self._kernels.dots(rows, columns, matches))

    def sums_by_feature(self, rows: Tensor, weights: Tensor, matches: Matches) -> Tensor:
        return torch.as_tensor(self._kernels.sums_by_feature(rows, weights, matches, chunk=CHUNK))


def answers(kernels: Kernels, case: Case) -> list[Tensor]:
    found, features, tokens, weights = case
    return [
        kernels.reconstruct(found, features),
        kernels.dots(tokens, features, found),
        kernels.sums_by_feature(tokens, weights, found),
    ]


def gradients(step: Step, limits: Limits, n: int, d_in: int, d_sae: int, device: torch.device) -> list[Tensor]:
    """Gradients, and the losses after them, of one model and batch."""
    generator = torch.Generator().manual_seed(0)
    model = SparseAutoencoder(d_sae, torch.randn(d_in, generator=generator), generator=generator)
    with torch.no_grad():
        model.W_enc.add_(torch.randn(d_sae, d_in, generator=generator), alpha=0.05)
    x, among = torch.randn(n, d_in, generator=generator), torch.rand(d_sae, generator=generator) < 0.2
    model, x, among = model.to(device), x.to(device), among.to(device)
    losses: Losses = step(model, x, limits, lambda counts, n: among, 0.1, 4)
    return [p.grad for p in model.parameters() if p.grad is not None] + [losses.fvu, losses.aux]


def write(path: str) -> None:
    from sae_runtime.train.step import triton_kernels as kernels

    short = Short(kernels)
    found: dict[str, Any] = {name: answers(short, case) for name, case in cases().items()}
    found |= {f"feature {i} alone": answers(short, alone(i))[2] for i in (0, 2, 3)}
    match, features, tokens, _ = far()
    found["far"] = [kernels.reconstruct(match, features), kernels.dots(tokens, features, match)]
    for kind, limits in LIMITS.items():
        found[kind] = gradients(SparseStep(kernels=short), limits, 7, 12, 24, CPU)
    torch.save(found, path)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("triton") / "found.pt"
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(torch.load(path))


def check(found: list[Tensor], case: Case) -> None:
    """Compare with plain float64 torch."""
    matches, features, tokens, weights = case
    features, tokens = features.double(), tokens.double()
    terms = [
        matches.values.double()[:, None] * features[matches.feature],
        tokens[matches.token] * features[matches.feature],
        weights.double()[:, None] * tokens[matches.token],
    ]
    of_token, of_feature = torch.zeros_like(tokens), torch.zeros_like(features)
    for part, sizes in ((terms, False), ([term.abs() for term in terms], True)):
        sums = [
            of_token.index_add(0, matches.token, part[0]),
            part[1].sum(dim=1),
            of_feature.index_add(0, matches.feature, part[2]),
        ]
        if not sizes:
            expected = sums
    for mine, theirs, size in zip(found, expected, sums, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        # A sum in another order: a few dozen roundings at most, each 2^-24 of what the terms amount to.
        assert ((mine - theirs).abs() <= 2e-6 * size).all()


@pytest.mark.parametrize("name", cases())
def test_triton_sums_agree_with_plain_torch(interpreted: dict[str, Any], name: str) -> None:
    check(interpreted[name], cases()[name])


@pytest.mark.parametrize("feature", [0, 2, 3])
def test_a_sum_does_not_depend_on_other_features(interpreted: dict[str, Any], feature: int) -> None:
    sums = interpreted[f"feature {feature} alone"]
    assert torch.equal(sums[feature], interpreted["long features"][2][feature])
    assert sums.count_nonzero() == sums[feature].count_nonzero() > 0


def test_triton_kernels_read_rows_beyond_2_to_the_31(interpreted: dict[str, Any]) -> None:
    x_hat, dots = interpreted["far"]
    numbers = torch.arange(256).bfloat16().float()
    assert torch.equal(x_hat[0], 0.5 * numbers) and torch.equal(dots, numbers.sum()[None])


@pytest.mark.parametrize("kind", LIMITS)
def test_a_triton_step_agrees_with_autograd(interpreted: dict[str, Any], kind: str) -> None:
    expected = gradients(plain_step, LIMITS[kind], 7, 12, 24, CPU)
    for mine, theirs in zip(interpreted[kind], expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9


@pytest.mark.parametrize(("capability", "dtype"), [(80, "fp32"), (90, "bf16")])
def test_triton_kernels_compile_for_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int, dtype: str
) -> None:
    """The interpreter takes more than the compiler does. Rows must come in loads of 16 bytes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sae_runtime.train.step import triton_kernels as kernels

    rows, pointer, number = f"*{dtype}", "*i64", "i32"
    sums = {"out": "*fp32", "rows": rows, "index": pointer, "weight": "*fp32", "begin": pointer, "end": pointer}
    parts = {"parts": "*fp32", "part_begin": pointer, "part_end": pointer}
    dots = {"out": "*fp32", "rows": rows, "columns": rows, "token": pointer, "feature": pointer, "matches": number}
    for kernel, signature, constants in (
        (kernels.sum_bags, sums | parts | {"d_in": number}, {}),
        (kernels.sum_bags, sums | {"d_in": number}, dict.fromkeys(parts)),
        (kernels.dots_kernel, dots | {"d_in": number}, {}),
    ):
        fixed: dict[str, int | None] = constants | {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS}
        types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in signature if name != "matches"
        }
        source = ASTSource(
            kernel, types, {(kernel.arg_names.index(name),): value for name, value in fixed.items()}, aligned
        )
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert len(made.asm["cubin"]) > 0
        assert len(re.findall(r"ld\.global\.v4\.b32", made.asm["ptx"])) >= 2


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_in", [1, 20, 96, 768, 1000])
def test_triton_kernels_on_a_gpu_agree_with_plain_torch(d_in: int, dtype: torch.dtype) -> None:
    from sae_runtime.train.step import triton_kernels

    for match in (
        ragged(1500, 700, 0.03),
        ragged(700, 1500, 0.03),
        long(triton_kernels.CHUNK),
        long(triton_kernels.CHUNK).T,
    ):
        case = case_of(match, d_in, dtype, torch.device("cuda"))
        found = answers(triton_kernels, case)
        check(found, case)
        assert all(map(torch.equal, found, answers(triton_kernels, case)))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LIMITS)
def test_a_triton_step_on_a_gpu_agrees_with_autograd(kind: str, product_dtype: torch.dtype) -> None:
    from sae_runtime.train.step import triton_kernels

    device, n, d_sae = torch.device("cuda"), 500, 2048
    limits: dict[str, Limits] = {
        "token": {"per_token": 8},
        "mutual": {"total": 8 * n},
        "feature": {"total": 8 * n, "per_feature": torch.arange(d_sae, device=device) % 9},
    }
    step = SparseStep(product_dtype=product_dtype, kernels=triton_kernels)
    expected = gradients(plain_step, limits[kind], n, 100, d_sae, device)
    for mine, theirs in zip(gradients(step, limits[kind], n, 100, d_sae, device), expected, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-9


if __name__ == "__main__":
    write(sys.argv[1])
