"""The scripts and styles of the pages fit together: what a script imports is there, and nothing is left over."""

import re
from pathlib import Path

import pytest

import sae_runtime.browser
import sae_runtime.serve.http

SITE = Path(sae_runtime.browser.__file__).parent / "assets"
PAGE = Path(sae_runtime.serve.http.__file__).parent / "assets"
TEXTS = {
    path: path.read_text()
    for folder in (SITE / "site", SITE / "shared", PAGE)
    for path in sorted(folder.rglob("*.*"))
    if path.suffix in (".js", ".css", ".html")
}
SCRIPTS = {path: text for path, text in TEXTS.items() if path.suffix == ".js"}
EXPORTED = re.compile(r"^export (?:async )?(?:function\*?|const|class) ([\w$]+)", re.MULTILINE)
IMPORTED = re.compile(r'import \{([^}]*)\} from "([^"]*)"')
OF_PAGES = {"show", "change", "focusFirst"}  # what main.js calls of whichever page is shown
MADE = ("columns-", "of-")  # beginnings of classes that relatives.js puts together


def named(script: Path, address: str) -> Path:
    """The file of an import; `shared/` stands in the folder of scripts where they are served."""
    _, is_shared, name = address.partition("shared/")
    return SITE / "shared" / name if is_shared else (script.parent / address).resolve()


def imports() -> list[tuple[Path, str, Path]]:
    """Each name that a script imports from another one: the script, the name, the other script."""
    return [
        (script, name.strip(), named(script, address))
        for script, text in SCRIPTS.items()
        for names, address in IMPORTED.findall(text)
        if "vendor/" not in address
        for name in names.split(",")
    ]


def test_each_import_is_there_and_is_used() -> None:
    assert len(imports()) > 200
    for script, name, other in imports():
        assert name in EXPORTED.findall(SCRIPTS[other]), f"{script.name} imports {name} of {other.name}"
        assert len(re.findall(rf"(?<![\w$]){re.escape(name)}(?![\w$])", SCRIPTS[script])) > 1 or name == "$"


def test_each_export_is_imported() -> None:
    known = {(other, name) for _, name, other in imports()}
    tests = "".join(path.read_text() for path in (Path(__file__).parent / "chromium").glob("*.py"))
    tests += (Path(__file__).parents[1] / "model_pages.py").read_text()
    lazy = "".join(text for text in SCRIPTS.values() if "import(" in text)  # these load a script when they need it
    left = [
        f"{script.name} exports {name}"
        for script, text in SCRIPTS.items()
        for name in EXPORTED.findall(text)
        if (script, name) not in known and name not in OF_PAGES and not re.search(rf"\b{name}\b", tests + lazy)
    ]
    assert left == []


@pytest.mark.parametrize("style", [path for path in TEXTS if path.suffix == ".css"], ids=lambda path: path.name)
def test_each_class_of_a_style_is_given_to_something(style: Path) -> None:
    code = "".join(text for path, text in TEXTS.items() if path.suffix != ".css")
    rules = re.sub(r"/\*.*?\*/", "", TEXTS[style], flags=re.DOTALL)
    names = {name for rule in re.findall(r"([^{}]+)\{", rules) for name in re.findall(r"[.#]([A-Za-z][\w-]*)", rule)}
    assert names
    left = [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", code) and not name.startswith(MADE)]
    assert left == []
