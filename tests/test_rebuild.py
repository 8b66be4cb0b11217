"""load(rebuild=True) serves the weights, whatever a stranger's graphs compute."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_weights, make_x, slots_of, with_b_pre
from hostile_graphs import hostile
from resealed import changed

from sae_runtime import SAE, load
from sae_runtime.bundle import extras, folder
from sae_runtime.bundle.folder import DERIVED, WEIGHTS, BundleChanged, BundleError
from sae_runtime.exports import witness
from sae_runtime.rebuild import rebuilt


def assert_serves_its_weights(sae: SAE, kind: str) -> None:
    x, weights = make_x(7), with_b_pre(make_weights(sae.d_sae, kind))
    z = witness.pre_activations(weights, x)
    expected = witness.served(sae.manifest.architecture, weights, z)
    assert witness.disagreement(expected, *slots_of(sae.encode(x))) is None


@pytest.fixture
def stranger(copy_of: Callable[..., Path]) -> Path:
    """A bundle with a bomb as its graph and nonsense in its derived weights, in a folder that nobody may write."""
    path = copy_of("feature")
    changed(path, "encode.onnx", lambda graph: hostile(graph, "concatenations that double"))
    changed(path, DERIVED, lambda data: data[:-8] + bytes(8))
    return path


def test_a_strangers_bundle_serves_its_weights(stranger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with pytest.raises(BundleError, match="load with rebuild=True"):
        load(stranger)
    before = {file.name: file.read_bytes() for file in stranger.iterdir()}
    stranger.chmod(0o555)
    sae = load(stranger, rebuild=True)
    assert_serves_its_weights(sae, "feature")
    stranger.chmod(0o755)
    assert {file.name: file.read_bytes() for file in stranger.iterdir()} == before
    for other in (pickle.loads(pickle.dumps(sae)), copy.deepcopy(sae)):
        assert_serves_its_weights(other, "feature")
        assert other._bundle.path != sae._bundle.path
        del other
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    private = sae._bundle.path
    assert private.stat().st_mode & 0o77 == 0
    if (child := os.fork()) == 0:
        code = 1
        try:
            assert_serves_its_weights(sae, "feature")
            code = 0
            del sae
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and private.exists()
    assert_serves_its_weights(sae, "feature")
    del sae
    assert not list((tmp_path / "temporary").iterdir())


def test_a_rebuilt_sae_does_not_arrive_at_other_weights(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    packed = pickle.dumps(load(path, rebuild=True))
    changed(path, WEIGHTS, lambda data: data[:-4] + np.float32(0.5).tobytes())
    with pytest.raises(BundleError, match="changed since it was loaded; load it again"):
        pickle.loads(packed)
    shutil.rmtree(path)
    with pytest.raises(BundleError, match="does not exist"):
        pickle.loads(packed)


def test_a_bundle_that_changes_before_it_is_copied_is_refused(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    read = folder.read(path, verify=False)
    changed(path, WEIGHTS, lambda data: data[:-4] + bytes(4))
    with pytest.raises(BundleChanged, match="changed since it was loaded; load it again"):
        rebuilt(read, verify=False)


def test_the_private_folder_goes_away_with_the_process(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    code = f"""if True:
        import atexit, os
        from sae_runtime import load
        sae = load({str(copy_of("mutual"))!r}, rebuild=True)
        if os.fork() == 0:
            atexit._run_exitfuncs()
            os._exit(0)
        os.wait()
        print(sum(name.startswith("sae-runtime-") for name in os.listdir({str(tmp_path / "temporary")!r})))
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and not list((tmp_path / "temporary").glob("sae-runtime-*"))


def test_rebuilding_needs_the_extra(copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("mutual")
    monkeypatch.setitem(extras._MODULES, "export", ("no_such_module",))
    with pytest.raises(ImportError, match=r"no_such_module not installed; run: pip install 'sae-runtime\[export\]'"):
        load(path, rebuild=True)
