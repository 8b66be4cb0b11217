"""A page with nothing in it but the code that runs a model, for tests that call it from Python."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_runtime import load_model
from sae_runtime.browser.site.model_part import write_model_part
from sae_runtime.exports.page_graph import write_page_graph

ASSETS = Path(__file__).parents[1] / "sae_runtime" / "browser" / "assets"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A model</title><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'self' 'wasm-unsafe-eval';
 style-src 'self'; connect-src 'self'; img-src 'self' data:; worker-src 'self'">
<script type="module" src="code/start.js"></script></html>
"""
START = """import { PageModel } from "./model/page_model.js";
import { normalised, pooled } from "./model/pooling.js";
import { Stream } from "./model/streaming.js";
import { PageTokenizer, shown } from "./model/tokenize.js";
window.open_model = async (folder = "model") => {
  const told = await (await fetch(`${folder}/model.json`)).json();
  return new PageModel(told, folder);
};
window.tokenised = (told, about, lowers, texts) => {
  const tokenizer = new PageTokenizer(told, about, lowers);
  return texts.map((text) => {
    const tokens = tokenizer.encode(text);
    const { pieces, rest } = shown(text, tokens);
    return { ids: tokens.map((token) => token.id), special: tokens.map((token) => token.special),
             joined: pieces.map((piece) => piece.gap + piece.text).join("") + rest };
  });
};
window.streamed = (told, about, lists) => {
  const tokenizer = new PageTokenizer(told, about);
  return lists.map((ids) => {
    const stream = new Stream(tokenizer, told);
    return [...ids.map((id) => stream.push(id)), stream.end()];
  });
};
window.vector = (x, t, d, modes, prompt) => {
  const one = pooled(Float32Array.from(x), t, d, modes, prompt);
  return [[...one], [...normalised(one)]];
};
window.opened = async (folder = "model") => {
  window.model = await open_model(folder);
  window.progress = [];
  await model.load((one) => progress.push(one));
};
window.started = true;
"""


def model_page(folder: Path, model: Path, *, sentences: Sequence[str] = (), int8: bool = False) -> dict[str, Any]:
    """Write a page that can open a deployed model; gives model.json's object."""
    (folder / "code").mkdir(parents=True)
    shutil.copytree(ASSETS / "site" / "model", folder / "code" / "model")
    shutil.copytree(ASSETS / "vendor", folder / "vendor")
    (folder / "index.html").write_text(PAGE)
    (folder / "code" / "start.js").write_text(START)
    return write_model_part(
        load_model(model),
        folder / "model",
        write_graph=write_page_graph,
        saes={},
        sentences=list(sentences),
        int8=int8,
    )
