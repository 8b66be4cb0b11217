"""The server as a process of its own, and its answers by the openai client."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sae_runtime.demo.chat.questions import TO_MEASURE

NAME = "smollm2"
GATE = "prompt"
TOKENS, TEMPERATURE, TOP_P = 80, 0.7, 0.9  # of every answer, plain or steered
_SECONDS = 900  # an answer among twenty on a busy machine


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Run `sae-runtime serve` on a free port of this machine; gives its address, and ends it by SIGTERM.

    Raises:
        ValueError: the server did not start.
    """
    command = [sys.executable, "-c", "from sae_runtime.cli import main; main()", "serve", f"{NAME}={model}"]
    options = ["--port", "0", "--max-answers", str(len(TO_MEASURE)), "--max-seconds", str(_SECONDS)]
    with log.open("a") as errors:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        address = next((line.split()[-1] for line in process.stdout if "http://" in line), None)
        if address is None:
            raise ValueError(f"the server did not start; {log} says why")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def client_of(address: str) -> Any:
    """An openai client of the server."""
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none", timeout=_SECONDS, max_retries=0)


def edit(feature: int | None, times: float) -> dict[str, Any]:
    """The `sae` object that adds a multiple of a feature's largest activation; None: no edit.

    >>> edit(187, 1.5)
    {'edits': [{'feature': 187, 'add': 'x1.5'}], 'gate': 'prompt'}
    """
    return {} if feature is None else {"edits": [{"feature": feature, "add": f"x{times:g}"}], "gate": GATE}


def completion(client: Any, question: str, seed: int, sae: dict[str, Any], tokens: int = TOKENS) -> Any:
    """The choice of an answer to a question."""
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": question}],
        max_completion_tokens=tokens,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=seed,
        extra_body={"sae": sae} if sae else {},
    )
    return answer.choices[0]


def answers(client: Any, questions: Sequence[str], sae: dict[str, Any]) -> list[str]:
    """The answers to questions, asked at once; a question's seed is its number."""
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = [pool.submit(completion, client, question, seed, sae) for seed, question in enumerate(questions)]
        return [one.result().message.content or "" for one in asked]
