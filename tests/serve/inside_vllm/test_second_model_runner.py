"""Under vLLM's second model runner, the usual one on GPUs, SAEs read and edit what transformers and `attach` do."""

from pathlib import Path

from vllm_processes import called, needs_vllm

pytestmark = needs_vllm
CALLS = Path(__file__).with_name("second_runner_calls.py")
HOOKS = ["layers.0", "layers.1", "layers.2", "input:layers.1", "layers.1.resid_mid", "layers.1.mlp"]


def test_packed_requests(tmp_path: Path) -> None:
    with called(CALLS, tmp_path / "log", VLLM_CPU_OMP_THREADS_BIND="nobind") as call:
        call("start", "llama", str(tmp_path), HOOKS)
        assert call("runner") == ("vllm.v1.worker.gpu.model_runner", True)
        assert call("served")["layers.1"] == "sum"
        # Prompts in pieces of at most 16 tokens, beside requests that write.
        call("start", "llama", str(tmp_path), HOOKS[1:2], max_num_batched_tokens=16, max_num_seqs=16)
        call("served")
        # Keys and values of two requests do not fit: one is stopped, and begins again.
        few = {"num_gpu_blocks_override": 4, "block_size": 32, "max_model_len": 64}
        call("start", "cohere", str(tmp_path), HOOKS[1:2], **few)
        call("count_preemptions")
        call("served", 40)
        assert call("count_preemptions")
