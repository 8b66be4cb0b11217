"""A stand-in for vLLM's `LLM`, whose model is that of `word_model` and whose features numpy computes."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_weights
from made_hosts import WORDS, stream

from sae_runtime.exports import witness


class MadeLLM:
    """Reads tokens as vLLM's engine with the SAEs of `additional_config` does, and keeps features until they are taken.

    Attributes:
        prompts: all that were read, in order.
        waiting: the most tokens whose features waited at once.
    """

    def __init__(
        self, model: Path, additional_config: Any, *, max_model_len: int = 512, dtype: str = "torch.float32"
    ) -> None:
        config = SimpleNamespace(
            **{"model": str(model), "tokenizer": str(model), "revision": None, "tokenizer_revision": None},
            **{"max_model_len": max_model_len, "dtype": dtype, "quantization": None, "get_vocab_size": lambda: WORDS},
        )
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                model_config=config,
                additional_config=additional_config,
                load_config=SimpleNamespace(download_dir=None),
                cache_config=SimpleNamespace(cache_dtype="auto"),
            )
        )
        self.prompts, self.waiting, self.times = list[list[int]](), 0, 1.0
        self._kept = dict[str, list[int]]()

    def generate(self, prompts: Any, params: Any, use_tqdm: bool = True) -> list[Any]:
        """As vLLM's, for prompts of tokens that write one token and ask for all features."""
        assert (params.max_tokens, params.extra_args, use_tqdm) == (1, {"sae_features": "all"}, False)
        outputs = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            assert ids and len(ids) < self.llm_engine.vllm_config.model_config.max_model_len
            request = str(len(self.prompts))
            self.prompts.append(ids)
            self._kept[request] = ids
            answer = SimpleNamespace(index=0, token_ids=[7])
            outputs.append(SimpleNamespace(request_id=request, prompt_token_ids=ids, outputs=[answer]))
        self.waiting = max(self.waiting, sum(map(len, self._kept.values())))
        return outputs

    def collective_rpc(self, method: str, args: Any = ()) -> list[Any]:
        """`sae_features` and `sae_status` of the worker."""
        names = [sae["name"] for sae in self.llm_engine.vllm_config.additional_config["sae"]["saes"]]
        if method == "sae_status":
            return [{name: {"d_sae": 150} for name in names}]
        assert method == "sae_features"
        return [{one: {one: {0: dict.fromkeys(names, self._features(one))}} for one in args[0]}]

    def get_tokenizer(self) -> Any:
        """No tokenizer that can be written."""
        return SimpleNamespace()

    def _features(self, request: str) -> dict[str, bytes]:
        ids = np.array([*self._kept.pop(request), 7])  # one token more, as asynchronous scheduling reads it
        weights = make_weights(150, "mutual")
        z = witness.pre_activations(weights, stream(ids, 1).astype(np.float32))
        f = np.where(witness.threshold(z, weights["threshold"]).kept, z, 0).astype(np.float32)
        rows, indices = np.nonzero(f)
        return {
            "positions": np.arange(len(ids), dtype=np.int32).tobytes(),
            "indptr": np.searchsorted(rows, np.arange(len(ids) + 1)).astype(np.int64).tobytes(),
            "indices": indices.astype(np.int32).tobytes(),
            "values": (self.times * f[rows, indices]).astype(np.float32).tobytes(),
        }


def stand_in_for_vllm(patched: pytest.MonkeyPatch) -> None:
    """Let `from vllm import SamplingParams` give a plain object in this test."""
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    patched.setitem(sys.modules, "vllm", module)
