"""The list of all forms of graphs, `sae_runtime/bundle/graph_forms.txt`, against which the runtime holds bundles.

    python -m sae_runtime.exports.forms

adds the forms that the exporter writes and the list lacks. Lines of earlier exporters stay, so that their bundles open.
The exporter needs no weights for this: a form is built for several SAEs of odd sizes, and a number of it that changes
between them is the named number that changes equally.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import onnx_ir as ir

from sae_runtime.bundle import contract
from sae_runtime.bundle.folder import Bundle, weight_shapes
from sae_runtime.bundle.graphs import DECODE, EXACT, GRAPHS, GROUP, JOINT, STEER, BundleGraph
from sae_runtime.bundle.manifest import NORMS, SELECTIONS, Allocation, Architecture, Manifest
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.export import BUILDERS

# d_in, d_sae, k and slots of two SAEs whose graphs have one form. Up to 64 and up to 1,024 features have fewer groups
# of limits, multiples of 16 have groups of features, and encode_gpu.onnx leaves none out of few features.
_LARGE = ((53, 16 * 3 * 157, 48, 91), (94, 16 * 5 * 101, 80, 133))
_MIDDLE = ((53, 16 * 47, 31, 94), (94, 16 * 53, 37, 159))
_SMALL = ((53, 51, 41, 46), (94, 55, 44, 43))
_NUMBERS = 4  # of a constant that may be named one by one


def forms() -> Iterator[str]:
    """The lines of all forms that the exporter writes now; some come several times.

    >>> next(forms()).split("|")[0]
    'decode.onnx'
    """
    for norm in NORMS:
        for skip in (False, True):  # of decode.onnx, where a transcoder may have another d_out
            d_outs = (67, 71) if norm == "none" else (None, None)
            bundles = [
                _bundle("threshold", False, norm, "mutual", *size, skip=skip, d_out=d_out)
                for size, d_out in zip(_LARGE, d_outs, strict=True)
            ]
            yield _line(DECODE, bundles)
        for graph, selection, pre_bias, sizes in product(GRAPHS, SELECTIONS, (True, False), (_LARGE, _MIDDLE, _SMALL)):
            if (
                graph is DECODE
                or (sizes is _MIDDLE and graph is not JOINT)
                or (sizes is not _LARGE and selection == "groupmax")
            ):
                continue
            for kind in ("mutual", "feature") if graph in (EXACT, JOINT) else ("mutual",):
                bundles = [_bundle(selection, pre_bias, norm, kind, *size) for size in sizes]
                if all(graph.fits(bundle.manifest) for bundle in bundles):
                    yield _line(graph, bundles)
                    if graph is STEER:
                        yield _line(graph, bundles, rows=False)


def _line(graph: BundleGraph, bundles: list[Bundle], *, rows: bool = True) -> str:
    made, known = [], []
    for bundle in bundles:
        model = BUILDERS[graph.file](bundle, _derived(bundle) if rows else {})
        data = ir.to_proto(model).SerializeToString()
        made.append(contract.form_of(data, graph.file, bundle.manifest))
        known.append(contract.named_numbers(bundle.manifest))
    if len({form.digest for form in made}) > 1:
        raise AssertionError(f"{graph.file} has several forms for the sizes of one line")
    numbers = zip(*(form.numbers for form in made), strict=True)
    return "|".join([graph.file, made[0].digest, *(_named(number, known) for number in numbers)])


def _named(number: tuple[str, ...], known: list[dict[str, str]]) -> str:
    """One constant of several graphs of a form: its numbers, named where they differ between the graphs."""
    if len(set(number)) == 1:
        return number[0]
    for name in known[0]:
        if all(names[name] == text for names, text in zip(known, number, strict=True)):
            return name
    parts = [text.split(",") for text in number]
    if len({len(part) for part in parts}) == 1 and 1 < len(parts[0]) <= _NUMBERS:
        return ",".join(_named(part, known) for part in zip(*parts, strict=True))
    raise AssertionError(f"{number} depends on the SAE, and contract.named_numbers has no name for it")


def _bundle(
    selection: str,
    pre_bias: bool,
    norm: str,
    kind: str,
    d_in: int,
    d_sae: int,
    k: int,
    slots: int,
    *,
    skip: bool = False,
    d_out: int | None = None,
) -> Bundle:
    by_threshold = selection == "threshold"
    architecture = Architecture(
        d_in=d_in,
        d_sae=d_sae,
        selection=selection,
        k=None if by_threshold else k,
        pre_bias=pre_bias,
        norm=norm,
        d_out=d_out,
        skip=skip,
    )
    quota = Quota(exponent=0.8, offset=3.0, slack=1.5) if kind == "feature" else None
    allocation = Allocation(kind=kind, k=k + 0.25, quota=quota) if by_threshold else None
    manifest = Manifest(architecture=architecture, allocation=allocation, slots=slots if by_threshold else k)
    specs = {name: _spec("F32", *shape) for name, shape in weight_shapes(architecture).items()}
    return Bundle(Path(), manifest, specs)


def _derived(bundle: Bundle) -> dict[str, TensorSpec]:
    """The specs of derived.safetensors that the builders look up; they read no numbers of it."""
    d_in, d_sae = bundle.manifest.architecture.d_in, bundle.manifest.architecture.d_sae
    known = contract.named_numbers(bundle.manifest)
    channels, half, groups = int(known["int8_channels"]), int(known["half_channels"]), d_sae // GROUP
    return {
        "max_density": _spec("F64", d_sae),
        "W_enc_rows": _spec("F32", d_sae, d_in),
        "half_weights": _spec("F16", half, d_sae),
        "half_kappa": _spec("F32", 1),
        "int8_centre": _spec("F32", d_in),
        "int8_map": _spec("F32", d_in, channels),
        "int8_rounding": _spec("F32", 1),
        "int8_direct": _spec("F32", 1),
        "int8_order": _spec("I64", d_sae),
        "int8_weights": _spec("I8", channels, d_sae),
        "int8_scale": _spec("F32", d_sae),
        "int8_bias": _spec("F32", groups, GROUP),
        "int8_bound": _spec("F32", 2, groups),
        "int8_share": _spec("F32", groups, GROUP),
    }


def _spec(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(dtype, shape, 0, 0)


if __name__ == "__main__":
    path = Path(contract.__file__).with_name(contract.FORMS)
    path.write_text("\n".join(sorted({*path.read_text().splitlines(), *forms()})) + "\n")
