"""Which test modules are too slow to run while working, by the processor time that they take.

A module that is not named here takes a few seconds at most. `make test-fast` runs those alone, `make test` those and
the medium ones, `make test-full` all.
"""

MEDIUM = (
    "checkpoints/test_from_sae_lens.py",
    "cases/test_albert.py",
    "cases/test_calibrate_split.py",
    "cases/test_fused_norm.py",
    "cases/test_gates.py",
    "cases/test_texts.py",
    "cases/test_ties_served.py",
    "cli/test_harvest_command.py",
    "cli/test_train_command.py",
    "demo/test_demo.py",
    "exports/test_exact.py",
    "exports/test_export.py",
    "exports/test_forms.py",
    "exports/test_generation.py",
    "exports/test_host.py",
    "exports/test_integers.py",
    "exports/test_splice.py",
    "project/test_docstrings.py",
    "project/test_packaging.py",
    "project/test_readme.py",
    "runtime/test_encoder.py",
    "runtime/test_joint_rule.py",
    "runtime/test_sae.py",
    "train/test_checkpoint.py",
    "train/test_fit.py",
    "train/test_harvest.py",
    "train/test_host_loss.py",
    "train/test_stream.py",
    "train/test_triton_kernels.py",
    "train/test_world.py",
)
SLOW = (
    "cases/test_architectures.py",
    "cases/test_massive_norm.py",
    "cases/test_minilm_hosts.py",
    "cases/test_moe_host.py",
    "cases/test_parallel_blocks.py",
    "cases/test_real_ties.py",
    "cases/test_sinks_calibrate.py",
    "cases/test_tinystories_host.py",
)


def tier(module: str) -> str | None:
    """The marker of a test module, named by its path from tests/."""
    return "slow" if module in SLOW else "medium" if module in MEDIUM else None
