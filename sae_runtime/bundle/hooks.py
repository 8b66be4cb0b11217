"""Hooks: the names of activations of a host model, as texts and as their parts.

This module has the only parser of hooks.

| text | the activation |
|---|---|
| `encoder.layer.3` | the output of a torch module |
| `input:encoder.layer.3` | the input of a torch module |
| `embeddings.norm@1` | the output of the second call of a module that a forward pass calls several times |
| `transformer.h.6.resid_mid` | the residual stream before (pre), inside (mid) or after (post) a block |
| `blocks.6.hook_resid_mid`, `blocks.6.attn.hook_z`, `hook_embed` | a name of TransformerLens |
| `tensor:layer_norm_2` | a tensor of an ONNX graph |
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

Place = Literal["output", "input", "resid_pre", "resid_mid", "resid_post", "lens", "tensor"]

_FORMS = "[input:]MODULE[@CALL], BLOCK.resid_pre, .resid_mid or .resid_post, blocks.N.hook_resid_post or tensor:NAME"
_LENS = re.compile(
    r"(?:blocks\.(?P<number>\d+)\.)?"
    r"(?P<rest>(?:(?:attn|mlp|ln1|ln2|ln1_post|ln2_post|ln_final|embed|pos_embed|unembed)\.)*hook_\w+)"
)
_RESIDUAL = re.compile(r"(?P<block>.+)\.(?P<place>resid_(?:pre|mid|post))")
_MODULE = re.compile(r"(?P<side>input:)?(?P<module>[^@:]+)(?:@(?P<call>\d+))?")


@dataclass(frozen=True)
class Hook:
    """An activation of a host model. A manifest keeps it as its text.

    Attributes:
        name: of the module, the block or the tensor, or TransformerLens's whole name.
        place: which value of the module or block; "lens" for a name of TransformerLens, "tensor" for a tensor of an
            ONNX graph.
        call: which call of a module that a forward pass calls several times, from 0; None for one that it calls once.

    >>> str(Hook("encoder.layer.3", "input", call=1))
    'input:encoder.layer.3@1'
    >>> str(Hook("h.6", "resid_mid"))
    'h.6.resid_mid'
    """

    name: str
    place: Place = "output"
    call: int | None = None

    def __str__(self) -> str:
        """The text that `parse_hook` reads back."""
        if self.place == "tensor":
            return f"tensor:{self.name}"
        if self.place == "lens":
            return self.name
        if self.place in ("output", "input"):
            return "input:" * (self.place == "input") + self.name + ("" if self.call is None else f"@{self.call}")
        return f"{self.name}.{self.place}"


def parse_hook(text: str) -> Hook:
    """The hook of a text in one of the forms of the table above.

    Raises:
        ValueError: the text has none of the forms.

    >>> parse_hook("encoder.layer.3")
    Hook(name='encoder.layer.3', place='output', call=None)
    >>> parse_hook("blocks.6.hook_resid_post")
    Hook(name='blocks.6.hook_resid_post', place='lens', call=None)
    """
    if text.startswith("tensor:") and text != "tensor:":
        return Hook(text.removeprefix("tensor:"), "tensor")
    module = _MODULE.fullmatch(text)
    if module is None:
        raise ValueError(f"a hook is {_FORMS}, got {text!r}")
    name = module["module"]
    lens, residual = _LENS.fullmatch(name), _RESIDUAL.fullmatch(name)
    if (lens or residual) and name != text:
        raise ValueError(f"input: and @CALL belong to a module, got {text!r}; write {name}")
    if lens:
        return Hook(f"blocks.{int(lens['number'])}.{lens['rest']}" if lens["number"] else name, "lens")
    if residual:
        return Hook(residual["block"], cast(Place, residual["place"]))
    call = None if module["call"] is None else int(module["call"])
    return Hook(name, "input" if module["side"] else "output", call)
