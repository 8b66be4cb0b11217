"""Many tiny models through `export_model` and `splice`, against torch: a row of docs/results/exported_models.md each.

    SAE_RUNTIME_WRITE_TABLE=1 python -m pytest tests/exports/test_exported_models.py

writes the rows; without the variable, each row must be in the table already.
"""

import fcntl
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cases_common import pre_activations
from cases_hosts import dense, edit_inputs, random_sae, random_weights, spliced
from exported_models import CASES, hook_of, made
from numpy.typing import NDArray
from tiny_host import Arrays, open_plainly

from sae_runtime import Edit
from sae_runtime.exports.export_model import export_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

TABLE = Path(__file__).parents[2] / "docs" / "results" / "exported_models.md"
D_IN, D_SAE, STEPS, BOUND = 32, 96, 3, 1e-5
FREE = {"batch": 3, "images": 2, "sequence": 9, "encoder_sequence": 7, "frames": 40, "samples": 2100}


@pytest.mark.parametrize("name", CASES)
def test_a_spliced_export_reads_and_edits_what_torch_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = made(case)
    if case.refused:
        with pytest.raises(ValueError, match=case.refused) as refusal:
            export_model(model, tmp_path / "host.onnx", **case.options)
        assert not any(tmp_path.iterdir())
        return assert_listed(name, type(model).__name__, "none", "", "", "", "", str(refusal.value))
    host = export_model(model, tmp_path / "host.onnx", **case.options)
    proto = onnx.load(str(host), load_external_data=False).graph
    witness = Witness(model, case.options.get("part"))
    feeds = [random_feed(proto, model, batch, side) for batch, side in ((3, "left"), (2, "right"), (1, "left"))]
    witness.choose_sae(feeds[0])
    random_sae(tmp_path / "sae", D_IN, D_SAE, threshold=witness.threshold, bias=witness.scale)
    graph, _ = spliced(host, tmp_path / "sae", witness.hook, tmp_path / "spliced")
    edits = [Edit.ablate(witness.active), Edit.add(witness.other, 4 * witness.scale)]
    for feed in feeds:
        for chosen in ([], edits):
            compare(graph, feed, witness, chosen)
    empty = "runs" if runs_empty(graph, random_feed(proto, model, 0, "left")) else "fails"
    inputs, outputs = (described(values) for values in (proto.input, proto.output))
    cells = (f"{inputs} → {outputs}", f"`{witness.hook}`", "equal", "equal", empty, case.remark)
    assert_listed(name, type(model).__name__, *cells)


class Witness:
    """The torch model with a hook, and an SAE in float64 numpy."""

    def __init__(self, model: Any, part: str | None) -> None:
        self.model, self.part = (
            model,
            part or ("encoder" if model.config.is_encoder_decoder and model.can_generate() else None),
        )
        self.hook = hook_of(model, self.part)

    def choose_sae(self, feed: Arrays) -> None:
        """An SAE of the activations' size, whose features are active on a tenth of the tokens."""
        x = self.run(feed, lambda x: x)[1]
        self.scale = float(np.std(x))
        self.weights = random_weights(D_IN, D_SAE, 0.0, self.scale)
        z = pre_activations(self.weights, x.reshape(-1, D_IN))
        self.threshold = float(max(np.quantile(z, 0.9), 1e-3 * self.scale))
        self.weights = random_weights(D_IN, D_SAE, self.threshold, self.scale)
        order = np.argsort((z > self.threshold).mean(axis=0))
        self.active, self.other = int(order[-1]), int(order[0])

    def features(self, x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features [b, t, d_sae], and the pre-activations that they are selected from."""
        z = np.maximum(pre_activations(self.weights, x.reshape(-1, D_IN)), 0).reshape(*x.shape[:-1], D_SAE)
        return np.where(z > self.threshold, z, 0), z

    def edited(self, x: NDArray[Any]) -> NDArray[Any]:
        """The activations without the most active feature, and with more of another one."""
        directions = self.weights["W_dec"].astype(np.float64)
        active = self.features(x)[0][..., self.active, None]
        return np.asarray(x - active * directions[self.active] + 4 * self.scale * directions[self.other])

    def run(self, feed: Arrays, change: Any) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """The outputs of torch on the whole text at once, and the activations at the hook; `change` edits these."""
        seen: list[NDArray[Any]] = []

        def hook(_: Any, __: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            seen.append(first.numpy().copy())
            first = torch.from_numpy(change(seen[-1]).astype(np.float32))
            return (first, *output[1:]) if isinstance(output, tuple) else first

        handle = self.model.get_submodule(self.hook).register_forward_hook(hook)
        try:
            with torch.no_grad():
                result = self.call({name: torch.from_numpy(array) for name, array in feed.items()})
        finally:
            handle.remove()
        tensors = {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
        return {name: value.numpy() for name, value in tensors.items()}, seen[0]

    def call(self, tensors: dict[str, Any]) -> Any:
        """The model, or the part of it, on the inputs that the graph has, by transformers' own rules."""
        if self.part == "decoder":
            states, ids = (tensors["encoder_hidden_states"],), tensors["input_ids"]
            mask = tensors.get("encoder_attention_mask")
            return self.model(encoder_outputs=states, decoder_input_ids=ids, attention_mask=mask)
        if self.part is not None:
            part = self.model.get_encoder() if self.part == "encoder" else getattr(self.model, f"{self.part}_model")
            return part(**tensors)
        taken = inspect.signature(self.model.forward).parameters
        if self.model.can_generate() and "position_ids" in taken:  # generate counts them from the mask
            positions = (tensors["attention_mask"].cumsum(-1) - 1).masked_fill(tensors["attention_mask"] == 0, 1)
            return self.model(**tensors, position_ids=positions, use_cache=False)
        return self.model(**tensors)


def random_feed(graph: Any, model: Any, batch: int, side: str) -> Arrays:
    """What the graph takes without a past, at random; two tokens of the first row are padding."""
    rng, feed = np.random.default_rng(batch), {}
    for value in graph.input:
        if value.name.startswith("past"):
            continue
        sizes = FREE | {"batch": batch, "images": batch, "sequence": 9 - batch}
        text = ("input_ids", "attention_mask", "token_type_ids")
        dims = value.type.tensor_type.shape.dim
        if value.name in text:
            shape = [batch, sizes["sequence"]]
        else:
            shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims]
        if value.name == "input_ids":
            feed[value.name] = rng.integers(4, 64, shape)
        elif value.name.endswith("attention_mask"):
            feed[value.name] = np.ones(shape, np.int64)
            feed[value.name][:1, slice(0, 2) if side == "left" else slice(-2, None)] = 0
        elif value.name == "token_type_ids":
            feed[value.name] = rng.integers(0, 2, shape)
        else:
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "input_ids" in feed:  # some models look at the end of a text, which goes before the padding
        feed["input_ids"][:, -1] = model.config.get_text_config().eos_token_id or 5
        feed["input_ids"][:1, -3] = feed["input_ids"][:1, -1] if side == "right" else feed["input_ids"][:1, -3]
    pad = model.config.get_text_config().pad_token_id if "attention_mask" in feed else None
    if pad is not None:
        feed["input_ids"][feed["attention_mask"] == 0] = pad
    return feed


def stepwise(graph: Path, feed: Arrays, knobs: Arrays) -> Arrays:
    """Outputs of a graph for the whole input; with a past, for a prompt and three steps after it, side by side."""
    session = open_plainly(graph, False)
    names = [value.name for value in session.get_outputs()]
    pasts = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    time = feed["input_ids"].shape[1] if pasts else 0
    past = {name: np.empty((len(feed["input_ids"]), s[1], 0, s[3]), np.float32) for name, s in pasts.items()}
    parts: list[Arrays] = []
    for begin, end in zip([0, *range(time - STEPS, time)], range(time - STEPS, time + 1), strict=True):
        now = feed | {"input_ids": feed["input_ids"][:, begin:end]} if pasts else feed
        if pasts and "attention_mask" in feed:
            now = now | {"attention_mask": feed["attention_mask"][:, :end]}
        outputs = dict(zip(names, session.run(names, now | past | knobs), strict=True))
        if not pasts:
            return outputs
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        parts.append(outputs)
    kept = [name for name in names if not name.startswith("present")]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in kept}


def compare(graph: Path, feed: Arrays, witness: Witness, edits: list[Edit]) -> None:
    """Features at the hook and all outputs are torch's, at every token that is no padding."""
    knobs = {"sae_slots": np.array([D_SAE])} | (edit_inputs(edits, D_SAE) if edits else {})
    found = stepwise(graph, feed, knobs)
    wanted, x = witness.run(feed, witness.edited if edits else lambda x: x)
    real = real_tokens(feed, x)
    features, z = witness.features(x)
    got, size = dense(found, D_SAE)[real], float(features.max())
    clear = np.abs(z[real] - witness.threshold) > BOUND * size
    np.testing.assert_array_equal((got > 0)[clear], (features[real] > 0)[clear])
    assert np.abs(got - features[real])[clear].max() <= BOUND * size
    assert (got > 0).any() and clear.mean() > 0.99
    for name in sorted(set(found) & set(wanted)):
        where = real_tokens(feed, wanted[name])
        difference = np.abs(found[name].astype(np.float64) - wanted[name])[where].max()
        assert difference <= BOUND * np.abs(wanted[name][where]).max(), (name, difference)
    assert set(wanted) & set(found), "no output was compared"


def real_tokens(feed: Arrays, array: NDArray[Any]) -> Any:
    """Where an array has a row for each token: the tokens that are no padding."""
    for mask in ("attention_mask", "encoder_attention_mask"):
        if mask in feed and array.shape[:2] == feed[mask].shape:
            return feed[mask].astype(bool)
    return np.ones(array.shape[:1], bool)


def runs_empty(graph: Path, feed: Arrays) -> bool:
    """Whether a batch of no texts gives outputs of no rows; some models' shapes do not allow one."""
    try:
        outputs = stepwise(graph, feed, {})
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return False
    assert 0 in outputs["sae_values"].shape
    return True


def described(values: Any) -> str:
    """The names of inputs or outputs, those of keys and values as one."""
    names = [value.name for value in values]
    kinds = {"past_key_values": "past_key_values.N.*", "present": "present.N.*"}
    return ", ".join(dict.fromkeys(kinds.get(name.split(".")[0], name) for name in names))


def assert_listed(name: str, *cells: str) -> None:
    """Compare a row of the table, or write it: `SAE_RUNTIME_WRITE_TABLE`."""
    row = f"| {' | '.join([name, *cells])} |"
    if not os.environ.get("SAE_RUNTIME_WRITE_TABLE"):
        lines = TABLE.read_text().splitlines()
        start = f"| {name} | {cells[0]} | none |"  # a refusal names a line of transformers, which moves
        assert row in lines or (cells[1] == "none" and any(line.startswith(start) for line in lines))
        return
    with TABLE.open("r+") as file:  # several processes may write
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
        rows = {line.split("|")[1].strip(): line for line in lines[first:]} | {name: row}
        file.seek(0)
        file.truncate()
        file.write("\n".join([*lines[:first], *(rows[case] for case in CASES if case in rows)]) + "\n")
