"""The worker that vLLM starts in the place of its platform's own: `--worker-cls sae_runtime.serve.vllm.worker.Worker`.

The plugin sets it by itself where the additional configuration has the key `sae`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from sae_runtime.serve.vllm import plugin
from sae_runtime.serve.vllm.settings import read_settings
from sae_runtime.serve.vllm.steering import Steering

_TOKENS = 16  # of the short run

_Own: Any = resolve_obj_by_qualname(
    plugin.WORKERS["cpu" if current_platform.is_cpu() else "xpu" if current_platform.is_xpu() else "gpu"]
)


class Worker(_Own):  # type: ignore[misc]  # vLLM's classes are not known to the checker
    """The platform's worker, whose model has SAEs at hooks."""

    _steering: Steering | None = None

    def load_model(self, *args: Any, **named: Any) -> None:
        """As vLLM's; then the SAEs are loaded, and a short run tells in which form their hooks have activations.

        Raises:
            ValueError: an SAE does not fit the model, or the plugin was not loaded.
        """
        super().load_model(*args, **named)
        settings = read_settings(self.vllm_config.additional_config)
        if settings is None:
            return
        if not plugin.registered():
            raise ValueError("VLLM_PLUGINS leaves out sae_runtime, which checks requests; name it there, or unset it")
        with torch.inference_mode():
            self._steering = Steering(self.model_runner, settings, self._short_run, second=self.use_v2_model_runner)

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's, with features read and edited."""
        if self._steering is None:
            return super().execute_model(scheduler_output)
        self._steering.begin(scheduler_output)
        output = super().execute_model(scheduler_output)
        self._steering.end()
        return output

    def sae_features(self, tickets: Sequence[str]) -> dict[str, Any]:
        """The features that are kept for tickets, which are then kept no longer; see `KeptFeatures.take`."""
        return self._with_saes().kept.take(tickets)

    def sae_drop(self, tickets: Sequence[str]) -> None:
        """Keep the features of tickets no longer."""
        self._with_saes().kept.drop(tickets)

    def sae_status(self) -> dict[str, Any]:
        """Of each SAE by name: its hook, and its figures on the first tokens beside the bundle's."""
        return self._with_saes().status()

    def _with_saes(self) -> Steering:
        if self._steering is None:
            raise ValueError("this vLLM serves no SAE; name one in the key sae of its additional configuration")
        return self._steering

    def _short_run(self) -> None:
        more = {"skip_attn": True} if self.use_v2_model_runner else {}
        self.model_runner._dummy_run(_TOKENS, is_profile=True, **more)
