"""Functions that run in vLLM's environment with its second model runner, the usual one on GPUs.

That runner needs Triton, and Triton has no compiler for this processor. Here Triton's own interpreter runs its kernels,
and vLLM is told that Triton has a driver.
"""

import os
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "TORCHDYNAMO_DISABLE": "1"}

from triton import backends  # noqa: E402

driver = SimpleNamespace(is_active=lambda: True)
backends.backends["cpu"] = backends.Backend(compiler=None, driver=driver)

import vllm_families  # noqa: E402
from llm_calls import count_preemptions  # noqa: E402

__all__ = ["count_preemptions"]
start, served = vllm_families.start, vllm_families.served


def runner() -> tuple[str, bool]:
    """The module of the model runner's class, and whether vLLM says that it is the second one."""
    worker: Any = vllm_families._worker()
    return type(worker.model_runner).__mro__[1].__module__, worker.use_v2_model_runner
