"""A store may come from a stranger: its hashes agree, and its rows are of no store. Each is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from made_features import MadeSource, made_documents, write_features

from sae_runtime.bundle.parts import record
from sae_runtime.store.build_store import build_store
from sae_runtime.store.open_store import Store, open_store
from sae_runtime.store.schema import CONTEXTS, FEATURES
from sae_runtime.store.table_files import footer_sha256

NAN = float("nan")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_features(folder / "features", MadeSource(made_documents(6, 8), 8))
    build_store(folder / "features", folder / "store", context=8, sample=50)
    return folder / "store"


def altered(sound: Path, path: Path, name: str, alter: Callable[[Any], Any], group: int = 1000) -> Path:
    """A copy of a store in which a table is another one, with its hashes."""
    shutil.copytree(sound, path)
    pyarrow.parquet.write_table(alter(pyarrow.parquet.read_table(path / name)), path / name, row_group_size=group)
    described, found = json.loads((path / "store.json").read_text()), record(path / name)
    described["files"][name] = {**vars(found), "footer_sha256": footer_sha256(path / name)}
    (path / "store.json").write_text(json.dumps(described))
    return path


def each(column: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def alter(table: Any) -> Any:
        place = table.schema.get_field_index(column)
        values = [change(value) for value in table[column].to_pylist()]
        return table.set_column(place, table.schema.field(place), pyarrow.array(values, table.schema.field(place).type))

    return alter


def use(store: Store) -> None:
    for feature in range(len(store)):
        store.feature(feature)
    store.search("file")


def walk(store: Store) -> None:
    for feature in store.features(3):
        assert feature.feature >= 3


@pytest.mark.parametrize(
    ("name", "column", "change"),
    [
        (FEATURES, "contexts_begin", lambda _: 1 << 40),
        (FEATURES, "contexts", lambda _: -3),
        (FEATURES, "contexts", lambda _: 1 << 30),
        (FEATURES, "together", lambda _: [{"feature": 8, "value": 0.5}]),
        (FEATURES, "top_tokens", lambda _: [{"token": 1, "text": None, "count": 1, "mean": 1.0}]),
        (FEATURES, "histogram", lambda _: [1, 2]),
        (FEATURES, "bands", lambda _: []),
        (FEATURES, "max", lambda _: NAN),
        (FEATURES, "mean", lambda _: 0.0),
        (CONTEXTS, "feature", lambda _: 400),
        (CONTEXTS, "peak", lambda _: -1),
        (CONTEXTS, "band", lambda _: 9),
        (CONTEXTS, "values", lambda values: values[:1]),
        (CONTEXTS, "values", lambda values: [NAN] * len(values)),
        (CONTEXTS, "tokens", lambda _: None),
        (CONTEXTS, "begins", lambda _: None),
        (CONTEXTS, "ends", lambda ends: [end + 99 for end in ends]),
    ],
)
def test_rows_of_no_store_are_refused(sound: Path, tmp_path: Path, name: str, column: str, change: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} has rows that no store has; build the store again"):
        use(open_store(altered(sound, tmp_path / "store", name, each(column, change))))
    with pytest.raises(ValueError, match=f"{name} has rows that no store has; build the store again"):
        walk(open_store(tmp_path / "store"))


def test_contexts_out_of_the_order_of_features_are_refused_by_a_walk(sound: Path, tmp_path: Path) -> None:
    store = open_store(altered(sound, tmp_path / "store", FEATURES, each("contexts_begin", lambda _: 0)))
    with pytest.raises(ValueError, match="has rows that no store has"):
        list(store.features())


def test_a_feature_without_contexts_may_have_them_begin_anywhere(sound: Path, tmp_path: Path) -> None:
    def alter(table: Any) -> Any:
        rows = table.to_pylist()
        rows[0] |= {"contexts": 0, "contexts_begin": pyarrow.parquet.read_metadata(sound / CONTEXTS).num_rows}
        return pyarrow.Table.from_pylist(rows, table.schema)

    store = open_store(altered(sound, tmp_path / "store", FEATURES, alter))
    assert [len(one.contexts) for one in store.features()] == [len(store.feature(i).contexts) for i in range(8)]


def test_ids_of_another_type_are_refused(sound: Path, tmp_path: Path) -> None:
    def alter(table: Any) -> Any:
        place = table.schema.get_field_index("id")
        return table.set_column(place, "id", pyarrow.array([b"\xff"] * len(table)))

    with pytest.raises(ValueError, match="has other columns"):
        open_store(altered(sound, tmp_path / "store", CONTEXTS, alter))


def test_row_groups_of_any_size_give_each_feature_its_own_row(sound: Path, tmp_path: Path) -> None:
    groups = altered(sound, tmp_path / "store", FEATURES, lambda table: table, group=3)
    use(store := open_store(groups))
    assert [one.count for one in store.features(2, 7)] == [open_store(sound).feature(i).count for i in range(2, 7)]
    assert [store.feature(i).count for i in range(8)] == [open_store(sound).feature(i).count for i in range(8)]


@pytest.mark.parametrize("change", [{"bins": 0}, {"d_sae": -1}, {"per_band": []}, {"per": "x"}, {"d_sae": 1 << 50}])
def test_a_description_of_no_store_is_refused(sound: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(sound, tmp_path / "store")
    described = json.loads((sound / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(described | change))
    with pytest.raises(ValueError, match="build the store again"):
        open_store(tmp_path / "store")
