"""Model cards: what they say, that the Hub can read them, that hostile names stay text, and that edits are kept."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_manifest, make_weights, make_x
from hub_stub import front_matter
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from sae_runtime.bundle import folder
from sae_runtime.bundle.card import base_model, card, with_licence
from sae_runtime.bundle.hub import parsed
from sae_runtime.bundle.licences import check_licence, licence_of, stated_in
from sae_runtime.bundle.manifest import Architecture, LeftOut, Manifest
from sae_runtime.bundle.markdown import inline, words
from sae_runtime.bundle.model_card import model_card
from sae_runtime.bundle.sealed import CARD, for_repository, is_ours, may_write
from sae_runtime.bundle.splices import Spliced
from sae_runtime.bundle.stats import counted
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.exports import export
from sae_runtime.publishing.cards_sent import stating
from sae_runtime.publishing.index_card import index_card

HOSTILE = (
    "](javascript:alert(1)) <script>alert(1)</script>",
    "x` | y | z\n\n# Heading\n\n---\nlicense: mit\n---",
    "<!-- -->\n```\n![p](http://x.y/p.png)",
    "www.evil.com http://evil.com me@evil.com @someone #1",
    "\x1b[2J\u202etxt\ud800\x85\u2028",
    "[a](b) *b* _c_ ~~d~~ \\| &amp; &#60;",
    "`",
    "``a``",
    " leading",
    "a" * 5000,
    "hf://OWNER/NAME",
    "",
)
SAFE = {"heading_open", "paragraph_open", "table_open", "fence", "bullet_list_open", "html_block", "inline"}


def hostile_manifest(text: str) -> Manifest:
    provenance: dict[str, Any] = {
        "activations": text,
        "text": [text, 3, text],
        "rows": {text: 3, "train": 10, "calibration": text},
        "config": {"seed": text, "tokens": 10, text: text},
        "recipe": text,
        "versions": {text: text, "numpy": text},
        "source": {"file": text, "sha256": text, "reference": text, "licence": text},
        "fitted_on": {text: text, "a": [text, {text: text}]},
        "format": text,
        "source_format": text,
        "warnings": [text, 7],
        "licence": text,
        "calibration": {"activations": text, "rows": {"train": text}, "versions": {text: text}},
    }
    return dataclasses.replace(
        make_manifest(150, "mutual"),
        model=text,
        hook=text,
        hook_out=text,
        transformer_lens_hook=f"{text}.",
        measured={"tokens": 10, "fvu": 0.25, "l0": 6.0, "dead": 0.5, "dead_tokens": 20},
        left_out=LeftOut(norm_multiple=10.0, first_positions=1, token_ids=(1, 2), rows={text: 3}),
        provenance=provenance,
    )


def structure(text: str) -> list[str]:
    """The kinds of all elements of a Markdown text, as GitHub reads it."""
    parser = MarkdownIt("gfm-like", {"linkify": False})
    kinds = []
    for token in parser.parse(text):
        kinds += [token.type, *(inner.type for inner in token.children or ())]
    return kinds


def cards(manifest: Manifest) -> list[str]:
    one = Spliced(
        name="sae",
        hook=manifest.hook or "",
        tensor="add",
        inputs=("sae_features",),
        outputs=("sae_values",),
        replace=True,
        d_in=24,
        d_sae=150,
        weights="",
        slots=24,
        bundle=manifest.hook,
    )
    of_model = model_card({"sae": one}, {"sae": manifest}, graph="model.onnx", tokenizer=True, licence=manifest.hook)
    return [card(manifest), of_model, index_card({"k16": manifest})]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_change_neither_the_markup_nor_the_front_matter(text: str) -> None:
    plain = [card.partition("\n---\n")[2] for card in cards(hostile_manifest("plain"))]
    for made, expected in zip(cards(hostile_manifest(text)), plain, strict=True):
        assert is_ours(made) and "\x1b" not in made and "\u202e" not in made
        made.encode()
        read = ModelCard(made)
        data = front_matter(made)
        assert data["library_name"] == "sae-runtime" and data.get("license") in (None, "other")
        assert set(data) <= {"library_name", "license", "license_name", "base_model", "tags"}
        kinds = structure(read.text)
        assert not {"link_open", "image", "html_inline", "em_open", "strong_open", "s_open", "hr"} & set(kinds)
        assert kinds.count("html_block") == 1, "the seal alone"
        if text:
            drop = {"code_inline", "text", "text_special"}  # a name is a code span or text
            assert [kind for kind in kinds if kind not in drop] == [
                kind for kind in structure(expected) if kind not in drop
            ]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_shown_as_they_are(text: str) -> None:
    from sae_runtime.core.printable import printable

    for shown in (inline(text), words(text)):
        (token,) = MarkdownIt().parse(f"x {shown} x")[1:2]
        read = "".join(inner.content for inner in token.children or ())
        assert read.startswith(f"x {printable(text)[:150]}")


def test_the_hub_reads_the_front_matter() -> None:
    manifest = dataclasses.replace(make_manifest(150, "mutual"), model="openai-community/gpt2", hook="h.3")
    assert front_matter(card(with_licence(manifest, "Apache-2.0"))) == {
        "library_name": "sae-runtime",
        "license": "apache-2.0",
        "base_model": "openai-community/gpt2",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "onnx"],
    }
    other = front_matter(card(with_licence(manifest, "Our own, 1.0")))
    assert (other["license"], other["license_name"]) == ("other", "our-own-1.0")


def test_paths_are_no_base_models() -> None:
    for name in ("/models/x", "models/../x", "a/b/c", "minilm", "C:\\x", "a b/c"):
        assert base_model(name) is None


def test_the_card_says_allocation_figures_and_origin(bundle_of: Callable[..., Path]) -> None:
    for kind, said in (
        ("token", "token choice (TopK)"),
        ("mutual", "(BatchTopK)"),
        ("feature", "feature choice: Batch"),
    ):
        text = (bundle_of(kind) / CARD).read_text()
        assert said in text and "k = 6" in text and "| `encode.onnx` |" in text and "- saelens\n" in text
        assert "Licence: not stated." in text
    manifest = hostile_manifest("plain")
    text = card(manifest)
    for said in ("| as served | 0.2500 | 0.7500 | 6.00 | 10 |", "50 % of the features are active on none", "`plain`"):
        assert said in text
    transcoder = Architecture(d_in=24, d_sae=150, selection="topk", k=6, pre_bias=False, d_out=8)
    text = card(Manifest(architecture=transcoder, allocation=None, slots=6, hook="a", hook_out="b"))
    assert "# Transcoder" in text and "SAELens" not in text and "splice" not in text


def test_every_reference_of_a_card_is_one_that_load_takes(bundle_of: Callable[..., Path]) -> None:
    text = for_repository((bundle_of("mutual") / CARD).read_text(), "me/saes", "layer.3/k6", "@v2")
    found = set(re.findall(r"hf://[\w./@-]+", text))
    assert {parsed(one) for one in found} == {("me/saes", "layer.3/k6", "v2")}


def test_export_and_stats_write_the_card_again_and_leave_an_edited_one(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    assert "encode_gpu.onnx" not in (path / CARD).read_text()
    export(path, graphs=["gpu"])
    assert "encode_gpu.onnx" in (path / CARD).read_text() and may_write(path)
    folder.put_stats(folder.read(path), counted(np.ones(150, np.int64), np.ones(150), 10))
    assert "stats.safetensors" in (path / CARD).read_text()
    (path / CARD).unlink()
    export(path)
    (path / CARD).write_bytes((path / CARD).read_bytes().replace(b"\n", b"\r\n"))
    assert may_write(path), "ends of lines may change"
    (path / CARD).write_text((path / CARD).read_text().replace("sparse", "dense"))
    export(path)
    assert "dense" in (path / CARD).read_text()
    np.save(path.parent / "x.npy", make_x(600))
    from sae_runtime import open_activations

    calibrate_bundle(path, open_activations(path.parent / "x.npy"), k=4.0)
    assert "dense" in (path / CARD).read_text()
    folder.write(path.parent / "new", make_weights(150, "mutual"), make_manifest(150, "mutual"))
    with pytest.raises(FileExistsError, match="README.md, which would be lost"):
        folder.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"), force=True)
    (path / CARD).unlink()
    folder.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"), force=True)


def test_a_card_that_is_a_link_a_folder_or_no_text_is_left(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    text = (path / CARD).read_text()
    (path / CARD).unlink()
    (path.parent / "elsewhere.md").write_text(text)
    (path / CARD).symlink_to(path.parent / "elsewhere.md")
    export(path)
    assert (path / CARD).is_symlink() and (path.parent / "elsewhere.md").read_text() == text
    (path / CARD).unlink()
    (path / CARD).write_bytes(b"\xff" + text.encode())
    export(path)
    assert (path / CARD).read_bytes().startswith(b"\xff")
    (path / CARD).unlink()
    (path / CARD).mkdir()
    export(path)
    assert (path / CARD).is_dir()


@pytest.mark.parametrize("kind", ["link", "large", "no UTF-8"])
def test_a_new_threshold_keeps_a_persons_card_of_any_kind(copy_of: Callable[..., Path], kind: str) -> None:
    path = copy_of("mutual")
    before = {"link": b"mine", "large": b"a" * (1 << 21), "no UTF-8": b"caf\xe9"}[kind]
    (path / CARD).unlink()
    if kind == "link":
        (path.parent / "mine.md").write_bytes(before)
        (path.parent / "mine.md").chmod(0o400)
        (path / CARD).symlink_to("../mine.md")
    else:
        (path / CARD).write_bytes(before)
    bundle = folder.read(path)
    weights = {name: np.array(one) for name, one in bundle.weights().items() if name != "b_pre"}
    folder.write(path, weights, bundle.manifest, labels_of=path, force=True)
    assert (path / CARD).read_bytes() == before and (path / CARD).is_symlink() == (kind == "link")
    assert kind != "link" or (path.parent / "mine.md").stat().st_mode & 0o777 == 0o400


def test_a_card_that_is_edited_while_an_export_runs_stays(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    with folder.replaced_bundle(folder.read(path), "sae_runtime.json") as staged:
        (staged / "sae_runtime.json").write_bytes((path / "sae_runtime.json").read_bytes())
        (path / CARD).write_text("mine")
    assert (path / CARD).read_text() == "mine"


@pytest.mark.filterwarnings("ignore")  # of what SAELens imports
def test_a_converted_sae_keeps_the_licence_of_its_source(tmp_path: Path) -> None:
    import foreign_saes.sae_lens

    from sae_runtime.checkpoints.convert import convert

    foreign_saes.sae_lens.make("JumpReLUSAE", d_in=24, d_sae=150).save_model(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "plain")
    assert "Licence: not stated." in (tmp_path / "plain" / CARD).read_text()
    (tmp_path / "theirs" / "LICENSE").write_text("MIT License\n\nCopyright (c) somebody")
    convert(tmp_path / "theirs", tmp_path / "sae")
    assert stated_in((tmp_path / "sae" / CARD).read_text()) == "mit"
    assert (tmp_path / "sae" / "LICENSE").read_text().endswith("somebody")
    export(tmp_path / "sae")
    convert(tmp_path / "theirs", tmp_path / "sae", force=True)  # the LICENSE is no foreign file
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Theirs")
    convert(tmp_path / "theirs", tmp_path / "sae", force=True)
    text = (tmp_path / "sae" / CARD).read_text()
    assert stated_in(text) == "cc-by-4.0" and "converted from `sae_weights.safetensors`" in text
    convert(tmp_path / "theirs", tmp_path / "sae", licence="mit", force=True)
    assert stated_in((tmp_path / "sae" / CARD).read_text()) == "mit"
    (tmp_path / "sae" / "LICENSE").write_text("mine")
    with pytest.raises(FileExistsError, match="LICENSE, which would be lost"):
        convert(tmp_path / "theirs", tmp_path / "sae", force=True)


def test_licences_are_read_from_files_and_nothing_is_guessed(tmp_path: Path) -> None:
    for text, licence in (
        ("---\nlicense: mit\n---", "mit"),
        ("---\nlicense: other\nlicense_name: ours\n---", "ours"),
        ('---\nlicense: "apache-2.0"  # yes\n---', "apache-2.0"),
        ("---\nlicense: [mit, x]\n---", None),
        ("---\nlicense: <b>\n---", None),
        ("---\nlicense: mit", None),
        ("license: mit", None),
    ):
        assert stated_in(text) == licence, text
    (tmp_path / "LICENSE").write_text("All rights reserved")
    assert licence_of(tmp_path) is None
    for wrong in ("", "a\nb", "x" * 101):
        with pytest.raises(ValueError, match="a licence is a name such as mit"):
            check_licence(wrong)


def test_a_licence_goes_into_the_front_matter_that_a_card_has(copy_of: Callable[..., Path]) -> None:
    assert stating("---\r\ntags: x\r\n---\r\n# Mine", "mit") == "---\r\nlicense: mit\r\ntags: x\r\n---\r\n# Mine"
    assert front_matter(stating("---\ntags: x\n---\n", "mit")) == {"license": "mit", "tags": ["x"]}
    assert stating("---\nlicense: MIT\n---\n", "mit") == "---\nlicense: MIT\n---\n"
    for several in ("[mit, apache-2.0]", "\n- mit", ""):
        with pytest.raises(ValueError, match="has a licence that is no single name"):
            stating(f"---\nlicense: {several}\n---\n# Theirs", "mit")
    ours = (copy_of("mutual") / CARD).read_text().replace("\n", "\r\n")
    assert is_ours(ours) and is_ours(stating(ours, "mit")) and is_ours(for_repository(ours, "me/sae"))


def test_the_licence_of_a_fit_is_on_its_card(tmp_path: Path) -> None:
    from sae_runtime.train import fit
    from sae_runtime.train.config import TrainConfig

    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    config = TrainConfig(k=2, d_sae=32, tokens=640, batch=64)
    assert fit(x, tmp_path / "sae", config, licence="mit").provenance["licence"] == "mit"
    text = (tmp_path / "sae" / CARD).read_text()
    assert "Licence: `mit`." in text and "seed 0" in text
    with pytest.raises(ValueError, match="a licence is a name"):
        fit(x, tmp_path / "other", config, licence=" ")
