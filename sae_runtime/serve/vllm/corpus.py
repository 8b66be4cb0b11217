"""Features of a corpus that vLLM's `LLM` reads, as the folder that `sae_runtime.extraction.extract` writes."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.bundle.parts import read_manifest, record
from sae_runtime.core.features import Features, concatenate
from sae_runtime.extraction import extract as extraction
from sae_runtime.extraction.document_source import DocumentSource, facts_of_sae
from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.part_rows import Pool
from sae_runtime.serve.vllm.host_files import folder_of, tokenizer_of, weights_of
from sae_runtime.serve.vllm.reading import features_of
from sae_runtime.serve.vllm.settings import Place, read_settings
from sae_runtime.text.tokenizer import Tokenizer
from sae_runtime.text.tokens import Tokens

_TOKENS = 1 << 14  # tokens whose features wait in the engine at once


def extract(
    llm: Any,
    texts: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    per: extraction.Per = "token",
    pool: Pool = "max",
    values: Values = "float24",
    force: bool = False,
    progress: bool = False,
    **settings: Any,
) -> extraction.Extracted:
    """Write the features of texts to a folder of parts. If an earlier run left it unfinished, this one finishes it.

    Args:
        llm: vLLM's LLM, with the key `sae` in its additional configuration.
        texts: files and folders.
        out: the folder.
        per: a row for each token, or for each document.
        pool: what a document's features are of those of its tokens: "max", "mean" or "sum".
        values: how values are rounded in the files, see `encodings.rounded`.
        force: start over in a folder of another extraction.
        progress: show the progress on stderr.
        settings: `sae`, `reading`, `context`, `special`, `licence`, `keep_text` and `part` of `CorpusSource`.

    Raises:
        FileExistsError: `out` holds files that are not of an extraction.
        FileNotFoundError: a file is missing.
        ImportError: pyarrow is not installed.
        ValueError: the LLM has no such SAE, a setting cannot be used, `out` was begun with another input, model or
            setting, the input cannot be read, or the model's activations are NaN or Inf.

    >>> llm = LLM("model", enforce_eager=True, additional_config={"sae": ...})  # doctest: +SKIP
    >>> extract(llm, "data", "features").tokens  # doctest: +SKIP
    543323
    """
    files = [Path(one) for one in ([texts] if isinstance(texts, Path | str) else texts)]
    extraction.check_out(Path(out), {"text": files})
    source = CorpusSource(llm, files, **settings)
    return extraction.extract(source, Path(out), per=per, pool=pool, values=values, force=force, progress=progress)


class CorpusSource(DocumentSource):
    """Documents of files, whose tokens vLLM's LLM reads. It does not pickle, so its extraction runs in one process.

    Args:
        llm: vLLM's LLM, with the key `sae` in its additional configuration.
        texts: files and folders, as `activations.documents` reads them.
        sae: the SAE; None: the LLM's only one.
        settings: `reading`, `context`, `special`, `licence`, `keep_text` and `part` of `DocumentSource`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the LLM has no such SAE, its files are not on this machine, or a setting cannot be used.
    """

    def __init__(self, llm: Any, texts: Sequence[Path], *, sae: str | None = None, **settings: Any) -> None:
        self.llm, self._config = llm, llm.llm_engine.vllm_config
        self.place, kept = _place(self._config, sae)
        self._manifest = read_manifest(Path(self.place.bundle))
        # A window has one token less than the model's context, since vLLM writes one token behind each prompt.
        super().__init__(texts, self._config.model_config.max_model_len - 1, **settings)
        if kept <= self.context:
            raise ValueError(
                f"a window has {self.context} tokens, and the engine keeps features of {kept}; raise "
                "limits.kept_tokens in additional_config.sae, or give a smaller context"
            )
        self._at_once = min(_TOKENS, kept - self.context)

    @property
    def tokenizer(self) -> Tokenizer:
        """As DocumentSource."""
        return self._tokenizer[0]

    def read(self, windows: Sequence[Tokens], names: Sequence[object]) -> Features:
        """As DocumentSource."""
        from vllm import SamplingParams

        # An answer has at least one token, and nothing reads it.
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, extra_args={"sae_features": "all"})
        found = list[Features]()
        ends = np.cumsum([len(window) + 1 for window in windows])
        for _, group in itertools.groupby(range(len(windows)), lambda number: (ends[number] - 1) // self._at_once):
            numbers = list(group)
            prompts = [{"prompt_token_ids": windows[number].ids.tolist()} for number in numbers]
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
            answers = features_of(self.llm, outputs, [names[number] for number in numbers])
            found += [one[0][self.place.name] for one in answers]
        return concatenate(found, self._manifest.architecture.d_sae, (sum(map(len, windows)),))

    @functools.cached_property
    def _tokenizer(self) -> tuple[Tokenizer, dict[str, str]]:
        return tokenizer_of(self.llm)

    def _origin(self) -> dict[str, Any]:
        model, manifest = self._config.model_config, self._manifest
        home = folder_of(model.model, model.revision, self._config.load_config.download_dir)
        return {
            "model": manifest.model or home.resolve().name,
            **facts_of_sae(self.place.name, self.place.hook, manifest.architecture.d_sae, manifest),
            "weights_sha256": manifest.files[WEIGHTS].sha256,
            "host_sha256": {path.name: record(path).sha256 for path in weights_of(home)},
            "tokenizer_sha256": self._tokenizer[1],
            "engine": {
                "name": "vllm",
                "dtype": str(model.dtype).removeprefix("torch."),
                "quantization": model.quantization,
                "kv_cache_dtype": self._config.cache_config.cache_dtype,
            },
        }


def _place(config: Any, sae: str | None) -> tuple[Place, int]:
    """The SAE of a name, and the number of tokens whose features the engine keeps, of all SAEs."""
    settings = read_settings(config.additional_config)
    if settings is None:
        raise ValueError('this LLM has no SAE; make it with additional_config={"sae": {"saes": [{"bundle": PATH}]}}')
    places = {place.name: place for place in settings.saes}
    if sae is None and len(places) > 1:
        raise ValueError(f"this LLM has the SAEs {', '.join(places)}; name one of them")
    if sae is not None and sae not in places:
        raise ValueError(f"this LLM has no SAE {sae!r}; it has {', '.join(places)}")
    return next(iter(places.values())) if sae is None else places[sae], settings.limits.kept_tokens // len(places)
