"""The programs that the site offers do what it says: they run, and hold every text as it is."""

import ast
import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy
from made_site import feature, write_json, write_site
from running import running
from watched_pages import Pages, until

from sae_runtime import Edit, load_model
from sae_runtime.exports.splice.splicing import Splice
from sae_runtime.serve.plane import Plane

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sae_runtime.deployed.notices.AssumedPoolingWarning"),
]
HOSTILE = [
    "plain",
    'it\'s "so" $HOME `ls` $(ls) !! \\ \\\' \\" \\u0041',
    "'; touch pwned; echo '",
    '"""\nimport os\n"""',
    "a\nb\r\nc\td\0e",
    "\u202eabc\u2066\u200b\ufeff\u2028\u2029\x85\xa0\xad",
    "é 文件 👩‍👩‍👧 \U000e0041",
    "# --data @/etc/passwd -d",
    "{{ }} %s %(a)s {0} $'\\x41'",
    "</script><!--",
]
MODULE = """(calls) => import("./code/shared/programs.js").then(({ pythonOf, curlOf, openaiOf }) =>
  calls.map((call) => [pythonOf(call), curlOf(call), openaiOf(call)]))"""
EDITS = [
    {"sae": "a'b", "feature": 3, "kind": "set", "value": 60, "label": "x\ny '\"\u202e"},
    {"sae": "a'b", "feature": 4, "kind": "ablate", "value": 0, "label": None},
    {"sae": "c", "feature": 5, "kind": "scale", "value": 0.5, "label": "import os"},
    {"sae": "c", "feature": 6, "kind": "add", "value": "x1.50"},
    {"sae": "c", "feature": 7, "kind": "cap", "value": -1.5e-7},
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [feature(number, max=30.0) for number in range(D_SAE)]
    return write_site(tmp_path_factory.mktemp("calls") / "site", {"mine": rows, "other": rows})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    made, bundle = tmp_path_factory.mktemp("models"), bundle_of("mutual", D_SAE, 4)
    deploy(made / "reader", "bert", {"bundle": bundle})
    deploy(made / "writer", "gpt2", {"bundle": bundle})
    hooks = ("encoder.layer.0", "encoder.layer.1")
    deploy(made / "two", "bert", [Splice(bundle=bundle, hook=hook, name=f"s{n}") for n, hook in enumerate(hooks)])
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with running(Plane.open([f"{name}={folder / name}" for name in ("reader", "writer", "two")])) as given:
        yield given


def call_of(**given: Any) -> dict[str, Any]:
    call: dict[str, Any] = {"kind": "vectors", "model": "reader", "origin": "http://127.0.0.1:1", "key": False}
    call |= {"chat": True, "text": "w1 w2", "tokens": 5, "several": False, "feature": None, "edits": []}
    return call | given


def texts_of(code: str) -> list[str]:
    """Every text that a Python program holds."""
    return [one.value for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Constant) and type(one.value) is str]


def bodies_of(commands: str) -> list[Any]:
    """The JSON that each curl of some commands sends, as bash reads the commands."""
    script = "curl() { printf '%s\\0' \"$@\"; printf '\\1\\0'; }\nKEY=key\n" + commands
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stderr == b""
    calls = [one.split("\0")[:-1] for one in done.stdout.decode().split("\1\0")[:-1]]
    assert [word for one in calls for word in one] == [word for word in words_of(commands)]
    return [json.loads(one[one.index("-d") + 1]) for one in calls]


def words_of(commands: str) -> list[str]:
    """The words of curl commands without `curl`, as the shell's grammar of Python has them."""
    words = shlex.split(commands.replace("\\\n", " "))
    return [word.replace("$KEY", "key") for word in words if word != "curl"]


def test_every_text_arrives_as_it_is(open_page: Pages, site: Path) -> None:
    page = open_page(site)
    kinds = [
        {"kind": kind, "chat": chat}
        for kind, chat in (("vectors", True), ("text", True), ("text", False), ("other", True))
    ]
    many = [
        call_of(text=text, model=f"m {text[:9]}", key=key, several=True, edits=edits, feature=read, **kind)
        for text in HOSTILE
        for kind in kinds
        for key, edits, read in ((True, EDITS, {"sae": "c", "feature": 3}), (False, [], None), (False, EDITS, None))
    ]
    for call, (python, curl, openai) in zip(many, page.evaluate(MODULE, many), strict=True):
        compile(python, "python", "exec")
        assert {call["text"], call["model"]} <= set(texts_of(python))
        bodies = bodies_of(curl)
        assert call["text"] in json.dumps(bodies[-1], ensure_ascii=False) or call["text"] in _leaves(bodies[-1])
        asked = texts_of(openai)
        assert call["text"] in asked and call["model"] in asked
        if call["edits"] and call["kind"] != "other":
            assert [one["feature"] for one in bodies[-1]["sae"]["edits"]] == [3, 4, 5, 6, 7]
            assert bodies[-1]["sae"]["edits"][3] == {"feature": 6, "add": "x1.50", "sae": "c"}
        for code in (python, curl, openai):
            assert not set(code) & set("\u202e\u2066\u200b\ufeff\u2028\0\r"), "signs that do not show are written out"


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for one in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(one)]
    return [value]


@pytest.mark.parametrize("text", ["w1 w2 w3", 'it\'s "w1" \\ w2'])
@pytest.mark.parametrize("model", ["reader", "two"])
def test_python_of_vectors_runs(
    open_page: Pages, site: Path, folder: Path, model: str, text: str, monkeypatch: Any, capsys: Any
) -> None:
    names = ["s0", "s1"] if model == "two" else ["sae", "sae"]
    edits = [
        {"sae": names[0], "feature": 3, "kind": "set", "value": 60, "label": "a\nb"},
        {"sae": names[1], "feature": 7, "kind": "ablate", "value": 0, "label": None},
    ]
    call = call_of(model=model, text=text, several=model == "two", edits=edits, feature={"sae": names[0], "feature": 3})
    ((python, _, _),) = open_page(site).evaluate(MODULE, [call])
    monkeypatch.chdir(folder)
    found = run(python, capsys)
    opened, own = load_model(folder / model), [Edit.set(3, 60.0), Edit.ablate(7)]
    asked = {"s0": own[:1], "s1": own[1:]} if model == "two" else own
    assert float(found[-1]) == pytest.approx(float(opened.embed(text) @ opened.embed(text, asked)), rel=1e-4)
    seen = opened.features(text)
    assert [line.split()[0] for line in found[:-1]] == seen.tokens


def run(code: str, capsys: Any) -> list[str]:
    """The lines that a program prints."""
    exec(compile(code, "program", "exec"), {"__name__": "program"})
    printed: str = capsys.readouterr().out
    return printed.strip().split("\n")


def test_python_of_answers_runs(open_page: Pages, site: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    edits = [{"sae": "sae", "feature": 3, "kind": "set", "value": 60}]
    call = call_of(kind="text", chat=False, model="writer", text="w5 w6", edits=edits)
    ((python, _, _),) = open_page(site).evaluate(MODULE, [call])
    monkeypatch.chdir(folder)
    answer = load_model(folder / "writer").generate("w5 w6", Edit.set(3, 60.0), max_new_tokens=5)
    list(answer)
    assert " ".join(run(python, capsys)).split() == answer.text.split()


def test_programs_against_a_server_run(open_page: Pages, site: Path, folder: Path, address: str, capsys: Any) -> None:
    edits = [{"sae": "sae", "feature": 3, "kind": "set", "value": 60}]
    common = {"origin": address, "edits": edits}
    seen = load_model(folder / "reader").features([f"w{number}" for number in range(40)])
    most = max(seen, key=lambda one: len(one.features.row(1)[0]))
    numbers, values = most.features.row(1)
    weakest = int(numbers[values.argmin()])  # one that is asked for need not be among the strongest
    calls = [
        call_of(text="it's w1", **common),
        call_of(kind="text", chat=False, model="writer", text="w5 w6", **common),
        call_of(kind="other", model="reader", **common),
        call_of(origin=address, text=most.text, feature={"sae": "sae", "feature": weakest}),
    ]
    answer = load_model(folder / "writer").generate("w5 w6", Edit.set(3, 60.0), max_new_tokens=5)
    list(answer)
    programs = open_page(site).evaluate(MODULE, calls)
    told = [run(openai, capsys) for _, _, openai in programs]
    assert int(told[0][0]) == load_model(folder / "reader").embed("w1").shape[-1]
    assert " ".join(told[1]).split() == answer.text.split()
    word, value = told[3][1].split()
    assert word == most.text and float(value.strip("[]")) == pytest.approx(values.min(), rel=1e-4) and len(values) > 5
    answers = [asked_by_curl(curl) for _, curl, _ in programs]
    vector = load_model(folder / "reader").embed("it's w1", Edit.set(3, 60.0))
    np.testing.assert_allclose(answers[0]["data"][0]["embedding"], vector, atol=1e-4)
    assert answers[1]["choices"][0]["text"].split() == answer.text.split()
    assert "outputs" in answers[2] and answers[3]["data"][0]["tokens"][1]["token"] == most.text


def asked_by_curl(command: str) -> Any:
    """The answer to a command, given by bash and curl where they are, and by httpx as curl would ask else."""
    import httpx

    words = words_of(command)
    done = httpx.post(words[0], content=words[words.index("-d") + 1].encode(), timeout=60)
    assert done.status_code == 200, done.text
    return done.json()


def test_feature_page_reads_and_sets_its_feature(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/mine/5")
    until(page, "() => document.querySelector('.call .programs pre')")
    python = page.inner_text(".call .programs pre")
    assert "values[active == 5]" in python and "Edit.set(5, " in python
    compile(python, "python", "exec")
    for tab in ("curl", "openai"):
        page.get_by_role("tab", name=tab).click()
        assert '"feature' in page.inner_text(".call .programs pre")
    page.get_by_role("tab", name="openai").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="curl").get_attribute("aria-selected") == "true"
    assert page.url.endswith("#/mine/5"), "the arrows of the tabs lead to no other feature"
    page.get_by_role("button", name="Copy", exact=True).click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.inner_text(".call .programs pre")
    page.evaluate("location.hash = '#/other/6'")
    until(page, "() => document.querySelector('.call .programs pre')?.textContent.includes('curl')")
    assert page.get_by_role("tab", name="curl").get_attribute("aria-selected") == "true", "the choice stays"


def test_names_of_saes_are_those_of_the_model(open_page: Pages, site: Path, tmp_path: Path) -> None:
    rows = [feature(number) for number in range(9)]
    folder = write_site(tmp_path / "site", {"mine": rows, "other": rows}, model="model/model.json")
    saes = [{"name": f"in {name}", "site": name, "d_sae": 9, "edits": True} for name in ("mine", "other")]
    write_json(folder / "model/model.json", {"name": "the model", "kind": "vectors", "bytes": 1, "saes": saes})
    page = open_page(folder, "#/mine/try?text=a&edits=set:1:2,set:1:3@other")
    until(page, "() => document.querySelector('.programs pre')?.textContent.includes('in other')")
    python = page.inner_text(".programs pre")
    assert 'load_model("the model")' in python
    (made,) = [one for one in ast.walk(ast.parse(python)) if isinstance(one, ast.Dict)]
    assert [ast.literal_eval(key) for key in made.keys if key is not None] == ["in mine", "in other"]
