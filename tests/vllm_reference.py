"""What transformers and `attach` generate and read for a request to vLLM, and how its answer is compared with that."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_bundles import HOOK, KINDS, activations_of, write_bundle
from vllm_processes import MODEL, ROOT

from sae_runtime.bundle import folder as bundle
from sae_runtime.core.features import Features, concatenate
from sae_runtime.serve.edit_objects import read_edits
from sae_runtime.serve.limits import Limits
from sae_runtime.train import attach
from sae_runtime.train.measure.torch_sae import TorchSAE, open_sae

TOLERANCE = 1e-3  # of values, relative to the largest of their row; of logarithms of probabilities
_CLEAR = 2e-3  # of margins


@dataclass(frozen=True)
class Answer:
    """What a model writes and reads for a request.

    Attributes:
        tokens: that it wrote.
        logprobs: of these tokens.
        features: dense by SAE, [prompt + written - 1, d_sae].
        margins: how much each of these tokens was above the next best one, in logits.
    """

    tokens: list[int]
    logprobs: NDArray[np.float64]
    features: Mapping[str, NDArray[np.float32]]
    margins: NDArray[np.float64]


def make_reference(home: Path) -> "Reference":
    """SmolLM2 in transformers, and bundles of every kind in a folder."""
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    x = activations_of(model.eval(), tokenizer, (ROOT / "LICENSE").read_text()[:7000])
    return Reference(model, tokenizer, {kind: write_bundle(home / kind, kind, x) for kind in KINDS})


class Reference:
    """transformers + `attach` for requests in the form of `llm_calls.generate`; each answer is computed once.

    A gate of `attach` has no "text", which is the gate "all" and the special tokens left out.
    """

    def __init__(self, model: Any, tokenizer: Any, bundles: Mapping[str, Path]) -> None:
        self.model, self.tokenizer, self.bundles = model, tokenizer, bundles
        self.sae = functools.cache(lambda name: open_sae(bundles[name]))
        self._known: dict[str, Answer] = {}

    def answer(self, request: Mapping[str, Any], saes: Sequence[str]) -> Answer:
        """The greedy answer of the model with these SAEs, the first of which reads and edits first."""
        asked = {name: value for name, value in (request.get("sae") or {}).items() if name != "sae_features"}
        key = json.dumps([{**request, "sae": asked}, list(saes)])
        if key not in self._known:
            ids = list(request["ids"])
            with self._attached(request, saes) as read, torch.no_grad():
                made = self.model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    do_sample=False,
                    max_new_tokens=request.get("max_tokens", 24),
                    pad_token_id=0,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            first, second = torch.cat(made.logits).topk(2).values.T.double().numpy()
            tokens = made.sequences[0, len(ids) :].tolist()
            self._known[key] = Answer(
                tokens,
                _logprobs(torch.cat(made.logits), tokens),
                {name: _dense(passes) for name, passes in read.items()},
                first - second,
            )
        return self._known[key]

    def clear(self, request: Mapping[str, Any], saes: Sequence[str]) -> dict[str, Any]:
        """The request, which ends before the first token that another rounding might not choose."""
        unclear = np.flatnonzero(self.answer(request, saes).margins < _CLEAR)
        if not len(unclear):
            return dict(request)
        assert unclear[0] >= 4, f"too few clear choices; give another request than {request.get('sae')}"
        return {**request, "max_tokens": int(unclear[0])}

    def read(self, request: Mapping[str, Any], tokens: Sequence[int], saes: Sequence[str]) -> Answer:
        """As `answer`, where the tokens were chosen by another, such as sampling."""
        ids = [*request["ids"], *tokens]
        with self._attached(request, saes, len(request["ids"])) as read, torch.no_grad():
            logits = self.model(torch.tensor([ids[:-1]])).logits[0, len(request["ids"]) - 1 :]
        return Answer(
            list(tokens),
            _logprobs(logits, tokens),
            {name: _dense(passes) for name, passes in read.items()},
            np.empty(0),
        )

    @contextmanager
    def _attached(
        self, request: Mapping[str, Any], saes: Sequence[str], prompt: int | None = None
    ) -> Iterator[dict[str, list[Features]]]:
        asked = request.get("sae") or {}
        edits = read_edits(asked.get("sae_edits", []), Limits())
        gate = asked.get("sae_gate", "all")
        chooses: Any = "all" if gate == "text" else set(gate) if isinstance(gate, list) else gate
        skip = self.tokenizer.all_special_ids if gate == "text" else ()
        with ExitStack() as stack:
            read = {}
            for name in saes:
                own = [*edits.get(name, ()), *(edits.get(None, ()) if len(saes) == 1 else ())]
                here = attach(self.model, HOOK, self.sae(name), own, gate=chooses, skip_ids=skip, prompt_tokens=prompt)
                read[name] = stack.enter_context(here)
            yield read


def _logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> NDArray[np.float64]:
    return logits.double().log_softmax(dim=-1).gather(1, torch.tensor([tokens]).T)[:, 0].numpy()


def _dense(passes: Sequence[Features]) -> NDArray[np.float32]:
    return concatenate(passes, passes[0].d_sae, (sum(map(len, passes)),)).to_dense()


def assert_answer(
    got: Mapping[str, Any], request: Mapping[str, Any], reference: Reference, saes: Sequence[str]
) -> None:
    """Assert that a greedy answer of vLLM has the tokens, their probabilities and the features of the reference."""
    want = reference.answer(request, saes)
    assert want.margins.min() >= _CLEAR, "a choice is not clear; give another request, or take `Reference.clear`"
    assert got["tokens"] == [want.tokens], request.get("sae")
    assert_read(got, 0, want, request, reference)


def assert_read(
    got: Mapping[str, Any], number: int, want: Answer, request: Mapping[str, Any], reference: Reference
) -> None:
    """Assert that one of several answers has the probabilities and features of the reference."""
    assert np.abs(np.array(got["logprobs"][number]) - want.logprobs).max() < TOLERANCE, request.get("sae")
    asked = (request.get("sae") or {}).get("sae_features", 0)
    if asked:
        for name, truth in want.features.items():
            strongest = None if asked == "all" else asked
            assert_features_equal(got["features"][number][name], truth, reference.sae(name), strongest=strongest)


def dense(plain: Mapping[str, NDArray[Any]], d_sae: int) -> NDArray[np.float32]:
    """Features of `llm_calls.generate` as an array [t, d_sae]."""
    rows = np.repeat(np.arange(len(plain["indptr"]) - 1), np.diff(plain["indptr"]))
    out = np.zeros((len(plain["indptr"]) - 1, d_sae), np.float32)
    out[rows, plain["indices"]] = plain["values"]
    assert (plain["values"] > 0).all() and len(set(zip(rows, plain["indices"], strict=True))) == len(rows)
    return out


def assert_features_equal(
    got: Mapping[str, NDArray[Any]], truth: NDArray[Any], sae: TorchSAE, *, strongest: int | None = None
) -> None:
    """Assert equal supports and values within `TOLERANCE` of the largest of the row.

    A feature that one of them lacks must stand as near to where it is dropped: its threshold, or the weakest that is
    kept.

    Args:
        got: features of `llm_calls.generate`.
        truth: dense features [t, d_sae].
        sae: the SAE of both.
        strongest: how many features of each token were asked for; None: all.
    """
    found = dense(got, truth.shape[1])
    assert found.shape == truth.shape
    largest = np.maximum(found.max(axis=1), truth.max(axis=1))
    if strongest is not None:
        assert ((found > 0).sum(axis=1) == np.minimum((truth > 0).sum(axis=1), strongest)).all()
        truth = np.where(truth >= -np.sort(-truth, axis=1)[:, strongest - 1 : strongest], truth, 0)
    both = (found > 0) & (truth > 0)
    assert (np.abs(found - truth) / np.maximum(largest, 1e-9)[:, None])[both].max() < TOLERANCE
    differing = np.argwhere((found > 0) != (truth > 0))
    assert len(differing) <= 2e-3 * both.sum()
    for row, feature in differing:
        has, lacks = sorted((found[row], truth[row]), key=lambda f: -f[feature])
        assert abs(has[feature] - _limit(lacks, feature, sae, strongest)) < TOLERANCE * largest[row]


def _limit(f: NDArray[Any], feature: int, sae: TorchSAE, strongest: int | None) -> float:
    """The activation below which a feature is not among those of a token, whose others are f [d_sae]."""
    architecture = sae.manifest.architecture
    if strongest is None and architecture.selection == "threshold":
        return float(bundle.read(sae.path).tensor("threshold")[feature])
    if strongest is None and architecture.selection == "groupmax":
        run = architecture.d_sae // (architecture.k or 1)
        begin = feature // run * run
        return float(f[begin : begin + run].max())
    return float(f[f > 0].min())
