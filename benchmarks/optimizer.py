"""What Adam costs on both matrices of an SAE: one tensor after the other, all at once, fused, and on touched rows only.

The last is lazy Adam: rows without a match keep their moments. It moves fewer bytes where a batch touches few features,
and does not give Adam's numbers.
"""

from collections.abc import Callable
from functools import partial

import click
import torch
from timing import median_seconds
from torch import Tensor


def lazy_adam(
    weights: list[Tensor], moments: list[tuple[Tensor, Tensor]], rows: Tensor, gradients: list[Tensor]
) -> None:
    """Adam's step 100 on some rows of each matrix; gradients are [rows, d_in]."""
    for weight, (first, second), gradient in zip(weights, moments, gradients, strict=True):
        m = first[rows].lerp_(gradient, 0.1)
        v = second[rows].lerp_(gradient.square(), 0.001)
        first[rows], second[rows] = m, v
        step = m.div_(v.sqrt_().div_((1 - 0.999**100) ** 0.5).add_(1e-8))
        weight.index_add_(0, rows, step, alpha=-1e-4 / (1 - 0.9**100))


@click.command()
@click.option("--d-in", default=768)
@click.option("--d-sae", default=24_576)
@click.option("--rounds", default=9, type=click.IntRange(min=1))
def main(d_in: int, d_sae: int, rounds: int) -> None:
    """Print one row for each way."""
    gradients = [torch.randn(d_sae, d_in) for _ in range(2)]
    calls: dict[str, Callable[[], object]] = {}
    for name in ("for-loop", "foreach", "fused"):
        weights = [torch.nn.Parameter(torch.randn(d_sae, d_in)) for _ in range(2)]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        calls[name] = torch.optim.Adam(weights, lr=1e-4, foreach=name == "foreach", fused=name == "fused").step
    tensors = [torch.randn(d_sae, d_in) for _ in range(2)]
    moments = [(torch.zeros(d_sae, d_in), torch.zeros(d_sae, d_in)) for _ in range(2)]
    for share in (1.0, 0.5, 0.1):
        rows = torch.randperm(d_sae)[: round(share * d_sae)].sort().values
        some = [gradient[rows] for gradient in gradients]
        calls[f"touched rows, {share:.0%}"] = partial(lazy_adam, tensors, moments, rows, some)
    median = median_seconds(calls, rounds)
    print(f"Adam on two matrices [{d_sae}, {d_in}], {torch.get_num_threads()} threads, CPU")
    for name, seconds in median.items():
        print(f"{name:<20}  {seconds * 1e3:>8.1f} ms  {seconds / median['fused']:>6.2f} of fused")


if __name__ == "__main__":
    main()
