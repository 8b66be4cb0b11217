"""The scans of Mamba and Mamba 2 as one Scan of ONNX.

transformers has a Python loop over the tokens for the first, and chunks of a fixed number of tokens for the second,
which torch's exporter cannot trace for any number of tokens.
"""

from typing import Any

import torch
from onnxscript import FLOAT, graph, opset18, script

op: Any = opset18  # the opset of torch's own translations


@torch.library.custom_op("sae_runtime::recurrence", mutates_args=())
def recurrence(decay: torch.Tensor, inflow: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """y_t = sum over n of read_t state_t, where state_t = decay_t state_{t-1} + inflow_t.

    Args:
        decay: [t, b, d, n].
        inflow: [t, b, d, n].
        read: [t, b, n].

    Returns:
        y [t, b, d].

    >>> one = torch.ones(3, 1, 1, 1)
    >>> recurrence(one, one, one[:, 0]).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    state, rows = torch.zeros_like(inflow[:1].sum(0)), []
    for a, b, c in zip(decay, inflow, read, strict=True):
        state = a * state + b
        rows.append((state * c[:, None]).sum(-1))
    return torch.stack(rows)


@recurrence.register_fake
def _(decay: Any, inflow: Any, read: Any) -> Any:
    return inflow.new_empty(inflow.shape[:3])


@script()
def _recurrence(decay: FLOAT, inflow: FLOAT, read: FLOAT) -> FLOAT:
    zero = op.Constant(value_ints=[0])
    start = op.Mul(op.ReduceSum(inflow, zero, keepdims=0), 0.0)

    @graph()
    def step(state, a, b, c):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        new = a * state + b
        y = op.ReduceSum(new * op.Unsqueeze(c, op.Constant(value_ints=[1])), op.Constant(value_ints=[-1]), keepdims=0)
        return new, y

    _, rows = op.Scan(start, decay, inflow, read, body=step, num_scan_inputs=3)
    return rows  # type: ignore[no-any-return]


TRANSLATIONS: dict[Any, Any] = {torch.ops.sae_runtime.recurrence.default: _recurrence}


def selective_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,  # noqa: N803  (transformers' names)
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    **_: Any,
) -> Any:
    """What transformers' `mamba_selective_scan` computes from a start without a past.

    state_t = exp(A dt_t) state_{t-1} + dt_t B_t x_t        y_t = (C_t state_t + D x_t) silu(z_t)

    Args:
        hidden_states: x [b, d, t].
        dt: [b, d, t].
        A: [d, n].
        B: [b, n, t].
        C: [b, n, t].
        D: [d].
        z: [b, d, t].
        delta_bias: [d], added to dt.
        delta_softplus: softplus of dt is used.

    Returns:
        y [b, d, t].

    >>> x, one = torch.ones(1, 1, 3), torch.ones(1, 1, 3)
    >>> selective_scan(x, one, torch.zeros(1, 1), one, one).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = torch.nn.functional.softplus(dt)
    dt, b, c = (tensor.float().permute(2, 0, 1) for tensor in (dt, B, C))  # time goes first
    x = hidden_states.permute(2, 0, 1)
    rows = recurrence(torch.exp(A.float() * dt[..., None]), (dt * x)[..., None] * b[:, :, None], c)
    y = rows.permute(1, 2, 0).to(hidden_states.dtype)
    if D is not None:
        y = y + hidden_states * D[None, :, None]
    return y if z is None else y * torch.nn.functional.silu(z)


def chunk_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,  # noqa: N803
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    dt_bias: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_: Any,
) -> Any:
    """What transformers' `mamba2_chunk_scan` computes from a start without a past, in whatever chunks.

    state_t = exp(A dt_t) state_{t-1} + dt_t x_t B_t        y_t = state_t C_t + D x_t

    Args:
        hidden_states: x [b, t, h, p], of h heads.
        dt: [b, t, h].
        A: [h].
        B: [b, t, g, n], of g groups of heads.
        C: [b, t, g, n].
        D: [h].
        dt_bias: [h], added to dt.
        dt_softplus: softplus of dt is used.
        dt_limit: what dt is clamped to.

    Returns:
        y [b, t, h, p].

    >>> x, one = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1)
    >>> chunk_scan(x, one, torch.zeros(1), x, x).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = torch.nn.functional.softplus(dt)
    dt = dt.clamp(*dt_limit).float()
    batch, time, heads, width = hidden_states.shape
    x = hidden_states.float()
    b, c = (tensor.float().repeat_interleave(heads // B.shape[2], dim=2) for tensor in (B, C))
    inflow = (x * dt[..., None])[..., None] * b[..., None, :]  # [b, t, h, p, n]
    decay = torch.exp(A.float() * dt)[..., None, None].expand_as(inflow)
    decay, inflow = (tensor.transpose(0, 1).reshape(time, batch * heads, width, -1) for tensor in (decay, inflow))
    rows = recurrence(decay, inflow, c.transpose(0, 1).reshape(time, batch * heads, -1))
    y = rows.reshape(time, batch, heads, width).transpose(0, 1)
    return y if D is None else y + D[..., None] * x
