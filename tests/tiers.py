"""Which test modules are too slow to run while working, by the processor time that they take.

A module that is not named here takes a few seconds at most. `make test-fast` runs those alone, `make test` those and
the medium ones, `make test-full` all.
"""

MEDIUM = (
    "test_from_sae_lens",
    "test_few_architectures",
    "test_gaps",
    "test_alignment",
    "test_fit_hooks",
    "test_forward",
    "test_many_hooks",
    "test_calibrate_split",
    "test_gates",
    "test_texts",
    "test_export_model_command",
    "test_harvest_command",
    "test_splice_command",
    "test_train_command",
    "test_demo",
    "test_exact",
    "test_export",
    "test_forms",
    "test_generation",
    "test_export_model",
    "test_hook_point",
    "test_hook_tensor",
    "test_hooks_end_to_end",
    "test_integers",
    "test_splicing",
    "test_docstrings",
    "test_packaging",
    "test_readme",
    "test_tiler",
    "test_batch_rule",
    "test_sae",
    "test_run_state",
    "test_same_hooks",
    "test_attaching",
    "test_lazy_imports",
    "test_fitting",
    "test_harvesting",
    "test_host_loss",
    "test_left_out_commands",
    "test_left_out_fits",
    "test_odd_data",
    "test_stream",
    "test_ties",
    "test_triton_kernels",
    "test_world",
    "test_transformer_lens_names",
)
SLOW = (
    "test_albert",
    "test_architectures",
    "test_fused_norm",
    "test_massive_norm",
    "test_minilm_hosts",
    "test_model_families",
    "test_moe_host",
    "test_parallel_blocks",
    "test_processed_model",
    "test_real_ties",
    "test_sinks_calibrate",
    "test_ties_served",
    "test_tinystories_host",
)


def tier(module: str) -> str | None:
    """The marker of a test module, by its name."""
    return "slow" if module in SLOW else "medium" if module in MEDIUM else None
