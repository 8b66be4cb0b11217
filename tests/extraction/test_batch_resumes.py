"""The batch rule over parts goes on after every interruption, and makes again what is damaged."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from feature_folders import assert_same, bytes_of, read_tokens, stored, uneven

from sae_runtime import load
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.batch_parts import match
from sae_runtime.extraction.candidate_files import FOLDER, CandidateFiles
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.tasks import Task, local
from sae_runtime.extraction.two_passes import passes_of

BundleOf = Callable[..., Path]


@pytest.fixture(params=["mutual", "feature"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Interrupted(Exception):
    """As a kill between two parts."""


def test_it_goes_on_after_every_part(bundle_of: BundleOf, tmp_path: Path, kind: str) -> None:
    """An engine that dies after each part that it made: no part is made twice, and the bytes are the same."""
    source = ArraySource(load(bundle_of(kind), threads=1), stored(tmp_path, uneven(90)), part=16)
    whole, made = tmp_path / "whole", list[tuple[str, int]]()
    extract(source, whole, rule="batch", values="float32")

    def dying(task: Task, numbers: Sequence[int]) -> Iterator[int]:
        for number in list(numbers)[::-1]:  # the order does not matter
            pickle.loads(pickle.dumps(task))(number)
            made.append((type(task).__name__, number))
            raise Interrupted
        yield from ()

    while True:
        try:
            extract(source, tmp_path / "features", rule="batch", values="float32", engine=dying)
            break
        except Interrupted:
            continue
    assert len(made) == len(set(made))
    counts = {name: sum(task == name for task, _ in made) for name, _ in made}
    assert counts["MakeFirst"] == counts["MakeParts"] == 6 and 0 < counts["MakeAgain"]
    assert bytes_of(tmp_path / "features") == bytes_of(whole)


def test_what_is_damaged_or_of_another_plan_is_made_again(bundle_of: BundleOf, tmp_path: Path, kind: str) -> None:
    x, sae = uneven(50), load(bundle_of(kind), threads=1)
    source = ArraySource(sae, stored(tmp_path, x), part=16)
    passes, plan = passes_of(source), source.plan()
    assert passes is not None
    candidates = CandidateFiles(tmp_path / FOLDER, plan)
    match(passes, candidates, engine=local, progress=False)
    before = bytes_of(tmp_path / FOLDER)
    assert {"cut.npz", "cut-again.npz", "part-00003.npz"} < set(before), "there was no second pass"
    for name, content in before.items():
        path = tmp_path / FOLDER / name
        for spoiled in (content[: len(content) // 2], b"", content[:200] + b"\x01" + content[201:]):
            path.write_bytes(spoiled)
            assert not candidates.is_whole(name)
        match(passes, candidates, engine=local, progress=False)
        assert candidates.is_whole(name)
    other = ArraySource(sae, stored(tmp_path, x + 1), part=16).plan()
    assert not any(CandidateFiles(tmp_path / FOLDER, other).is_whole(name) for name in before)


@pytest.mark.parametrize("graph", ["encode.onnx", "encode_exact.onnx"])
@pytest.mark.parametrize("part", [1, 64, 1000])
def test_every_graph_gives_the_rows_of_encode_batch(
    bundle_of: BundleOf, tmp_path: Path, kind: str, graph: str, part: int
) -> None:
    """Beside rows of any size, also those that are all below the floor of the int8 graph's first pass."""
    sae = load(bundle_of(kind, 512, sampled=True), graph=graph, threads=1)
    for size in (1.0, 0.2):
        x = (uneven(40 if part == 1 else 150) * size).astype("f4")
        out = tmp_path / f"features-{size}"
        extract(ArraySource(sae, stored(tmp_path, x), part=part), out, rule="batch", values="float32")
        assert_same(read_tokens(out, 512), sae.encode_batch(x))
