"""Publishing to a stand-in for the Hub, and fetching back: equal bytes, one commit, and errors of one sentence."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_stub
import huggingface_hub
import numpy as np
import pytest
from command_line import refused, run
from conftest import make_x
from hub_stub import TOKEN, Hub

from sae_runtime import load, load_model
from sae_runtime.bundle import hub as references
from sae_runtime.bundle.folder import put_stats, read
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.sealed import is_ours
from sae_runtime.bundle.stats import counted
from sae_runtime.publishing import push

BundleOf = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process speaks to, with a token that may write to the owner `me`."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the tries of huggingface_hub
    with hub_stub.running() as running:
        hub_stub.speak_to(running, str(tmp_path / "cache"), monkeypatch)
        yield running


@pytest.fixture
def sae(copy_of: BundleOf) -> Path:
    return copy_of("mutual", sampled=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_comes_back_with_equal_bytes_and_computes_the_same(hub: Hub, sae: Path) -> None:
    write_labels(sae, {3: "three"})
    before = contents(sae)
    made = push(sae, "me/my-sae")
    assert made.reference == "hf://me/my-sae" and made.bundles == ("hf://me/my-sae",)
    assert contents(sae) == before
    there = hub.repositories["me/my-sae"].files()
    assert there.keys() - {".gitattributes"} == before.keys() == made.files.keys()
    assert {name: data for name, data in there.items() if name in before and name != "README.md"} == {
        name: data for name, data in before.items() if name != "README.md"
    }
    fetched = references.fetch("hf://me/my-sae")
    assert {p.name for p in fetched.iterdir()} == before.keys() - {"README.md"}
    x = make_x(7)
    np.testing.assert_array_equal(load("hf://me/my-sae").encode(x).to_dense(), load(sae).encode(x).to_dense())
    assert dict(load("hf://me/my-sae").labels) == {3: "three"}


def test_the_card_there_names_the_repository_and_may_be_written_again(hub: Hub, sae: Path) -> None:
    push(sae, "me/my-sae", folder="layer.3/k6", revision="wide")
    card = hub.repositories["me/my-sae"].files("wide")["layer.3/k6/README.md"].decode()
    assert 'load("hf://me/my-sae/layer.3/k6@wide")' in card and "OWNER/NAME" not in card
    assert 'SAE.from_pretrained("me/my-sae", "layer.3/k6")' in card
    assert is_ours(card) and "OWNER/NAME" in (sae / "README.md").read_text()
    assert load("hf://me/my-sae/layer.3/k6@wide").d_sae == 150


@pytest.mark.filterwarnings("ignore")  # of what SAELens imports
@pytest.mark.parametrize("folder", ["", "layer.3/k6"])
def test_sae_lens_loads_it_by_the_call_on_the_card(hub: Hub, sae: Path, folder: str) -> None:
    import torch

    push(sae, "me/my-sae", folder=folder)
    card = hub.repositories["me/my-sae"].files()[f"{folder}/README.md".lstrip("/")].decode()
    code = next(block.partition("```")[0] for block in card.split("```python\n")[1:] if "sae_lens" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    x = make_x(5)
    theirs = names["sae"].encode(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(theirs, load(sae).encode(x).to_dense(), atol=1e-5)


def test_nothing_but_the_bundles_own_files_is_sent(hub: Hub, sae: Path) -> None:
    for name in (".env", "notes.txt", "run.log", "sae.run-state", "modeling.py", "LICENSE"):
        (sae / name).write_text("mine")
    (sae / "sae.run-state").unlink()
    (sae / "sae.run-state").mkdir()
    (sae / "sae.run-state" / "state.pt").write_text("mine")
    sent = set(push(sae, "me/my-sae").files)
    assert sent == {*read(sae).manifest.files, *read(sae).manifest.graphs, "sae_runtime.json", "README.md", "LICENSE"}
    assert set(hub.repositories["me/my-sae"].files()) == sent | {".gitattributes"}


def test_links_out_of_the_folder_are_not_followed(hub: Hub, sae: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name in ("README.md", "LICENSE", "labels.jsonl"):
        kept = (sae / name).read_bytes() if (sae / name).exists() else None
        (sae / name).unlink(missing_ok=True)
        (sae / name).symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match="is a link out of its folder"):
            push(sae, "me/my-sae")
        (sae / name).unlink()
        if kept is not None:
            (sae / name).write_bytes(kept)
    assert not hub.calls


def test_a_folder_of_bundles_has_a_card_that_lists_them(hub: Hub, bundle_of: BundleOf, tmp_path: Path) -> None:
    for kind in ("mutual", "token"):
        shutil.copytree(bundle_of(kind), tmp_path / "saes" / f"{kind}-k6")
    made = push(tmp_path / "saes", "me/saes")
    assert made.kind == "bundles" and made.bundles == ("hf://me/saes/mutual-k6", "hf://me/saes/token-k6")
    files = hub.repositories["me/saes"].files()
    card = files["README.md"].decode()
    assert "| `mutual-k6/` |" in card and 'load("hf://me/saes/mutual-k6")' in card
    assert 'load("hf://me/saes/token-k6")' in files["token-k6/README.md"].decode()
    assert [load(reference).d_sae for reference in made.bundles] == [150, 150]
    with pytest.raises(FileNotFoundError, match="mutual-k6, hf://me/saes/token-k6"):
        load("hf://me/saes")
    (tmp_path / "saes/README.md").write_text(card)  # as in a copy of the repository
    push(tmp_path / "saes", "me/others")
    assert "me/saes" not in hub.repositories["me/others"].files()["README.md"].decode()


def test_a_second_push_replaces_the_first_and_removes_what_is_gone(hub: Hub, sae: Path) -> None:
    from sae_runtime.exports import export

    write_labels(sae, {3: "three"})
    export(sae, graphs=["gpu"])
    push(sae, "me/my-sae", folder="a")
    export(sae, graphs=[])
    put_stats(read(sae), counted(np.ones(150, np.int64), np.ones(150), 10))
    (sae / "labels.jsonl").unlink()
    made = push(sae, "me/my-sae", folder="a")
    there = hub.repositories["me/my-sae"].files()
    assert made.removed == ("a/derived.safetensors", "a/encode_gpu.onnx")
    assert there.keys() == {f"a/{path.name}" for path in sae.iterdir()} | {".gitattributes", "a/labels.jsonl"}
    assert load("hf://me/my-sae/a").stats is not None


def test_the_same_again_makes_no_commit(hub: Hub, sae: Path) -> None:
    push(sae, "me/my-sae")
    commits = len(hub.repositories["me/my-sae"].commits)
    push(sae, "me/my-sae")
    assert len(hub.repositories["me/my-sae"].commits) == commits


def test_a_card_that_was_edited_on_the_hub_stays_and_one_without_text_is_replaced(hub: Hub, sae: Path) -> None:
    there = hub.new("me/my-sae", {"README.md": b"---\nlicense: mit\n---\n"})
    assert push(sae, "me/my-sae").kept == ()
    card = there.files()["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: sae-runtime") and "Licence: `mit`." in card
    there.files()["README.md"] = b"# Edited in the browser"
    assert push(sae, "me/my-sae").kept == ("README.md",)
    assert there.files()["README.md"] == b"# Edited in the browser"
    (sae / "README.md").write_text("# Edited here, hf://OWNER/NAME")
    assert push(sae, "me/my-sae").kept == ()
    assert there.files()["README.md"] == b"# Edited here, hf://me/my-sae"


def test_the_licence_goes_into_the_card(hub: Hub, sae: Path) -> None:
    push(sae, "me/my-sae", licence="CC-BY-4.0")
    card = hub.repositories["me/my-sae"].files()["README.md"].decode()
    assert hub_stub.front_matter(card)["license"] == "cc-by-4.0" and is_ours(card)
    (sae / "README.md").write_text("---\nlicense: mit\n---\n# Mine")
    with pytest.raises(ValueError, match="the model card states the licence mit"):
        push(sae, "me/my-sae", licence="apache-2.0")


def test_a_private_repository_is_made_and_a_public_one_refused(hub: Hub, sae: Path) -> None:
    push(sae, "me/mine", private=True)
    assert hub.repositories["me/mine"].private
    hub.new("me/public")
    with pytest.raises(OSError, match="is there and is public"):
        push(sae, "me/public", private=True)
    assert set(hub.repositories["me/public"].files()) == {".gitattributes"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda hub: hub.tokens.clear(), "the Hub does not take the token"),
        (lambda hub: hub.tokens.update({TOKEN: ("you",)}), "the token may not write there: You don't have the rights"),
        (lambda hub: hub.failing.update({"preupload": 500}), "the Hub failed with 500: Something went wrong"),
        (lambda hub: hub.failing.update({"/lfs/": 503}), "the Hub failed with 503"),
        (lambda hub: hub.failing.update({"/commit/": 500}), "the Hub failed with 500"),
        (lambda hub: hub.failing.update({"/commit/": 413}), "it is too large for the Hub"),
        (lambda hub: hub.failing.update({"/commit/": 412}), "the repository changed meanwhile"),
        (lambda hub: hub.failing.update({"/commit/": 400}), "the Hub answered 400"),
        (lambda hub: hub.server_close(), "the Hub does not answer"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_leaves_nothing(
    hub: Hub, sae: Path, spoil: Callable[[Hub], object], message: str
) -> None:
    hub.new("me/my-sae")
    spoil(hub)
    if message == "the Hub does not answer":
        hub.shutdown()
    said = refused("push", sae, "me/my-sae")
    assert said.startswith(f"error: me/my-sae cannot be published: {message}"), said
    assert said.endswith("nothing was published") and TOKEN not in said and "\n" not in said
    assert set(hub.repositories["me/my-sae"].files()) == {".gitattributes"}


def test_a_missing_repository_and_branch_are_made_unless_told_otherwise(hub: Hub, sae: Path) -> None:
    assert "there is no such repository" in refused("push", sae, "me/none", "--no-create")
    hub.new("me/my-sae")
    assert "no such branch" in refused("push", sae, "me/my-sae", "--no-create", "--revision", "wide")
    assert "nothing was published" in refused("push", sae, "you/my-sae")
    push(sae, "me/none", revision="wide")
    assert "encode.onnx" in hub.repositories["me/none"].files("wide")
    assert "encode.onnx" not in hub.repositories["me/none"].files("main")


def test_without_a_token_or_offline_nobody_is_asked(hub: Hub, sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token; run `hf auth login`" in refused("push", sae, "me/my-sae")
    assert not hub.calls
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("push", sae, "me/my-sae")


def test_an_unsound_bundle_is_refused_before_anybody_is_asked(hub: Hub, sae: Path, tmp_path: Path) -> None:
    from conftest import make_manifest, make_weights

    from sae_runtime.bundle import folder

    folder.write(tmp_path / "plain", make_weights(150, "mutual"), make_manifest(150, "mutual"))
    assert "has no graphs yet, so nobody could load it; run: sae-runtime export" in refused(
        "push", tmp_path / "plain", "me/x"
    )
    weights = bytearray((sae / "encode.onnx").read_bytes())
    weights[-1] ^= 1
    (sae / "encode.onnx").write_bytes(weights)
    assert "encode.onnx was altered" in refused("push", sae, "me/my-sae")
    (tmp_path / "empty").mkdir()
    assert "is no bundle, folder of bundles or deployed model" in refused("push", tmp_path / "empty", "me/x")
    assert "does not exist" in refused("push", tmp_path / "nowhere", "me/x")
    for name in ("sae", "me/../x", "a/b/c", "-/x", "me/x y"):
        assert "is not the name of a repository" in refused("push", "--", sae, name)
    for place in ("../x", "a//b", "x@1", "a/sae.onnx", ".git"):
        assert "has a name that no reference can have" in refused("push", sae, "me/x", "--path", place)
    assert not hub.calls


def test_a_file_that_changes_while_it_is_sent_is_not_published(
    hub: Hub, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_runtime.publishing import sending as module

    real = module.chosen  # type: ignore[attr-defined]  # imported there

    def late(path: Path) -> Any:
        made = real(path)
        (sae / "sample.safetensors").write_bytes(b"other")
        return made

    monkeypatch.setattr(module, "chosen", late)
    with pytest.raises(OSError, match=r"sample.safetensors changed while it was sent; .*nothing was published"):
        push(sae, "me/my-sae")
    assert set(hub.repositories["me/my-sae"].files()) == {".gitattributes"}


def test_a_push_that_is_killed_leaves_the_repository_as_it_was_and_the_same_command_ends_it(
    hub: Hub, sae: Path, tmp_path: Path
) -> None:
    push(sae, "me/my-sae")
    before = hub.repositories["me/my-sae"].files()
    put_stats(read(sae), counted(np.ones(150, np.int64), np.ones(150), 10))
    hub.held = threading.Event()
    command = [sys.executable, "-c", "from sae_runtime.cli import main; main()", "push", str(sae), "me/my-sae"]
    environment = {**os.environ, **hub_stub.environment(hub, str(tmp_path / "home"))}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.reached.wait(120)
    process.kill()
    process.wait()
    hub.held.set()
    assert hub.repositories["me/my-sae"].files() == before and len(hub.repositories["me/my-sae"].commits) == 2
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines()[-1].endswith("hf://me/my-sae")
    assert TOKEN not in done.stdout and "stats.safetensors" in hub.repositories["me/my-sae"].files()


def test_the_dry_run_says_what_would_be_sent_and_asks_nobody(hub: Hub, sae: Path) -> None:
    shown = run("push", sae, "me/my-sae", "--dry-run").stdout
    assert "sae_weights.safetensors" in shown and shown.splitlines()[-1].split() == ["load", "hf://me/my-sae"]
    assert "nothing: --dry-run" in shown and not hub.calls


@pytest.fixture
def model(bundle_of: BundleOf, tmp_path: Path) -> Path:
    from deployed_model import deploy
    from tiny_host import HOOKS

    from sae_runtime.exports.splice.splicing import Splice, splice

    host = deploy(tmp_path / "host", "bert", [])
    (host / "README.md").write_text("---\nlicense: apache-2.0\npipeline_tag: sentence-similarity\n---\n# The host")
    graph = next(host.glob("*.onnx"))
    splice(graph, [Splice(bundle=bundle_of("mutual"), hook=HOOKS["bert"])], tmp_path / "model")
    return tmp_path / "model"


def test_a_deployed_model_comes_back_and_reads_and_its_card_is_ours(hub: Hub, model: Path, tmp_path: Path) -> None:
    before = contents(model)
    assert is_ours(before["README-sae.md"].decode()) and before["README.md"].endswith(b"# The host")
    (model / "notes.txt").write_text("mine")
    made = push(model, "me/model")
    assert (made.kind, made.reference, made.bundles) == ("model", "hf://me/model", ("hf://me/model/sae",))
    there = hub.repositories["me/model"].files()
    assert there.keys() - {".gitattributes"} == before.keys() - {"README-sae.md"} | {"README-host.md"}
    assert there["README-host.md"] == before["README.md"]
    card = there["README.md"].decode()
    assert hub_stub.front_matter(card)["license"] == "apache-2.0" and 'load_model("hf://me/model")' in card
    assert {n: d for n, d in there.items() if n in before and "README" not in n} == {
        n: d for n, d in before.items() if "README" not in n
    }
    seen, expected = (load_model(path).features("w1 w2 w3") for path in ("hf://me/model", model))
    np.testing.assert_array_equal(seen.features.to_dense(), expected.features.to_dense())
    assert load("hf://me/model/sae").d_sae == 150
    for name, data in there.items():  # published again from a copy of the repository
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    push(tmp_path / "copy", "me/second")
    card = hub.repositories["me/second"].files()["README.md"].decode()
    assert 'load_model("hf://me/second")' in card and "me/model" not in card and is_ours(card)
    assert hub_stub.front_matter(card)["license"] == "apache-2.0"


def test_a_model_without_an_sae_is_refused(hub: Hub, tmp_path: Path) -> None:
    from deployed_model import deploy

    assert "has no SAE in it; put one in" in refused("push", deploy(tmp_path / "host", "bert", []), "me/x")
