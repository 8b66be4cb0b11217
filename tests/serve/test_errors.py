"""What callers are told of errors, and what the server's log keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_runtime.bundle.folder import BundleError
from sae_runtime.engine.sessions import RunError
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Full, Invalid, TooLarge
from sae_runtime.serve.refusal import refusal


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RunError("onnxruntime could not run /srv/secret/model.onnx (Gather)"), Invalid),
        (BundleError("/srv/secret/sae has other bytes"), Full),
        (OSError(2, "No such file", "/srv/secret/labels.jsonl"), Full),
        (MemoryError("/srv/secret/model.onnx: give fewer tokens at once"), TooLarge),
        (KeyError("secret"), Full),
    ],
)
def test_what_fails_on_the_servers_side_goes_to_its_log_alone(
    error: Exception, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    told = refusal(error)
    assert type(told) is kind and "secret" not in str(told)
    assert "secret" in caplog.text and refusal(told) is told


def test_a_sentence_about_a_request_names_what_is_served_instead_of_its_folder(
    bundle_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of("mutual")
    link = tmp_path / "a link"
    link.symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    for one in open_all(["wine=a link"]):
        one.close()
    for folder in (link, bundle.resolve()):
        told = str(refusal(ValueError(f"{folder}/labels.jsonl: line 1 is none; {folder} has no template, '{folder}'")))
        assert told == "wine/labels.jsonl: line 1 is none; wine has no template, 'wine'"
    assert str(refusal(ValueError(f"{link}s is another"))) == f"{link}s is another"
