"""Features of a text on disk by SAELens and by delphi: the torch way, each by the library's own classes.

Both need texts of one length. What SAELens keeps is written as it is, since it has no format for features of a corpus.
"""

import importlib.metadata
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Host(nn.Module):
    """A transformers encoder; `whole=False`: without the layers behind the hook `encoder.layer.N`."""

    def __init__(self, source: Path, hook: str, *, whole: bool = False) -> None:
        from transformers import AutoModel

        super().__init__()
        body = AutoModel.from_pretrained(source).eval()
        if not whole:
            body.encoder.layer = body.encoder.layer[: int(hook.rpartition(".")[2]) + 1]
        self.body, self.hook, self.device = body, f"body.{hook}", torch.device("cpu")

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        """The last hidden state, as SAELens's proxy and delphi's cache take the answer of a model."""
        return (self.body(ids).last_hidden_state,)


def token_ids(source: Path, texts: Sequence[str], length: int) -> Tensor:
    """Ids [texts, length] by transformers' tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(list(texts), truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    assert isinstance(ids, Tensor)
    return ids


class SAELens:
    """SAELens's ActivationsStore and its SAE; what is active goes to a safetensors file."""

    def __init__(self, source: Path, bundle: Path, hook: str, d_in: int, *, whole: bool = False) -> None:
        from sae_lens import SAE
        from sae_lens.load_model import HookedProxyLM
        from transformers import AutoTokenizer

        host = Host(source, hook, whole=whole)
        self._source, self._d_in, self._hook = source, d_in, host.hook
        self._model = HookedProxyLM(host, AutoTokenizer.from_pretrained(source), hook_names=[host.hook])
        self._sae = SAE.load_from_disk(bundle)

    @torch.no_grad()
    def run(self, texts: Sequence[str], length: int, out: Path, *, batch: int) -> int:
        """Write indices and values of all tokens; gives the number of matches."""
        from datasets import Dataset
        from sae_lens.training.activations_store import ActivationsStore

        ids = token_ids(self._source, texts, length)
        store = ActivationsStore(
            model=self._model,
            dataset=Dataset.from_dict({"tokens": ids.numpy()}),
            streaming=False,
            hook_name=self._hook,
            hook_head_index=None,
            context_size=length,
            d_in=self._d_in,
            n_batches_in_buffer=1,
            total_training_tokens=1,
            store_batch_size_prompts=batch,
            train_batch_size_tokens=batch,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
        )
        found: dict[str, list[Tensor]] = {"locations": [], "values": []}
        for begin in range(0, len(ids), batch):
            features = self._sae.encode(store.get_activations(store.get_batch_tokens(min(batch, len(ids) - begin))))
            where = features.nonzero()
            found["values"].append(features[where.unbind(1)])
            where[:, 0] += begin
            found["locations"].append(where.to(torch.int32))
        save_file({"tokens": ids, **{name: torch.cat(parts) for name, parts in found.items()}}, out / "f.safetensors")
        return sum(map(len, found["values"]))


class Delphi:
    """delphi's LatentCache, with SAELens's SAE as the sparse coder."""

    def __init__(self, source: Path, bundle: Path, hook: str, *, whole: bool = False) -> None:
        from sae_lens import SAE

        self._host, self._source = Host(source, hook, whole=whole), source
        self._sae = SAE.load_from_disk(bundle)
        self._cache = latent_cache()

    def run(self, texts: Sequence[str], length: int, out: Path, *, batch: int) -> int:
        """Write a cache in five files; gives the number of matches."""
        ids = token_ids(self._source, texts, length)
        cache = self._cache(self._host, {self._host.hook: self._sae.encode}, batch_size=batch)
        cache.run(ids.numel(), ids)
        cache.save_splits(n_splits=5, save_dir=out)
        return len(cache.cache.latent_activations[self._host.hook])


def latent_cache() -> Any:
    """The class LatentCache. What its package imports besides (faiss, sentence_transformers) is left out.

    Raises:
        ImportError: delphi is not installed: `pip install --no-deps --target .venv/delphi eai-delphi`.
    """
    import delphi

    package = types.ModuleType("delphi.latents")
    package.__path__ = [str(Path(delphi.__path__[0], "latents"))]
    sys.modules.setdefault("delphi.latents", package)
    from delphi.latents.cache import LatentCache

    return LatentCache


def versions() -> str:
    """Of the peers."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("sae-lens", "eai-delphi", "torch"))


def positions(locations: np.ndarray[Any, Any], length: int, d_sae: int) -> np.ndarray[Any, Any]:
    """One number for each match of [sequence, position, feature], to compare sets of them."""
    where = locations.astype(np.int64)
    return np.sort((where[:, 0] * length + where[:, 1]) * d_sae + where[:, 2])
