"""The page in a real browser: hostile labels, texts and answers stay text, and each control does what it says.

A script of the test clicks as a person does, and writes what it saw into the page, which the browser then prints.
"""

import base64
import json
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sae_runtime.serve.http import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

EVIL = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script></li>\"&amp;\u202e"
KEY = "a key"
DRIVER = """
const wait = async (ready) => {
  for (let i = 0; i < 200 && !ready(); i++) await new Promise((go) => setTimeout(go, 20));
};
const byId = (id) => document.getElementById(id);
const press = (element, key, more = {}) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
(async () => {
  const seen = {};
  await wait(() => !byId("key-form").hidden);
  seen.asked = byId("state").textContent;
  byId("key").value = "a key";
  byId("key-form").requestSubmit();
  await wait(() => byId("loaded").rows.length > 1);
  seen.loaded = byId("loaded").textContent;
  seen.options = [...byId("model").options].map((one) => one.textContent);
  byId("text").value = TEXT;
  press(byId("text"), "Enter", { ctrlKey: true });
  await wait(() => byId("tokens").querySelector("[role=option]"));
  seen.tokens = byId("tokens").textContent;
  seen.title = byId("token-title").textContent;
  press(byId("tokens"), "ArrowRight");
  seen.next = byId("token-title").textContent;
  seen.focused = document.activeElement.getAttribute("role");
  seen.features = byId("features").textContent;
  byId("features").querySelector("button").click();
  await wait(() => !byId("compared").hidden);
  seen.before = byId("before").textContent;
  seen.after = byId("after").textContent;
  const slider = byId("edits").querySelector("[type=range]");
  slider.value = 3.5;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  seen.value = byId("edits").querySelector("[type=number]").value;
  const tabs = [...document.querySelectorAll("[role=tab]")], code = document.querySelector("pre.code");
  for (const tab of tabs) {
    tab.click();
    seen[tab.textContent] = code.textContent;
  }
  byId("called").selectedIndex = 2;
  byId("called").dispatchEvent(new Event("change"));
  tabs[1].click();
  seen.bundle = code.textContent;
  byId("model").selectedIndex = 1;
  byId("model").dispatchEvent(new Event("change"));
  seen.edits = byId("edits").children.length;
  byId("feature").value = EVIL;
  byId("add").click();
  byId("compare").click();
  await wait(() => byId("after").textContent.includes("end"));
  seen.written = byId("after").textContent;
  byId("model").selectedIndex = 0;
  byId("model").dispatchEvent(new Event("change"));
  byId("text").value = "fail";
  byId("read").click();
  await wait(() => byId("read-error").textContent);
  seen.error = byId("read-error").textContent;
  seen.pwned = String(window.pwned);
  seen.made = document.querySelectorAll("img, iframe, object, li script, td script, [onerror]").length;
  const coded = btoa(encodeURIComponent(JSON.stringify(seen)));
  document.body.replaceChildren(document.createTextNode(`SEEN${coded}END`));
})();
"""


def sae(name: str) -> dict[str, Any]:
    figures = {"tokens": 900, "l0": 40.0, "explained_variance": 0.1, "saturated": 0.0, "silent": 0, "sampled": 900}
    return {
        "name": name,
        "hook": EVIL,
        "rule": None,
        "d_in": 8,
        "d_sae": 99,
        "edits": True,
        "multiples": True,
        "labels": 3,
        "recent": figures,
        "expected": {**figures, "l0": 16.0},
        "totals": figures,
    }


def model(name: str, kind: str) -> dict[str, Any]:
    operations = ["encode"] if kind == "bundle" else ["features", "run"]
    return {"name": name, "version": "1", "kind": kind, "operations": operations, "saes": [sae(EVIL)]}


@pytest.fixture
def asked() -> list[Any]:
    return []


@pytest.fixture
def address(asked: list[Any]) -> Iterator[str]:
    parts = {route.path: route for route in page.routes(None)}  # type: ignore[arg-type]  # its models are not asked
    script = f"const TEXT = {json.dumps(EVIL + ' w1')}, EVIL = {json.dumps(EVIL)};\n{DRIVER}"

    async def index(request: Request) -> Response:
        answer = await parts["/"].endpoint(request)
        content = answer.body.replace(b"</head>", b'<script src="/driver.js" defer></script></head>')
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return Response(content, headers=headers)

    async def driver(request: Request) -> Response:
        return Response(script, media_type="text/javascript")

    def known(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {KEY}"

    async def models(request: Request) -> Response:
        if not known(request):
            return JSONResponse({"error": "this server asks for a key"}, 401)
        return JSONResponse({"models": [model("vectors", "vectors"), model("writer", "text"), model("rows", "bundle")]})

    async def features(request: Request) -> Response:
        given = await request.json()
        assert known(request)
        if given["input"] == ["fail"]:
            return JSONResponse({"error": {"message": EVIL}}, 400)
        text = given["input"][0]
        active = [
            {"sae": EVIL, "feature": 7, "value": 2.5, "label": EVIL},
            {"sae": "other", "feature": 8, "value": 9.0},
        ]
        places = [(0, 0, True), (0, 5, False), (5, len(text), False)]
        tokens = [{"token": EVIL, "start": a, "end": b, "special": s, "features": active} for a, b, s in places]
        return JSONResponse({"data": [{"tokens": tokens}]})

    async def embeddings(request: Request) -> Response:
        given = await request.json()
        asked.append(given)
        turned = [[0.0, 1.0]] if "sae" in given else [[1.0, 0.0]]
        others = [[1.0, 0.1 * number] for number in range(len(given["input"]) - 1)]
        return JSONResponse({"data": [{"embedding": one} for one in turned + others]})

    async def chat(request: Request) -> Response:
        given = await request.json()
        asked.append(given)
        events = [{"choices": [{"delta": {"content": text}}]} for text in (EVIL, " end")]
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return Response(lines, media_type="text/event-stream")

    routes = [Route("/", index), Route("/driver.js", driver), Route("/page/models", models)]
    routes += [part for path, part in parts.items() if path not in ("/", "/page/models")]
    for path, post in (("/v1/features", features), ("/v1/embeddings", embeddings), ("/v1/chat/completions", chat)):
        routes.append(Route(path, post, methods=["POST"]))
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_level="error"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    socket.close()


def seen_by(address: str, home: Path) -> dict[str, Any]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}", "--dump-dom"]
    done = subprocess.run([*command, "--virtual-time-budget=30000", address], capture_output=True, timeout=120)
    printed = done.stdout.decode()
    assert "SEEN" in printed, printed[:2000] + done.stderr.decode()[-2000:]
    coded = printed.partition("SEEN")[2].partition("END")[0]
    seen: dict[str, Any] = json.loads(urllib.parse.unquote(base64.b64decode(coded).decode()))
    return seen


def test_a_person_on_the_page(address: str, asked: list[Any], tmp_path: Path) -> None:
    seen = seen_by(address, tmp_path)
    shown = EVIL.replace("\u202e", "\\u202e")
    assert seen["pwned"] == "undefined" and seen["made"] == 0
    assert seen["asked"] == "This server asks for a key."
    assert seen["options"] == ["vectors", "writer"], "a bundle reads no text"
    assert "rows" in seen["bundle"] and "vectors" not in seen["bundle"], "but it can be called"
    assert shown in seen["loaded"] and "40" in seen["loaded"]
    assert seen["tokens"] == shown + (EVIL + " w1").replace("\u202e", "\\u202e")
    assert seen["title"] == f"“{EVIL[:5]}”" and seen["next"].startswith(f"“{EVIL[5:9]}")
    assert seen["focused"] == "option"
    assert seen["features"].startswith(f"7{shown}2.50") and "9.00" not in seen["features"]
    assert seen["before"] != seen["after"] and "Read the document" in seen["before"]
    assert seen["value"] == "3.5"
    for program in ("curl", "Python", "tritonclient", "openai"):
        assert "\u202e" not in seen[program] and "vectors" in seen[program] and "key" in seen[program].lower()
    assert seen["edits"] == 0, "another model begins without edits"
    assert seen["written"] == f"{shown} end"
    assert seen["error"] == shown
    steered = [one["sae"] for one in asked if "sae" in one]
    assert steered[0] == {"edits": [{"feature": 7, "set": "x2"}]}
    assert steered[-1] == {"edits": [{"feature": EVIL, "set": "x2"}]}
    assert {one["temperature"] for one in asked if "messages" in one} == {0}
    compile(seen["bundle"], "Python of a bundle", "exec")
    for program in ("Python", "tritonclient", "openai"):
        compile(seen[program], program, "exec")
