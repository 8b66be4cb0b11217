"""What the body of a request to vLLM's API server asks of the SAEs, and the body that vLLM gets instead."""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_runtime.core.labels import shown
from sae_runtime.serve import json_text
from sae_runtime.serve.errors import Invalid

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ANSWERED = (CHAT, COMPLETIONS)
"""The routes whose answers can carry features."""

_EDITED = ("/v1/responses", "/v1/messages", f"{CHAT}/batch", "/inference/v1/generate")
"""Other routes whose extra arguments reach the engine."""

_MAY_ASK = re.compile(rb'"(?:s|\\u0073)(?:a|\\u0061)(?:e|\\u0065)')  # the beginning of a key, however JSON writes it
_NOTHING = (None, False)

Check = Callable[[Mapping[str, Any], Any], object]


@dataclass(frozen=True)
class Wanted:
    """Features that an answer is to carry.

    Attributes:
        ticket: under which the engine keeps them.
        most: of each token.
        ids: whether the caller asked vLLM for the ids of tokens too.
    """

    ticket: str
    most: int
    ids: bool


def read_body(path: str, body: bytes, check: Check) -> tuple[bytes, Wanted | None]:
    """The body that vLLM gets, and the features that its answer is to carry.

    A body that asks nothing of the SAEs stays as it is, and only its bytes are searched.

    Args:
        path: of the route.
        body: of the request, as it came.
        check: raises ValueError if extra arguments cannot be done, or the `sae` object has another form.

    Raises:
        ValueError: what it asks cannot be done; the message is for the caller.

    >>> asked = b'{"prompt": "a", "sae": {"features": 3}}'
    >>> body, wanted = read_body("/v1/completions", asked, lambda arguments, sae: None)
    >>> sorted(json.loads(body)), wanted.most
    (['prompt', 'return_token_ids', 'vllm_xargs'], 3)
    """
    encoding = json.detect_encoding(body)
    plain = body if encoding.startswith("utf-8") else body.decode(encoding, "replace").encode()
    if not _MAY_ASK.search(plain):
        return body, None
    given = json_text.read(plain, "the body")
    if not isinstance(given, dict):
        return body, None  # which vLLM refuses
    own, sae = _own(given.get("vllm_xargs")), given.get("sae")
    if path not in ANSWERED:
        _refuse_elsewhere(path, own | _own_of_sampling(given), sae)
        return body, None
    if sae is not None:
        if own:
            raise Invalid(f"the request has sae and {shown(next(iter(own)))}, which mean the same; give one of them")
        own = {f"sae_{key}": value for key, value in sae.items()} if isinstance(sae, dict) else {}
    if not own and "sae" not in given:
        return body, None
    check(own, sae)
    return _prepared(path, given, own)


def _prepared(path: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[bytes, Wanted | None]:
    if "sae_ticket" in own:
        raise Invalid("sae_ticket is this server's own name of a request; leave it out")
    if given.get("use_beam_search") not in _NOTHING and own:
        raise Invalid("a beam search is many requests, none of which is the caller's; ask without use_beam_search")
    most = own.get("sae_features", 0)
    if type(most) is not int:
        raise Invalid(f"sae_features is a whole number here, got {shown(most)}; give one")
    told = {key: value for key, value in given.items() if key != "sae"}
    xargs = given.get("vllm_xargs")
    if not isinstance(xargs, dict | None):
        return json.dumps(told).encode(), None  # which vLLM refuses
    arguments = {key: value for key, value in (xargs or {}).items() if key not in own}
    arguments |= {key: value if isinstance(value, str | int) else json.dumps(value) for key, value in own.items()}
    wanted = None
    if most:
        _refuse_hidden_tokens(path, given)
        wanted = Wanted(uuid.uuid4().hex, most, given.get("return_token_ids") not in _NOTHING)
        arguments["sae_ticket"], told["return_token_ids"] = wanted.ticket, True
    return json.dumps(told | {"vllm_xargs": arguments}).encode(), wanted


def _refuse_hidden_tokens(path: str, given: Mapping[str, Any]) -> None:
    """Refuse features of tokens whose ids vLLM does not tell."""
    if given.get("include_reasoning", True) is not True:
        raise Invalid("features show every token, and include_reasoning hides some; leave one of the two out")
    if given.get("prompt_embeds") is not None:
        raise Invalid("features are of tokens, and prompt_embeds are none; give a prompt, or ask for no features")
    if path == COMPLETIONS and given.get("echo") not in _NOTHING and given.get("return_token_ids") is not True:
        # vLLM leaves the text of the prompt out of an answer that has its ids.
        raise Invalid("features are not given together with echo; leave one of the two out")


def _refuse_elsewhere(path: str, own: Mapping[str, Any], sae: Any) -> None:
    if sae is not None:
        raise Invalid(f"{shown(path)} takes no sae; ask {' or '.join(ANSWERED)}")
    if own and path not in _EDITED:
        raise Invalid(f"{shown(path)} takes no {shown(next(iter(own)))}; ask {' or '.join(ANSWERED)}")
    for key in ("sae_features", "sae_ticket"):
        if key in own:
            raise Invalid(f"the answers of {path} carry no features; leave out {key}, or ask {' or '.join(ANSWERED)}")


def _own(arguments: Any) -> dict[str, Any]:
    """Those of the extra arguments that are ours."""
    if not isinstance(arguments, dict):
        return {}
    return {key: value for key, value in arguments.items() if key == "sae" or key.startswith("sae_")}


def _own_of_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    sampling = given.get("sampling_params")
    return _own(sampling.get("extra_args")) if isinstance(sampling, dict) else {}
