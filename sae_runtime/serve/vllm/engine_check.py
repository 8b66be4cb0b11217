"""Refuses engines of vLLM in which features would not be read or edited, or not as they should."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.serve.vllm.asking import Reader
from sae_runtime.serve.vllm.settings import Place, Settings


def check_engine(config: Any, settings: Settings, *, known_workers: Collection[str]) -> None:
    """Raise ValueError if an engine cannot serve these SAEs.

    Args:
        config: the VllmConfig.
        settings: which SAEs, and where.
        known_workers: names of the worker classes that ours may take the place of.

    Raises:
        ValueError: the message names the option to change.
        BundleError: a bundle is damaged.
    """
    model, parallel = config.model_config, config.parallel_config
    if not model.enforce_eager:
        raise ValueError("compiled models and graphs run past hooks, so SAEs need --enforce-eager; add it")
    for is_so, what, instead in (
        (parallel.pipeline_parallel_size > 1, "pipeline parallel", "--pipeline-parallel-size 1"),
        (parallel.data_parallel_size > 1, "data parallel", "a vLLM for each replica"),
        (parallel.prefill_context_parallel_size > 1, "prefill context parallel", "--prefill-context-parallel-size 1"),
        (parallel.decode_context_parallel_size > 1, "decode context parallel", "--decode-context-parallel-size 1"),
        (parallel.enable_expert_parallel, "expert parallel", "no --enable-expert-parallel"),
        (parallel.use_ubatching, "batches in halves", "neither --enable-dbo nor --ubatch-size"),
        (config.speculative_config is not None, "speculative decoding", "no --speculative-config"),
        (config.kv_transfer_config is not None, "the transfer of keys and values", "no --kv-transfer-config"),
        (config.ec_transfer_config is not None, "the transfer of encoders' outputs", "no --ec-transfer-config"),
        (config.cache_config.kv_sharing_fast_prefill, "a prefill of some layers", "no --kv-sharing-fast-prefill"),
        (model.enable_sleep_mode, "sleep", "no --enable-sleep-mode"),
        (model.runner_type != "generate", "pooling models", "a model that writes text"),
        (model.is_encoder_decoder, "encoder-decoder models", "a decoder"),
        (model.is_diffusion, "models that write by diffusion", "one that writes token by token"),
    ):
        if is_so:
            raise ValueError(f"SAEs are not served with {what}; use {instead}")
    if parallel.worker_cls not in known_workers:
        raise ValueError(
            f"the worker {parallel.worker_cls} is not one that SAEs are served with; leave out --worker-cls"
        )
    for place in settings.saes:
        _check_place(place, model.get_hidden_size(), parallel.tensor_parallel_size)
    import torch

    Reader(settings, torch.finfo(model.dtype).max)  # which refuses a policy that does not fit


def _check_place(place: Place, width: int, processes: int) -> None:
    """Raise ValueError if an SAE cannot read there, in a model of this width that so many processes share."""
    hook, d_in = parse_hook(place.hook), read_manifest(Path(place.bundle)).architecture.d_in
    of_block = hook.place in ("resid_pre", "resid_mid", "resid_post") or hook.name.rpartition(".")[2].isdigit()
    of_block |= hook.place == "lens" and "hook_resid" in hook.name
    if of_block and width != d_in:
        raise ValueError(
            f"SAE {place.name} reads activations of width {d_in}, and the model's are {width} wide; "
            "give an SAE of this model"
        )
    if not of_block and processes > 1:  # there a process may have a part of the activations
        raise ValueError(
            f"with tensor parallel an SAE reads the stream at a block, and the hook of SAE {place.name} is "
            f"{place.hook}; use --tensor-parallel-size 1, or hook a block"
        )
