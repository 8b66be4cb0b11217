import platform
import subprocess
import sys

import pytest
import torch

from sae_runtime.train.device import memory_errors, usable_device


def test_usable_device_gives_a_device_that_computes() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", "cpu:x"])
def test_usable_device_refuses_a_device_that_cannot_compute(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^torch cannot compute on {name} \(.+\); use another --device$"):
        usable_device(name)


def test_full_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="allocate.*; give smaller batches or fewer features"), memory_errors():
        torch.empty(10**15)
    with pytest.raises(MemoryError, match="^CUDA out of memory; give smaller"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB")


def test_memory_errors_lets_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="^a bug$"), memory_errors():
        raise RuntimeError("a bug")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_full_gpu_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="out of memory"), memory_errors():
        torch.empty(10**13, device="cuda")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
def test_freed_memory_is_kept() -> None:
    script = """
import ctypes, resource
from sae_runtime.train.device import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(1 << 26))
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(fresh_pages(), fresh_pages())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert second < first / 10
