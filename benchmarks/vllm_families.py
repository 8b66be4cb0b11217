"""Where vLLM's plugin reads and edits tiny random models of many families, each place compared with transformers.

A place is right if its activations are those of transformers, and the model's last ones too where these are changed. A
place may be refused with a sentence; it must never be wrong. Run in vLLM's environment:

    .venv/vllm/bin/python benchmarks/vllm_families.py               # every family, a table; exit 1 where one is wrong
    .venv/vllm/bin/python benchmarks/vllm_families.py llama gemma2 --places
    .venv/vllm/bin/python benchmarks/vllm_families.py phi3 --compare    # also where the plugin refuses unknown families
"""

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm_engine import ENVIRONMENT
from vllm_tiny_models import D_SAE, SETTINGS, VOCAB, save_model, write_sae

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.transformer_lens import FAMILIES as LENS
from sae_runtime.core.features import concatenate
from sae_runtime.serve.vllm import hooked_module
from sae_runtime.train import attach
from sae_runtime.train.harvest.hook_point import HookPoint, find_hook, hidden_states, replaced

PROMPT = [1, *(int(i) for i in np.random.default_rng(5).integers(3, VOCAB, 12))]
PROMPTS = [PROMPT, PROMPT[:5], [1, *PROMPT[:4:-1]]]
_NOW: dict[str, Any] = {}


def start(kind: str, home: str, hooks: Sequence[str] = (), **options: Any) -> None:
    """Make a model, SAEs at hooks of it, and an engine with these, in the place of the one before."""
    end()
    os.environ |= ENVIRONMENT
    from vllm import LLM

    folder = Path(tempfile.mkdtemp(dir=home, prefix=f"{kind}-"))
    model = save_model(kind, folder)
    settings = []
    for i, hook in enumerate(hooks):
        x = activations(model, find_hook(model, hook))
        settings.append({"bundle": str(write_sae(folder / f"sae-{i}", x, hook)), "name": str(i)})
    if settings:
        options["additional_config"] = {"sae": {"saes": settings}}
    _NOW.update(kind=kind, model=model, hooks=list(hooks), folder=folder)
    model.base_model.do_not_compile = True  # vLLM may compile transformers' own class, and asks each model of it
    _NOW["llm"] = LLM(
        model=str(folder), **{"dtype": "float32", "enforce_eager": True, "max_model_len": 128, **options},
        skip_tokenizer_init=True, enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip


def end() -> None:
    """End the engine."""
    if _NOW:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        _NOW.clear()
        gc.collect()
        cleanup_dist_env_and_memory()


def activations(model: Any, point: HookPoint) -> Tensor:
    """Activations [tokens, d] of the first prompt in transformers."""
    given = {"input_ids": torch.tensor([PROMPT]), "use_cache": False}
    return hidden_states([point], model.base_model, given, (1, len(PROMPT)))[0][0].float()


def served(tokens: int = 6) -> dict[str, str]:
    """Check packed requests, which read every SAE and edit each in turn, against transformers and `attach`.

    Returns:
        By hook the form that the plugin found.

    Raises:
        AssertionError: a token, an active feature or a value differs.
    """
    from vllm import SamplingParams

    from sae_runtime.serve.vllm.reading import features_of

    llm, hooks = _NOW["llm"], _NOW["hooks"]
    plain = [_truth(ids, None, [], tokens) for ids in PROMPTS]
    requests: list[tuple[list[int], int | None, list[Edit]]] = [(ids, None, []) for ids in PROMPTS]
    for i in range(len(hooks)):
        ids, f = PROMPTS[i % len(PROMPTS)], plain[i % len(PROMPTS)][1][i]
        strong = [int(j) for j in np.argsort(-f.max(axis=0))[:3]]
        requests.append(
            (ids, i, [Edit.set(strong[0], 8 * float(f.max())), Edit.ablate(strong[1]), Edit.add(strong[2], 2)])
        )
    asked = []
    for _, own, edits in requests:
        forms = [{"feature": e.feature, "sae": str(own), **_words(e)} for e in edits]
        asked.append({"sae_features": "all", **({"sae_edits": forms} if edits else {})})
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids, _, _ in requests],
        [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=a)
            for a in asked
        ],
        use_tqdm=False,
    )
    moved = 0
    for (ids, own, edits), output, read in zip(requests, outputs, features_of(llm, outputs), strict=True):
        where = f"{_NOW['kind']}: edits at {None if own is None else hooks[own]}"
        chosen, features = _truth(ids, own, edits, tokens)
        got = list(output.outputs[0].token_ids)
        assert got == chosen, f"{where}: tokens {got}, expected {chosen}"
        moved += own is not None and chosen != plain[PROMPTS.index(ids)][0]
        for j, hook in enumerate(hooks):
            found, truth = read[0][str(j)].to_dense(), features[j]
            assert found.shape == truth.shape, f"{where}: features {found.shape} at {hook}, expected {truth.shape}"
            near = 1e-3 * np.maximum(truth, found).max(axis=1, keepdims=True)
            limit = bundle.read(_NOW["folder"] / f"sae-{j}").tensor("threshold")
            same = (np.abs(found - truth) <= near) | (np.abs(np.maximum(found, truth) - limit) < near)
            assert same.all(), f"{where}: {(~same).sum()} features differ at {hook}"
    assert moved, f"{_NOW['kind']}: no edit changed a token"
    status = llm.collective_rpc("sae_status")[0]
    return {hook: status[str(j)]["form"] for j, hook in enumerate(hooks)}


def _words(edit: Edit) -> dict[str, Any]:
    return {"ablate": True} if edit == Edit.ablate(edit.feature) else (
        {"add": edit.shift} if edit.factor else {"set": edit.shift}
    )  # fmt: skip


def _truth(ids: list[int], sae: int | None, edits: Sequence[Edit], tokens: int) -> tuple[list[int], list[Any]]:
    """Tokens that transformers writes, and the features of each SAE [prompt + written - 1, d_sae]."""
    from contextlib import ExitStack

    model, hooks, folder = _NOW["model"], _NOW["hooks"], _NOW["folder"]
    with ExitStack() as stack, torch.no_grad():
        read = [
            stack.enter_context(attach(model, hook, folder / f"sae-{j}", edits if sae == j else ()))
            for j, hook in enumerate(hooks)
        ]
        made = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=tokens, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        features = [concatenate(passes, D_SAE, (sum(map(len, passes)),)).to_dense() for passes in read]
    return made[0, len(ids) :].tolist(), features


def places() -> dict[str, str]:
    """Of each place that transformers' model has: "right", or "refused" or "wrong" with what was said or found."""
    return {text: _verdict(text, point) for text, point in _places_of(_NOW["model"])}


def _places_of(model: Any) -> Iterator[tuple[str, HookPoint]]:
    """Modules of the first, the middle and the last block, their inputs, streams, and TransformerLens's names."""
    names = []
    for name, _ in model.base_model.named_modules():
        numbers = [part for part in name.split(".") if part.isdigit()]
        if name and (not numbers or numbers[0] == "1" or name.endswith(numbers[0])):
            names += [name, f"input:{name}"]
    block = next(name for name in names if name.endswith(".1"))
    names += [f"{block}.resid_{place}" for place in ("pre", "mid", "post")]
    known = sorted({name for family in LENS for name in family.places})
    names += [name if name == "hook_embed" else f"blocks.1.{name}" for name in known]
    for text in names:
        try:
            point = find_hook(model, text)
            activations(model, point)
        except ValueError:  # transformers has no such place
            continue
        yield text, point


def _verdict(text: str, point: HookPoint) -> str:
    from sae_runtime.serve.vllm.settings import Place
    from sae_runtime.serve.vllm.steering import Site
    from sae_runtime.serve.vllm.stream_form import Pair, watched

    worker, model = _worker(), _NOW["model"]
    x = activations(model, point)
    path = _NOW["folder"] / f"place-{x.shape[1]}"
    if not path.exists():
        write_sae(path, x, text)
    try:
        with torch.inference_mode():
            hooked = hooked_module.find_module(worker.model_runner.get_model(), text, model.config)
            site = Site(Place(str(path), text, "one"), hooked, worker.model_runner.get_model(), worker._short_run)
    except ValueError as error:
        return f"refused: {error}"
    change = 0.5 * x.abs().mean() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def act(pair: Pair | None, by: Tensor | None) -> Any:
        if pair is None:
            return None
        whole = pair.first + pair.second if site.form == "sum" and pair.second is not None else pair.first
        seen.append(whole[: len(x)].clone())
        if by is None:
            return None
        y = pair.first if hooked.in_place and pair.second is None else pair.first.clone()
        y[: len(x)] += by
        return None if y is pair.first else pair.rebuilt(y, pair.second)

    def last(by: Tensor | None) -> Tensor:
        handle = watched(hooked.module, lambda pair: act(pair, by), is_input=hooked.is_input)
        try:
            return _last_of_vllm()[: len(x)]
        finally:
            handle.remove()

    last(None)
    read = _error(seen[0], x) if seen else 9.0
    with replaced(point, (x + change)[None]):
        expected = _last_of_transformers()
    edited = _error(last(change), expected)
    if max(read, edited) < 2e-4:
        return "right"
    return f"wrong: read {read:.0e}, edited {edited:.0e} of the largest"


def _error(x: Tensor, expected: Tensor) -> float:
    same = x.shape == expected.shape
    return float((x - expected).abs().max() / expected.abs().max()) if same else float("inf")


def _worker() -> Any:
    return _NOW["llm"].llm_engine.model_executor.driver_worker.worker


def _last_of_vllm() -> Tensor:
    """The last activations [tokens, d] of the first prompt in vLLM."""
    from vllm import SamplingParams

    got: list[Tensor] = []
    handle = (
        _worker()
        .model_runner.get_model()
        .register_forward_hook(
            lambda _m, _a, output: got.append((output[0] if isinstance(output, tuple) else output).clone())
        )
    )
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    _NOW["llm"].generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    handle.remove()
    return got[0].view(-1, got[0].shape[-1])


def _last_of_transformers() -> Tensor:
    with torch.no_grad():
        answer = _NOW["model"].base_model(input_ids=torch.tensor([PROMPT]), use_cache=False)
    last: Tensor = answer[0][0]
    return last


def stream_hooks(kind: str, home: str) -> list[str]:
    """Blocks, the input of one, and where there is one the stream in its middle."""
    found = [text for text, _ in _places_of(save_model(kind, Path(home) / kind))]
    blocks = [text for text in found if text.rpartition(".")[2].isdigit()]
    return [*(text for text in blocks if "input:" not in text), f"input:{blocks[2]}"] + [
        text for text in found if text.endswith(("1.resid_mid", "hook_resid_pre"))
    ]


def line(kind: str, home: str) -> tuple[str, Mapping[str, str]]:
    """A row of the table, and what was found at each place."""
    hooks = stream_hooks(kind, home)
    start(kind, home, hooks)
    model = type(_worker().model_runner.get_model()).__name__
    forms = served()
    found = places()
    count = {word: sum(one.startswith(word) for one in found.values()) for word in ("right", "refused", "wrong")}
    form = "/".join(dict.fromkeys(forms[hook] for hook in hooks if "input:" not in hook and hook[-1].isdigit()))
    inside = [text for text, one in found.items() if one == "right" and ".1." in text and "input:" not in text]
    inside = [text.rpartition(".1.")[2] for text in inside if not text.startswith("blocks.")]
    cells = [kind, model, form, str(count["right"]), str(count["refused"]), str(count["wrong"]), ", ".join(inside)]
    return f"| {' | '.join(cells)} |", found


def main() -> None:
    """Print the table of the families named as arguments, or of all."""
    every_place = "--places" in sys.argv
    kinds = [word for word in sys.argv[1:] if not word.startswith("--")] or list(SETTINGS)
    if "--compare" in sys.argv:
        hooked_module.COMPARED = tuple(SETTINGS)
    wrong = 0
    with tempfile.TemporaryDirectory() as home:
        print("| family | class in vLLM | a block gives | right | refused | wrong | right inside a block |", flush=True)
        print("|---|---|---|---|---|---|---|", flush=True)
        for kind in kinds:
            try:
                row, found = line(kind, home)
            except Exception as error:
                said = str(error).splitlines()[:1] or [""]
                wrong += isinstance(error, AssertionError)
                print(f"| {kind} | does not run: {type(error).__name__}: {said[0][:160]} | | | | | |", flush=True)
                traceback.print_exc()
                continue
            print(row, flush=True)
            wrong += sum(one.startswith("wrong") for one in found.values())
            for text, one in found.items():
                if every_place or one.startswith("wrong"):
                    print(f"    {text}: {one}", flush=True)
    end()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
