import subprocess
import sys

import pytest

import sae_runtime.train


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import sae_runtime.train",
        "import sae_runtime.train.config, sae_runtime.train.harvest.config",
        "from sae_runtime.train import HarvestConfig, TrainConfig",
    ],
)
def test_importing_the_package_or_its_configs_imports_no_torch_and_sets_no_variable(imports: str) -> None:
    code = f"import os, sys; before = dict(os.environ)\n{imports}\n"
    assert python(code + "print('torch' in sys.modules, dict(os.environ) == before)") == "False True\n"


def test_functions_of_the_packages_are_imported_at_their_first_use() -> None:
    names = """
from sae_runtime.train import attach, evaluate, fit, fit_many
from sae_runtime.train.harvest import harvest
print(all(map(callable, (attach, evaluate, fit, fit_many, harvest))))
"""
    assert python(names) == "True\n"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match=r"module 'sae_runtime\.train' has no attribute 'fitt'"):
        sae_runtime.train.fitt  # noqa: B018


def test_fit_asks_for_huge_pages_before_torch_allocates() -> None:
    code = """
import pathlib, sys, tempfile
import numpy as np
from sae_runtime.train import TrainConfig, fit
with tempfile.TemporaryDirectory() as folder:
    fit(np.random.default_rng(0).standard_normal((300, 8)), folder + "/sae", TrainConfig(k=2, tokens=128, batch=64))
import torch
kept = torch.ones(64, 1024, 1024)
smaps = pathlib.Path("/proc/self/smaps")
if not smaps.exists() or not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists():
    print("unknown")
else:
    # The mark of what was asked for; whether the kernel grants it depends on how much memory it finds in one piece.
    flags = [line.split() for line in smaps.read_text().splitlines() if line.startswith("VmFlags:")]
    print(any("hg" in names for names in flags))
"""
    assert python(code) in ("True\n", "unknown\n")
