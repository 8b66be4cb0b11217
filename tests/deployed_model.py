"""Deployed models of a few thousand random weights: spliced tiny hosts with a tokenizer, and what torch computes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import K, make_weights
from numpy.typing import NDArray
from tiny_host import HOOKS, host_graph, torch_host
from tiny_model import END, SPECIALS, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae_runtime.core.edits import Edit
from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice

D_SAE = 150


def write_tokenizer(folder: Path, kind: str) -> None:
    """Words w0 to w39; BERT's tokenizer frames a text, GPT-2's adds nothing and has no padding."""
    framed = kind == "bert"
    vocabulary = SPECIALS | {f"w{i}": i + len(SPECIALS) for i in range(WORDS)}
    if not framed:
        vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<|end|>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]" if framed else "<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"unk_token": "<|end|>", "eos_token": "<|end|>"}
    if framed:
        frame = [(token, SPECIALS[token]) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
        names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # not typed
    fast.save_pretrained(folder)


def deploy(folder: Path, kind: str, splices: Sequence[Splice] | Mapping[str, Any]) -> Path:
    """A folder with a spliced tiny host, its configuration and its tokenizer; the host alone where nothing is spliced.

    Args:
        folder: that is written.
        kind: "bert" or "gpt2".
        splices: what is put in; or the bundle and other fields of one `Splice` at the usual hook.
    """
    source = host_graph(kind)
    shutil.copytree(source.parent, folder)
    torch_host(kind).config.save_pretrained(folder)
    write_tokenizer(folder, kind)
    if isinstance(splices, Mapping):
        splices = [Splice(**{"hook": HOOKS[kind], **splices})]
    if splices:
        splice(folder / source.name, splices)
    return folder


def ids_of(text: str, kind: str) -> list[int]:
    """The ids of a text of words w0 to w39, without tokenizer."""
    own = [int(word[1:]) + (len(SPECIALS) if kind == "bert" else 0) for word in text.split()]
    return [SPECIALS["[CLS]"], *own, SPECIALS["[SEP]"]] if kind == "bert" else own


def some_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(WORDS, size=rng.integers(1, longest + 1))) for _ in range(count)]


@torch.no_grad()
def by_torch(
    kind: str, text: str, sae: str | None = None, edits: Sequence[Edit] = (), gate: Sequence[float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features [t, d_sae] by the witness at a torch hook, and the output [t, n] with edits of numpy at the hook."""
    model, ids = torch_host(kind), torch.tensor([ids_of(text, kind)])
    seen: list[NDArray[np.float64]] = []

    def hook(_module: Any, _given: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).numpy()
        weights = make_weights(D_SAE, sae or "mutual")
        z = witness.pre_activations(weights, x[0])
        kept = witness.token_choice(z, K) if sae == "token" else witness.threshold(z, weights["threshold"])
        f = np.where(kept.kept, z, 0)
        seen.append(f)
        numbers = {
            "scale": [[edit.factor for edit in edits]],
            "shift": [[edit.shift for edit in edits]],
            "low": [[edit.low for edit in edits]],
            "high": [[edit.high for edit in edits]],
        }
        amount = np.ones(len(f)) if gate is None else np.asarray(gate)
        if not edits:
            return None
        features = np.array([[edit.feature for edit in edits]])
        y = witness.steer(weights, x, f[None], features, **numbers, gate=amount[None, :, None])
        new = torch.from_numpy(y.astype(np.float32))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.get_submodule(HOOKS[kind]).register_forward_hook(hook)
    try:
        output = model(ids)
    finally:
        handle.remove()
    return seen[0], (output.logits if kind == "gpt2" else output.last_hidden_state)[0].numpy().astype(np.float64)
