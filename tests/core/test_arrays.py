"""Arrays of every library come in with equal numbers, or are refused in one sentence that says what to do."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import make_x
from numpy.typing import NDArray

from sae_runtime import SAE, Edit, load
from sae_runtime.core.arrays import as_array, as_float32, as_number

BundleOf = Callable[..., Path]
# Quarters from -4 to 4: float16, bfloat16 and float8 hold each of them.
X = (np.random.default_rng(0).integers(-16, 16, (6, 24)) / 4).astype(np.float32)
T = torch.from_numpy(X)


class Tensor(torch.Tensor):
    """A class of a user, in a module of another name."""


class OnlyDlpack:
    """An array of a library that has DLPack and no `__array__`."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OnlyArray:
    """An array of a library that has `__array__`, as JAX and TensorFlow have."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array


def cupy_array() -> Any:
    """A double of cupy.ndarray, whose `__array__` refuses and whose `get` copies from the device."""

    class ndarray:  # noqa: N801 (CuPy's name)
        def get(self) -> NDArray[Any]:
            return X

        def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
            raise TypeError("Implicit conversion to a NumPy array is not allowed")

    ndarray.__module__ = "cupy"
    return ndarray()


TAKEN: dict[str, Callable[[], Any]] = {
    "torch bfloat16": T.bfloat16,
    "torch float16": T.half,
    "torch float64": T.double,
    "torch float8": lambda: T.to(torch.float8_e4m3fn),
    "torch with a gradient": lambda: T.clone().requires_grad_(),
    "torch bfloat16 of a graph": lambda: (T.clone().requires_grad_() * 1).bfloat16(),
    "torch parameter": lambda: torch.nn.Parameter(T),
    "torch subclass": lambda: T.as_subclass(Tensor),
    "torch not contiguous": lambda: T.T.contiguous().T,
    "torch negated lazily": lambda: torch._neg_view(-T),
    "torch imaginary part of a conjugate": lambda: torch.complex(T, -T).conj().imag,
    "torch expanded": lambda: T[:, None].expand(6, 2, 24)[:, 1],
    "list of torch rows": lambda: list(T.bfloat16()),
    "list of rows with gradients": lambda: list(T.clone().requires_grad_()),
    "nested lists": X.tolist,
    "tuple of rows": lambda: tuple(X),
    "ml_dtypes bfloat16": lambda: X.astype(ml_dtypes.bfloat16),
    "ml_dtypes bfloat16 of another library": lambda: OnlyArray(X.astype(ml_dtypes.bfloat16)),
    "ml_dtypes float8": lambda: X.astype(ml_dtypes.float8_e4m3fn),
    "other byte order": lambda: X.astype(">f8"),
    "matrix": lambda: np.asmatrix(X),
    "read-only": lambda: np.broadcast_to(X, X.shape),
    "Fortran order": lambda: np.asfortranarray(X),
    "long double": lambda: X.astype(np.longdouble),
    "only DLPack": lambda: OnlyDlpack(X),
    "only __array__": lambda: OnlyArray(X),
    "CuPy": cupy_array,
    "memory view": lambda: X.data,
}


@pytest.fixture(scope="module")
def sae(bundle_of: BundleOf) -> SAE:
    return load(bundle_of("feature"))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("name", TAKEN)
def test_an_array_of_any_library_is_taken_with_equal_numbers(sae: SAE, name: str) -> None:
    np.testing.assert_array_equal(as_float32(TAKEN[name]()), X)
    np.testing.assert_array_equal(sae.encode(TAKEN[name]()).to_dense(), sae.encode(X).to_dense())


def test_a_mapped_file_is_taken_without_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(as_float32(mapped), mapped) and np.shares_memory(as_float32(X), X)
    np.testing.assert_array_equal(as_float32(mapped), X)


def table(numbers: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(numbers)


def test_a_table_of_pandas_is_taken(sae: SAE) -> None:
    np.testing.assert_array_equal(sae.encode(table(X)).to_dense(), sae.encode(X).to_dense())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: np.ma.array(X, mask=X > 0), r"a numpy.MaskedArray that is masked; fill its gaps"),
    "masked without gaps": (lambda: np.ma.array(X), "is masked; fill its gaps with .filled"),
    "list with a masked row": (lambda: [np.ma.array(X[0], mask=X[0] > 0), X[1]], "is masked"),
    "list with a gap": (lambda: [[1.0, np.ma.masked]], "is masked"),
    "meta": (lambda: T.to("meta"), "on the meta device, which keeps no numbers; load the model"),
    "sparse": (lambda: T.to_sparse(), r"has the layout torch.sparse_coo; make it dense with .to_dense\(\)"),
    "compressed": (lambda: torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 24)), "has the layout torch.sparse_csr"),
    "quantised": (lambda: quantised(), r"is quantised; call .dequantize\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([T[0], T[1, :3]]), "is nested; pad it"),
    "complex": (lambda: torch.complex(T, T).conj(), "real numbers, got complex64 from a torch.Tensor"),
    "complex numpy": (lambda: X.astype(complex), "real numbers, got complex128; convert"),
    "bool": (lambda: X > 0, "real numbers, got bool; convert"),
    "scipy": (lambda: scipy.sparse.csr_array(X), r"a scipy.csr_array that is sparse; make it dense with .toarray\(\)"),
    "strings": (lambda: X.astype(str), "real numbers, got <U"),
    "one string": (lambda: "0.5 0.25", "real numbers, got <U8 from a str"),
    "objects": (lambda: X.astype(object), "real numbers, got object; convert"),
    "fractions": (lambda: [[Fraction(1, 2)] * 24], "real numbers, got object from a fractions.Fraction"),
    "large whole numbers": (lambda: [[2**70] * 24], "real numbers, got object"),
    "fields": (lambda: np.zeros(24, [("a", "f4"), ("b", "f4")]), r"real numbers, got \[\('a'"),
    "raw bytes": (lambda: X.view("V4"), r"real numbers, got \|V4"),
    "dates": (lambda: np.zeros((1, 24), "M8[D]"), r"real numbers, got datetime64\[D\]"),
    "ragged": (lambda: [[1.0], [1.0, 2.0]], "a list that numpy cannot read .*; make it a numpy array of float32"),
    "nothing": (lambda: None, "real numbers, got object from a NoneType"),
    "dictionary": (lambda: {"x": X}, "real numbers, got object from a dict"),
    "generator": (lambda: iter(X), "real numbers, got object from"),
    "table of words": (lambda: table([["a"] * 24]), "real numbers, got (object|str)"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_plain_numbers_is_refused_in_one_sentence(sae: SAE, name: str) -> None:
    make, message = REFUSED[name]
    calls: list[Callable[[Any], Any]] = [as_float32, sae.encode, sae.encode_slots, sae.encode_batch]
    calls.append(lambda x: sae.steer(x, Edit.ablate(1)))
    for call in calls:
        with pytest.raises(ValueError, match=f"^activations must be .*{message}") as caught:
            call(make())
        assert "\n" not in str(caught.value)


def quantised() -> torch.Tensor:
    tensor: torch.Tensor = torch.quantize_per_tensor(T, 0.25, 0, torch.qint8)
    return tensor


OPTIONS: dict[str, Callable[[SAE, Any], Any]] = {
    "gate": lambda sae, gate: sae.steer(X, Edit.set(1, 2.0), gate=gate),
    "threshold": lambda sae, threshold: sae.encode(X, threshold=threshold).values,
    "max_density": lambda sae, density: sae.encode_batch(X, max_density=density).values,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_taken_and_refused_as_activations_are(sae: SAE, name: str) -> None:
    number = np.full(6 if name == "gate" else 150, 0.5, np.float32)
    tensor = torch.nn.Parameter(torch.from_numpy(number).bfloat16())
    np.testing.assert_array_equal(OPTIONS[name](sae, tensor), OPTIONS[name](sae, number))
    for make, message in (REFUSED["masked"], REFUSED["meta"], REFUSED["objects"], REFUSED["nothing"]):
        if make() is not None:
            with pytest.raises(ValueError, match=f"^{name} must be .*{message}"):
                OPTIONS[name](sae, make())


def test_a_mask_of_tokens_is_bool_of_any_library(sae: SAE) -> None:
    valid = np.arange(6) % 2 == 0
    expected = sae.encode_batch(X, valid=valid).to_dense()
    for mask in (torch.from_numpy(valid), valid.tolist(), OnlyArray(valid)):
        np.testing.assert_array_equal(sae.encode_batch(X, valid=mask).to_dense(), expected)
    with pytest.raises(ValueError, match="^valid must be .* is masked"):
        sae.encode_batch(X, valid=np.ma.array(valid, mask=~valid))
    with pytest.raises(ValueError, match=r"valid must be bool \[6\], one for each token, got int64 \[6\]"):
        sae.encode_batch(X, valid=torch.ones(6, dtype=torch.int64))


def test_a_function_may_give_rows_of_any_library(sae: SAE) -> None:
    found = sae.encode_batch(lambda ids: T[torch.from_numpy(ids)].bfloat16().requires_grad_(), 6)
    np.testing.assert_array_equal(found.to_dense(), sae.encode_batch(X).to_dense())
    with pytest.raises(ValueError, match="is masked"):
        sae.encode_batch(lambda ids: np.ma.array(X[ids]), 6)


@pytest.mark.parametrize("k", [torch.tensor(2), np.int64(2), np.array([2.0]), torch.tensor([2.0])])
def test_k_is_one_number_of_any_library(bundle_of: BundleOf, sae: SAE, k: Any) -> None:
    assert sae.encode_batch(X, k=k).l0().sum() == 12
    assert (load(bundle_of("token")).encode(X, k=k).l0() <= 2).all()


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ("2", "^k must be real numbers, got <U1 from a str"),
        ([1, 2], r"^k must be one number, got int64 \[2\]; give one"),
        (True, r"^k must be one number, got bool \[\]"),
        (np.ma.masked, "^k must be .* is masked"),
        (float("nan"), "^k must be in .*, got nan"),
        (2**70, "^k must be in "),
    ],
)
def test_k_that_is_no_number_is_refused(bundle_of: BundleOf, sae: SAE, k: Any, message: str) -> None:
    for call in (sae.encode_batch, load(bundle_of("token")).encode):
        with pytest.raises(ValueError, match=message):
            call(X, k=k)


def test_a_number_too_large_for_float32_is_refused_with_its_row(sae: SAE) -> None:
    x = make_x(6).astype(np.float64)
    x[4, 3] = 1e39
    for one in (x, torch.from_numpy(x)):
        with pytest.raises(ValueError, match="row 4 of the activations holds NaN or Inf"):
            sae.encode(one)


def test_a_tensor_without_rows_is_refused_with_the_size(sae: SAE) -> None:
    with pytest.raises(ValueError, match="24"):
        sae.encode(torch.tensor(1.0))


def test_features_are_taken_by_numbers_and_masks_of_any_library(sae: SAE) -> None:
    features = sae.encode(X)
    assert features.take(torch.tensor([2, 0])).shape == (2,) and features.take([]).shape == (0,)
    assert features.filter(features=torch.ones(150, dtype=torch.bool)).l0().tolist() == features.l0().tolist()
    with pytest.raises(ValueError, match="tokens go by whole numbers, got float64"):
        features.take([1.7])
    with pytest.raises(ValueError, match="ids must be .* is masked"):
        features.take(np.ma.array([1, 2], mask=[True, False]))
    with pytest.raises(ValueError, match="decode takes the Features that encode gives, got tuple"):
        sae.decode(sae.encode_slots(X))  # type: ignore[arg-type]


def test_numbers_and_bools_keep_their_type() -> None:
    assert as_array(torch.tensor([1, 2])).dtype == np.int64 and as_array([True]).dtype == np.bool_
    assert as_array(T.double()).dtype == np.float64 and as_array(T.bfloat16()).dtype == np.float32
    assert as_number(torch.tensor(0.5), "k") == 0.5
    with pytest.raises(ValueError, match="k must be real numbers, got object from a int"):
        as_number(10**400, "k")
