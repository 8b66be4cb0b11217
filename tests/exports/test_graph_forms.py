from pathlib import Path

from sae_runtime.bundle import contract
from sae_runtime.exports.forms import forms


def test_the_list_of_forms_has_all_that_the_exporter_writes() -> None:
    listed = Path(contract.__file__).with_name(contract.FORMS).read_text().splitlines()
    assert listed == sorted(set(listed))
    missing = set(forms()) - set(listed)
    assert not missing, "run: python -m sae_runtime.exports.forms"
