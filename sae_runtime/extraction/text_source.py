"""Texts as the source of an extraction: a deployed model's tokenizer and graph turn their documents into rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.parts import read_manifest, record
from sae_runtime.core.features import Features, concatenate
from sae_runtime.deployed.reading_features import Lowered
from sae_runtime.extraction.document_source import DocumentSource, facts_of_sae, facts_of_tokenizer
from sae_runtime.model import Model, load_model
from sae_runtime.text.tokenizer import Tokenizer
from sae_runtime.text.tokens import Tokens


class TextSource(DocumentSource):
    """Documents of files, whose tokens a deployed model reads.

    Args:
        model: a deployed model, or its path.
        texts: files and folders, as `activations.documents` reads them.
        sae: the SAE; None: the model's only one.
        settings: `reading`, `context`, `special`, `licence`, `keep_text` and `part` of `DocumentSource`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model has no such SAE, a setting cannot be used, or the texts are standard input.
    """

    def __init__(
        self, model: Model | str | Path, texts: Sequence[Path], *, sae: str | None = None, **settings: Any
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        self.sae = self.model.reads(sae)
        super().__init__(texts, self.model.window(), **settings)

    @property
    def tokenizer(self) -> Tokenizer:
        """As DocumentSource."""
        return self.model.tokenizer

    def read(self, windows: Sequence[Tokens], names: Sequence[object], lowered: Lowered | None = None) -> Features:
        """As DocumentSource; `lowered`: how features below the threshold are read."""
        sae = self.sae.name
        found = self.model.read([window.ids for window in windows], texts=names, sae=sae, lowered=lowered)
        return concatenate([one[sae] for one in found], self.sae.d_sae, (sum(map(len, windows)),))

    def _origin(self) -> dict[str, Any]:
        layout = self.model.layout
        graph, home = layout.features or layout.graph, layout.graph.parent
        manifest = read_manifest(self.sae.bundle) if self.sae.bundle is not None else None
        return {
            "model": (manifest and manifest.model) or home.resolve().name,
            **facts_of_sae(self.sae.name, self.sae.hook, self.sae.d_sae, manifest),
            "weights_sha256": self.sae.spliced.weights,
            "graph_sha256": record(graph).sha256,
            "host_sha256": {path.name: record(Path(path)).sha256 for path in sorted(check_external(graph))},
            "tokenizer_sha256": facts_of_tokenizer(layout.home),
        }
