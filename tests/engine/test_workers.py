"""An SAE works in processes of every kind, and its torch module too."""

import copy
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_x
from torch.utils.data import DataLoader, Dataset

from sae_runtime import SAE, load
from sae_runtime.core.slots import Slots
from sae_runtime.engine import forks
from sae_runtime.train.measure.torch_sae import open_sae

BundleOf = Callable[..., Path]


def same(found: Slots, expected: Slots) -> bool:
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@pytest.fixture
def sae(bundle_of: BundleOf) -> SAE:
    return load(bundle_of("mutual", 512), graph="encode_exact.onnx", threads=2)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_every_kind_encode_with_equal_bits(sae: SAE, method: str) -> None:
    x = make_x(600)
    expected = sae.encode_slots(x)
    context = multiprocessing.get_context(method)
    task = operator.methodcaller("encode_slots", x)
    with context.Pool(2) as pool:
        assert all(same(one, expected) for one in pool.map_async(task, [sae] * 3).get(100))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert same(executor.submit(sae.encode_slots, x).result(100), expected)


def test_joblib_sends_an_sae_to_its_workers(sae: SAE) -> None:
    joblib = pytest.importorskip("joblib")
    x = make_x(600)
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(sae.encode_slots)(part) for part in (x[:300], x[300:]))
    for one, part in zip(found, (x[:300], x[300:]), strict=True):
        assert same(one, sae.encode_slots(part))


class Encoded(Dataset[torch.Tensor]):
    """The dense features of single rows."""

    def __init__(self, sae: SAE, count: int) -> None:
        self.sae, self.x = sae, make_x(count)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.sae.encode(self.x[number]).to_dense())


def test_a_data_loader_encodes_in_its_workers(sae: SAE) -> None:
    loader = DataLoader(Encoded(sae, 8), batch_size=4, num_workers=2, timeout=60, multiprocessing_context="fork")
    np.testing.assert_array_equal(torch.cat(list(loader)), sae.encode(make_x(8)).to_dense())


def test_the_torch_module_is_pickled_and_copied(bundle_of: BundleOf, kind: str) -> None:
    module: Any
    module, x = open_sae(bundle_of(kind)), torch.from_numpy(make_x(8))
    z = module.pre_activations(x)
    for there in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(there(x), module(x)) and there.manifest == module.manifest
        if module.batch is not None:
            assert torch.equal(there.batch(z), module.batch(z))


def opened_in_this_process() -> set[Any]:
    return {graph for sessions in forks._owners for graph in sessions.opened}  # type: ignore[attr-defined]


def test_a_forked_process_has_none_of_its_parents_sessions(sae: SAE) -> None:
    sae.encode(make_x(600))
    assert opened_in_this_process()
    reader, writer = multiprocessing.get_context("fork").Pipe()
    child = os.fork()
    if child == 0:
        writer.send(opened_in_this_process())
        os._exit(0)
    os.waitpid(child, 0)
    assert reader.poll(10) and reader.recv() == set()


def test_a_fork_among_busy_threads_ends_without_waiting_for_threads_of_its_parent(bundle_of: BundleOf) -> None:
    code = f"""
import os, sys, threading
import numpy as np
import sae_runtime
sae = sae_runtime.load({str(bundle_of("mutual", 512))!r}, graph="encode_exact.onnx", threads=2)
x = np.random.default_rng(0).standard_normal((2000, sae.d_in)).astype(np.float32)
expected = sae.encode(x).values
stop = threading.Event()
def busy():
    while not stop.is_set():
        sae.encode(x)
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for use in (True, False, True):
    child = os.fork()
    if child == 0:
        sys.exit(7 if not use or np.array_equal(sae.encode(x).values, expected) else 8)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
print(codes)
"""
    # Where onnxruntime 1.29 or later sends telemetry, no forked process that imported it ends by itself.
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("[7, 7, 7]\n", "")
