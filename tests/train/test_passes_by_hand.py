"""Which tokens `attach` edits where passes are made by hand, and what it refuses because nothing tells."""

import copy
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from cases_common import Weights
from cases_hosts import random_sae
from gated import D_IN, edited_tokens, expected_tokens, still

from sae_runtime import Edit
from sae_runtime.train import attach

pytestmark = pytest.mark.usefixtures("one_thread")

GATES: list[Any] = ["all", "prompt", "last_prompt", "generated", "answer", [0, 3, 5]]
WORDS = GATES[1:5]
HOOK = "layers.0"
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
IDS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
LONGER = torch.cat([IDS, torch.tensor([[11, 12], [13, 14]])], dim=1)
LONGER_MASK = torch.cat([MASK, torch.ones(2, 2, dtype=torch.long)], dim=1)
STEPS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0}
SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": D_IN, "num_hidden_layers": 1, "pad_token_id": 0}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("positions") / "sae"
    return path, random_sae(path)


@functools.cache
def llama() -> Any:
    sizes: dict[str, Any] = {"num_attention_heads": 2, "intermediate_size": 32, **SIZES}
    return still(hf.LlamaForCausalLM, hf.LlamaConfig(**sizes), 40)


@functools.cache
def mamba() -> Any:
    return still(hf.MambaForCausalLM, hf.MambaConfig(state_size=4, **SIZES), 10)


def by_hand(*ends: int, model: Any = None) -> None:
    """Passes with a cache that end at these columns."""
    cache, begin = None, 0
    for end in ends:
        ids, mask = LONGER[:, begin:end], LONGER_MASK[:, :end]
        cache = (model or llama())(ids, attention_mask=mask, past_key_values=cache).past_key_values
        begin = end


def growing() -> None:
    for end in (4, 5, 6):
        llama()(LONGER[:, :end], attention_mask=LONGER_MASK[:, :end], use_cache=False)


def mamba_by_hand() -> None:
    state = mamba()(IDS, attention_mask=MASK, use_cache=True).cache_params
    mamba()(LONGER[:, 4:5], cache_params=state, use_cache=True)


@functools.cache
def cached() -> Any:
    """A cache of two tokens of each request, which was filled before a block."""
    with torch.no_grad():
        return llama()(LONGER[1:, :2]).past_key_values


def prefix() -> Any:
    return copy.deepcopy(cached())


def static_and_reset() -> None:
    cache = hf.StaticCache(config=llama().config, max_cache_len=16)
    for _ in range(2):
        llama()(IDS, attention_mask=MASK, past_key_values=cache)
        llama()(LONGER[:, 4:5], attention_mask=LONGER_MASK[:, :5], past_key_values=cache)
        cache.reset()  # type: ignore[no-untyped-call]


def two_texts() -> None:
    llama()(IDS, MASK)  # a mask by position
    llama()(LONGER[1:, 1:])


PASSES: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "with a cache": (lambda: by_hand(4, 5, 6), [(MASK, range(4)), (MASK, [4]), (MASK, [5])]),
    "with a static cache": (static_and_reset, [(MASK, range(4)), (MASK, [4])] * 2),
    "one text after another": (two_texts, [(MASK, range(4)), (torch.ones(1, 5), range(5))]),
    "state space": (mamba_by_hand, [(MASK, range(4)), (MASK, [4])]),
}


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("way", PASSES)
def test_the_first_pass_by_hand_is_the_prompt(sae: tuple[Path, Weights], way: str, gate: Any) -> None:
    call, passes = PASSES[way]
    expected = [expected_tokens(gate, mask.tolist(), [columns])[0] for mask, columns in passes]
    model = mamba() if call is mamba_by_hand else llama()
    assert edited_tokens(model, HOOK, sae, call, gate=gate) == expected


@pytest.mark.parametrize("gate", WORDS)
@pytest.mark.parametrize("prompt", [3, [1, 4]])
def test_prompt_tokens_say_what_is_prompt(sae: tuple[Path, Weights], prompt: Any, gate: str) -> None:
    first, second = [prompt] * 2 if isinstance(prompt, int) else prompt
    masks = [[0, 0] + [1] * first, [1] * second]  # as if the prompt ended there
    for call, columns in (
        (lambda: by_hand(2, 5, 6), [range(2), range(2, 5), [5]]),
        (growing, [range(4), range(5), range(6)]),
        (lambda: by_hand(1, 2, 3, 4), [[0], [1], [2], [3]]),
        (lambda: llama().generate(IDS, attention_mask=MASK, **STEPS), [range(4), [4]]),
    ):
        got = edited_tokens(llama(), HOOK, sae, call, gate=gate, prompt_tokens=prompt)
        assert got == [[expected_tokens(gate, [mask], [read])[0][0] for mask in masks] for read in columns]


def hidden_by_four_dimensions() -> None:
    mask = torch.tril(torch.ones(2, 1, 4, 4, dtype=torch.bool)) & MASK.bool()[:, None, None]
    llama()(IDS, attention_mask=mask | torch.eye(4, dtype=torch.bool))


def several_texts_in_a_row() -> None:
    llama()(IDS[1:], position_ids=torch.tensor([[0, 1, 0, 1]]))


def another_guides() -> None:
    llama().generate(IDS[1:], guidance_scale=1.5, negative_prompt_ids=LONGER[1:, :5], **STEPS)


REFUSED: dict[str, tuple[Callable[[], Any], list[Any], str]] = {
    "more without a cache": (growing, WORDS, "reads the last text again with more tokens, and no cache"),
    "chunks": (lambda: by_hand(2, 4), WORDS, "2 tokens come after the first pass, and may be either"),
    "a prefix": (lambda: llama()(LONGER[1:, 2:], past_key_values=prefix()), WORDS, "its cache was filled or cut"),
    "a window": (
        lambda: [llama()(LONGER[:, begin : begin + 4]) for begin in range(3)],
        GATES[1:],
        "again without its first token",
    ),
    "four dimensions": (hidden_by_four_dimensions, GATES[1:], "a mask of 4 dimensions hides columns"),
    "several texts in a row": (several_texts_in_a_row, GATES[1:], "position_ids do not count the tokens of a row"),
    "guided": (another_guides, GATES[1:], "does not go on from the last one of the generation"),
    "a layer alone": (
        lambda: llama().model.layers[0](
            torch.zeros(1, 4, D_IN), position_embeddings=(torch.ones(1, 4, 16), torch.ones(1, 4, 16))
        ),
        GATES[1:],
        "the module runs outside of a pass of its model",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_nothing_tells_is_refused(sae: tuple[Path, Weights], way: str) -> None:
    cached()
    call, gates, reason = REFUSED[way]
    for gate in gates:
        with pytest.raises(ValueError, match=f"{reason}.*; call generate .* give prompt_tokens="):
            edited_tokens(llama(), HOOK, sae, call, gate=gate)
    edited_tokens(llama(), HOOK, sae, call)  # all tokens need no counting
    for position in [gate for gate in GATES[1:] if gate not in gates]:
        edited_tokens(llama(), HOOK, sae, call, gate=position)  # positions need no prompt


def test_a_prefix_that_generate_is_given_counts(sae: tuple[Path, Weights]) -> None:
    cached()
    ids, cut = LONGER[1:, :5], {"attention_mask": torch.ones(1, 5, dtype=torch.long)}
    for given, settings in ((ids, {}), (ids[:, 2:], cut)):
        for gate in GATES:
            call = lambda given=given, settings=settings: llama().generate(  # noqa: E731
                given, past_key_values=prefix(), **STEPS, **settings
            )
            expected = expected_tokens(gate, [[1] * 5], [range(2, 5), [5]])
            assert edited_tokens(llama(), HOOK, sae, call, gate=gate) == expected


def test_drafted_tokens_are_generated(sae: tuple[Path, Weights]) -> None:
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    call = lambda: llama().generate(ids, prompt_lookup_num_tokens=2, **STEPS | {"max_new_tokens": 4})  # noqa: E731
    first = edited_tokens(llama(), HOOK, sae, call, gate="generated")[0]
    assert first == [[0] * 5 + [1] * (len(first[0]) - 5)] and len(first[0]) > 5


def test_after_a_generation_that_failed_the_next_one_is_counted_anew(sae: tuple[Path, Weights]) -> None:
    class Stop(hf.LogitsProcessor):
        def __call__(self, ids: Any, scores: Any) -> Any:
            raise KeyError("stop")

    def call() -> None:
        with pytest.raises(KeyError):
            llama().generate(IDS[:1], logits_processor=hf.LogitsProcessorList([Stop()]), **STEPS)
        llama().generate(LONGER[1:], **STEPS)
        by_hand(4, 5)

    expected = [
        expected_tokens("prompt", mask, [c])[0]
        for mask, c in (
            ([[0, 0, 1, 1]], range(4)),
            ([[1] * 6], range(6)),
            ([[1] * 6], [6]),
            (MASK.tolist(), range(4)),
            (MASK.tolist(), [4]),
        )
    ]
    assert edited_tokens(llama(), HOOK, sae, call, gate="prompt") == expected


def test_the_model_is_left_as_it_was(sae: tuple[Path, Weights]) -> None:
    model = llama()
    first, second = (attach(model, HOOK, sae[0], [Edit.add(7, 5.0)], gate="answer") for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # the block that was opened first is closed first
    model.generate(IDS, attention_mask=MASK, **STEPS)
    second.__exit__(None, None, None)
    assert not {"generate", "_expand_inputs_for_generation"} & set(vars(model))
    hooks = [one for one in model.modules() if one._forward_hooks or one._forward_pre_hooks]
    assert not hooks

    def compiles() -> bool:
        return torch.compiler.is_compiling()

    assert torch.compile(compiles, backend="eager")(), "torch.compile does not compile any more"


def test_tokens_of_some_ids_are_skipped(sae: tuple[Path, Weights]) -> None:
    call = lambda: llama()(IDS, attention_mask=MASK)  # noqa: E731
    assert edited_tokens(llama(), HOOK, sae, call, skip_ids=[5, 8, 10]) == [[[0, 0, 0, 1], [1, 0, 1, 0]]]
    assert edited_tokens(llama(), HOOK, sae, call, gate=[1], skip_ids={8}) == [[[0, 0, 0, 1], [0, 0, 0, 0]]]
    embedded = llama().get_input_embeddings()(IDS)
    with pytest.raises(ValueError, match="skip_ids needs the ids of tokens"):
        edited_tokens(llama(), HOOK, sae, lambda: llama()(inputs_embeds=embedded), skip_ids=[5])


def test_a_copy_of_the_model_is_refused(sae: tuple[Path, Weights]) -> None:
    with attach(llama(), HOOK, sae[0], [Edit.add(7, 5.0)]):
        for model in (copy.deepcopy(llama()), llama().model._replicate_for_data_parallel()):
            with pytest.raises(ValueError, match="a copy of the attached Llama.* runs"):
                model(IDS)
        with pytest.raises(ValueError, match="a copy of the attached LlamaForCausalLM runs"):
            copy.deepcopy(llama()).generate(IDS, **STEPS)
        llama()(IDS)


def test_a_module_that_the_model_never_calls_is_warned_of(sae: tuple[Path, Weights]) -> None:
    with pytest.warns(UserWarning, match="the model ran 2 times and never called layers, so nothing was read"):
        with attach(llama(), "layers", sae[0]):
            by_hand(4, 5)
    with attach(llama(), "layers", sae[0]):
        pass


@pytest.mark.parametrize(
    "prompt_tokens", [-1, 1.5, [[1, 2]], [[1], [2, 3]], [], b"12", "one", [1, 2, 3], True, torch.tensor([-1])]
)
def test_prompt_tokens_that_are_no_numbers_or_do_not_fit_are_refused(
    sae: tuple[Path, Weights], prompt_tokens: Any
) -> None:
    with pytest.raises(ValueError, match="prompt_tokens"):
        edited_tokens(llama(), HOOK, sae, lambda: by_hand(4), gate="prompt", prompt_tokens=prompt_tokens)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_compiled_model_is_edited_in_the_block_alone(sae: tuple[Path, Weights], at_once: bool) -> None:
    torch.compiler.reset()
    model = copy.deepcopy(llama())
    with torch.no_grad():
        plain = model(IDS).logits
        if at_once:
            model.compile(backend="eager")
        before: Any = model if at_once else torch.compile(model, backend="eager")
        before(IDS)
        with attach(model, HOOK, sae[0], [Edit.add(7, 50.0)]) as features:
            inside: Any = torch.compile(model, backend="eager")
            moved = [compiled(IDS).logits for compiled in (before, inside)]
        assert len(features) == 2 and (moved[0] - plain).abs().max() > 0.01
        torch.testing.assert_close(moved[0], moved[1])
        for compiled in (before, inside):
            torch.testing.assert_close(compiled(IDS).logits, plain)


def test_threads_that_run_one_model_are_edited_each_by_its_own_tokens(
    sae: tuple[Path, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [(IDS, MASK), (IDS[:, [2, 3]], MASK[:, [2, 3]]), (IDS.flip(0), MASK.flip(0))]
    wrong: list[object] = []

    def answers(ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        new = llama().generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **STEPS)
        return [*new.logits, llama()(ids, attention_mask=mask).logits]

    def again(text: tuple[torch.Tensor, torch.Tensor], expected: list[torch.Tensor]) -> None:
        try:
            with torch.no_grad():
                for _ in range(5):
                    for one, other in zip(answers(*text), expected, strict=True):
                        torch.testing.assert_close(one, other)
        except Exception as error:
            wrong.append(error)

    with torch.no_grad(), attach(llama(), HOOK, sae[0], [Edit.add(7, 50.0)], gate="last_prompt"):
        expected = [answers(*text) for text in texts]
        switch = sys.getswitchinterval()
        try:
            sys.setswitchinterval(1e-4)
            threads = [threading.Thread(target=again, args=both) for both in zip(texts, expected, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(switch)
    assert not wrong, wrong[0]
    assert not {"generate", "_expand_inputs_for_generation"} & set(vars(llama()))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_twice_is_refused(sae: tuple[Path, Weights], reentrant: bool) -> None:
    model, edits = copy.deepcopy(llama()).train(), [Edit.scale(7, -2.0), Edit.add(9, 3.0)]
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        with attach(model, HOOK, sae[0], edits, gate="prompt") as features:
            model(IDS, attention_mask=MASK, use_cache=False).logits.pow(2).mean().backward()
        assert len(features) == 1
        gradients.append(model.model.embed_tokens.weight.grad)
    torch.testing.assert_close(*gradients)
    with attach(model, f"{HOOK}.mlp", sae[0]), pytest.raises(ValueError, match=r"computes layers.0.mlp a second time"):
        model(IDS, use_cache=False)
    with attach(model, f"{HOOK}.mlp", sae[0], edits):
        model.eval()(IDS)


def test_an_own_checkpoint_is_refused_in_backward(sae: tuple[Path, Weights]) -> None:
    embedded = llama().get_input_embeddings()(IDS).detach().requires_grad_()
    with attach(llama(), HOOK, sae[0], [Edit.scale(7, -2.0)]), pytest.raises(ValueError, match=r"a second time"):
        run: Any = lambda x: llama()(inputs_embeds=x).logits  # noqa: E731
        torch.utils.checkpoint.checkpoint(run, embedded, use_reentrant=True).sum().backward()


def test_an_encoder_behind_a_pass_that_failed_is_edited(sae: tuple[Path, Weights]) -> None:
    sizes: dict[str, Any] = {"d_model": D_IN, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    t5 = still(hf.T5ForConditionalGeneration, hf.T5Config(vocab_size=60, pad_token_id=0, **sizes), 5)

    def call() -> None:
        with pytest.raises(ValueError, match="exactly one of input_ids"):
            t5(input_ids=IDS, attention_mask=MASK)
        t5.get_encoder()(IDS, attention_mask=MASK)

    assert edited_tokens(t5, "encoder.block.0", sae, call) == 2 * [MASK.tolist()]


def test_models_that_attach_cannot_read_are_refused(sae: tuple[Path, Weights]) -> None:
    xlnet = still(hf.XLNetModel, hf.XLNetConfig(vocab_size=60, d_model=D_IN, n_layer=1, n_head=2, d_inner=32))
    with pytest.raises(ValueError, match="XLNetModel puts time before the batch"), attach(xlnet, "layer.0", sae[0]):
        pass
    wrapped: Any = torch.nn.Sequential(llama())
    with pytest.raises(ValueError, match="a model of transformers, got Sequential"), attach(wrapped, "0", sae[0]):
        pass
