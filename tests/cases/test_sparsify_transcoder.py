"""A transcoder of sparsify reads the input of the module that it names, and so does a harvest at its bundle's hook."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import Rows, all_rows, harvested, jaccard, random_texts, word_tokenizer, write_paragraphs
from numpy.typing import NDArray
from sparsify import SparseCoder, SparseCoderConfig
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE, D_IN, D_SAE = "h.1.mlp", 32, 128
TEXTS = random_texts([20] * 20)


class Case:
    """A model on disk, a transcoder of one of its MLPs as a bundle, and what sparsify gives on the model's texts."""

    def __init__(self, folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = save_model(folder / "model")
            self.transcoder = random_transcoder()
        self.bundle = folder / "bundle"
        self.transcoder.save_to_disk(folder / "run" / MODULE)
        run = {"model": "model", "hookpoints": [MODULE], "sae": {"transcode": True}}
        (folder / "run" / "config.json").write_text(json.dumps(run))
        convert(folder / "run" / MODULE, self.bundle)
        export(self.bundle)
        self.inputs = module_inputs(self.model)

    def true_features(self) -> NDArray[np.float32]:
        """The features that sparsify gives on the module's input."""
        with torch.no_grad():
            top = self.transcoder.encode(torch.from_numpy(self.inputs))
        dense = torch.zeros(len(self.inputs), D_SAE).scatter_(1, top.top_indices, top.top_acts)
        return np.asarray(dense.numpy())


def save_model(folder: Path) -> Path:
    config = GPT2Config(
        vocab_size=64, n_embd=D_IN, n_layer=3, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def random_transcoder() -> Any:
    transcoder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=4, transcode=True))
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return transcoder


@torch.no_grad()
def module_inputs(folder: Path) -> Rows:
    """What goes into the module, token by token, by a torch hook."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), word_tokenizer()
    inputs: list[Rows] = []
    model.get_submodule(MODULE).register_forward_pre_hook(lambda _module, given: inputs.append(given[0][0].numpy()))
    for text in TEXTS:
        model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"])
    return np.concatenate(inputs)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("transcoder"))


def test_on_the_modules_input_the_features_are_sparsifys(case: Case) -> None:
    got = load(case.bundle).encode(case.inputs).to_dense()
    np.testing.assert_allclose(got, case.true_features(), atol=1e-4)


def test_on_harvested_activations_the_features_are_sparsifys(case: Case, tmp_path: Path) -> None:
    hook = bundle.read(case.bundle).manifest.hook
    assert hook is not None
    text = write_paragraphs(tmp_path / "text.txt", TEXTS)
    x = all_rows(harvested(case.model, hook, text, tmp_path / "activations", context=64))
    assert jaccard(load(case.bundle).encode(x).to_dense(), case.true_features()) > 0.99
