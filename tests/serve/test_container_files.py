"""The Dockerfile and the yaml of docs/guides/serving.md name what is there."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sae_runtime.cli.serve import command

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.prefix) / "hadolint" / "bin" / "hadolint"
BLOCKS = [
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/guides/serving.md").read_text(), re.S)
]


def test_the_dockerfile_installs_extras_and_starts_a_command_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    assert set(asked.split(",")) <= set(extras) and "gpu" in extras
    [words] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    started = yaml.safe_load(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert started[:2] == ["sae-runtime", "serve"] and set(started[2::2]) <= known
    assert re.search(r"^USER [1-9]", DOCKERFILE, re.M)
    for copied in re.findall(r"^COPY ([^-.]\S*) ", DOCKERFILE, re.M):
        assert (ROOT / copied).exists()


@pytest.mark.servers
@pytest.mark.skipif(not HADOLINT.is_file(), reason="make dockerfile installs it")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_yaml_of_the_documents_names_what_is_there() -> None:
    service, applications = BLOCKS
    [container] = service["spec"]["predictor"]["containers"]
    assert service["kind"] == "InferenceService" and container["name"] == "kserve-container"
    assert all("=" in word for word in container["args"])
    [application] = applications["applications"]
    module, _, name = application["import_path"].partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    source = Path(found.origin).read_text()
    assert f"def {name}(" in source
    assert all(f'"{argument}"' in source for argument in application["args"])
