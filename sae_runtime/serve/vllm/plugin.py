"""vLLM's general plugin, which every process of vLLM loads: it checks the engine and each request, and sets the worker.

Methods of vLLM are wrapped. `EngineArgs.create_engine_config` is where an engine that cannot serve SAEs is refused.
`InputProcessor.process_inputs` is where a request is refused or gets its plan, before the engine sees it. In the API
server `to_beam_search_params` is where a request would lose what it asks.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sae_runtime.serve.vllm.asking import KEYS, PLAN, Asked, Reader
from sae_runtime.serve.vllm.engine_check import check_engine
from sae_runtime.serve.vllm.settings import VERSIONS, read_settings

WORKER = "sae_runtime.serve.vllm.worker.Worker"
WORKERS = {  # of vLLM, by platform
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "gpu": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}
_registered = False


def registered() -> bool:
    """Whether this process of vLLM has the plugin.

    >>> registered()
    False
    """
    return _registered


def register() -> None:
    """Wrap what the plugin wraps, once in each process. Without the key `sae`, vLLM does what it did."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm.engine.arg_utils import EngineArgs

    _wrap_config(EngineArgs)
    if _known_version():
        from vllm.v1.engine.input_processor import InputProcessor

        _wrap_inputs(InputProcessor)


def _known_version() -> bool:
    import vllm

    return str(vllm.__version__).startswith(tuple(f"{version}." for version in VERSIONS))


def _wrap_config(args: Any) -> None:
    inner = args.create_engine_config

    @functools.wraps(inner)
    def create_engine_config(self: Any, *given: Any, **named: Any) -> Any:
        _wrap_beams()
        settings = read_settings(self.additional_config)
        if settings is None:
            return inner(self, *given, **named)
        import vllm

        if not _known_version():
            raise ValueError(
                f"sae-runtime serves SAEs in vLLM {', '.join(VERSIONS)}, and this is {vllm.__version__}; install "
                f"vllm=={VERSIONS[-1]}.*"
            )
        config = inner(self, *given, **named)
        check_engine(config, settings, known_workers=(WORKER, *WORKERS.values()))
        config.parallel_config.worker_cls = WORKER
        return config

    args.create_engine_config = create_engine_config


def _wrap_beams() -> None:
    """Refuse a beam search with arguments for SAEs, which vLLM's API would drop; only its server has these bodies."""
    for module, name in (("completion", "CompletionRequest"), ("chat_completion", "ChatCompletionRequest")):
        body = getattr(sys.modules.get(f"vllm.entrypoints.openai.{module}.protocol"), name, None)
        if body is not None and not hasattr(body.to_beam_search_params, "__wrapped__"):
            body.to_beam_search_params = _without_saes(body.to_beam_search_params)


def _without_saes(inner: Any) -> Any:
    @functools.wraps(inner)
    def to_beam_search_params(self: Any, *given: Any, **named: Any) -> Any:
        with _refusals():
            if asked := [key for key in self.vllm_xargs or {} if key in KEYS]:
                raise ValueError(
                    f"a beam search takes no {asked[0]}, since it is many requests; leave out use_beam_search"
                )
        return inner(self, *given, **named)

    return to_beam_search_params


def _wrap_inputs(processor: Any) -> None:
    inner = processor.process_inputs

    @functools.wraps(inner)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *given: Any, **named: Any) -> Any:
        with _refusals():
            asked = _asked(reader_of_processor(self), getattr(params, "extra_args", None) or {})
        request = inner(self, request_id, prompt, params, *given, **named)
        if asked is None:
            return request
        with _refusals():
            return _with_plan(request, asked, self, request_id)

    processor.process_inputs = process_inputs


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Refuse a request in a way that vLLM's server answers with 400; of other errors it tells nothing, with 500."""
    try:
        yield
    except ValueError as error:
        raise _refused()(str(error)) from error


@functools.cache
def _refused() -> type[Exception]:
    from vllm.exceptions import VLLMValidationError

    return type("RefusedRequest", (VLLMValidationError, ValueError), {})


def _asked(reader: Reader | None, arguments: Mapping[str, Any]) -> Asked | None:
    """What a request asks.

    Raises:
        ValueError: it cannot be done, or no SAE is served.
    """
    if reader is not None:
        return reader.read(arguments)
    if given := [key for key in arguments if key == PLAN or key in KEYS]:
        raise ValueError(
            f"this vLLM serves no SAE, and the request has {given[0]}; start vLLM with the key sae in its "
            "additional configuration"
        )
    return None


def reader_of_processor(processor: Any) -> Reader | None:
    """What reads the requests of a processor; made once."""
    if not hasattr(processor, "sae_reader"):
        import torch

        settings = read_settings(processor.vllm_config.additional_config)
        largest = torch.finfo(processor.model_config.dtype).max
        processor.sae_reader = None if settings is None else Reader(settings, largest)
    return processor.sae_reader  # type: ignore[no-any-return]


def _with_plan(request: Any, asked: Asked, processor: Any, request_id: str) -> Any:
    """The request for the engine with its plan, and apart from prefixes that other requests computed.

    Raises:
        ValueError: what it asks cannot be done for such a request.
    """
    params = request.sampling_params
    for one, what in (
        (params is None, "an embedding"),
        (request.resumable, "a streamed session"),
        (request.prompt_embeds is not None, "a text behind embeddings"),
        (bool(request.mm_features), "a text behind images or sounds"),
        (request.lora_request is not None, "a text of an adapter"),
    ):
        if one:
            raise ValueError(
                f"features are read and edited in texts of the model alone, and this is {what}; ask without sae_*"
            )
    tokenizer = processor.tokenizer
    if asked.edits and asked.gate == "text" and tokenizer is None:
        raise ValueError('the gate "text" needs a tokenizer, and this vLLM has none; give another gate')
    special = () if tokenizer is None else tokenizer.all_special_ids
    others = {key: value for key, value in (params.extra_args or {}).items() if key not in KEYS}
    params.extra_args = {**others, PLAN: asked.plan(request_id, params.n, special)}
    if asked.features:
        params.skip_reading_prefix_cache = True  # what is not computed is not read
    request.cache_salt = asked.salt(request.cache_salt, len(request.prompt_token_ids))
    return request
