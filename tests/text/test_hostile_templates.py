"""A chat template is a stranger's program: what it may not do ends with one sentence, by counting, not by a clock."""

import threading
from pathlib import Path

import pytest
from chat_templates import HOSTILE

from sae_runtime.text import chat_template
from sae_runtime.text.chat_template import ChatTemplates

MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str, count: int = 1) -> str:
    return ChatTemplates(Path("model"), {"default": source}, {}).render(MESSAGES * count)


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what a template may spend, which shortens the tests."""
    monkeypatch.setattr("sae_runtime.text.budget.STEPS", 200_000)
    monkeypatch.setattr("sae_runtime.text.budget.CHARACTERS", 2_000_000)


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_refused_with_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match="^the chat template in model fails [(].*[)]; give a prompt as text") as raised:
        render(HOSTILE[name])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_template_may_be_long_and_a_talk_too() -> None:
    body = "{% if message.role == 'system' %}no{% endif %}" * 200 + "{{ message.content|trim }}"
    assert render("{% for message in messages %}" + body + "{% endfor %}", 300) == "Hi" * 300
    assert len(render("{% for message in messages %}{{ 'a' * 1000 }}{% endfor %}", 300)) == 300_000


@pytest.mark.usefixtures("small_budget")
def test_threads_do_not_share_a_budget() -> None:
    source = "{% for i in range(3000) %}{{ messages[0].content|upper }}{% endfor %}"
    told: list[str] = []

    def one(number: int) -> None:
        try:
            told.append(render(HOSTILE["loops"] if number % 2 else source))
        except ValueError as error:
            told.append(str(error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told).count("HI" * 3000) == 3
    assert sum("too many steps" in one for one in told) == 3


def test_message_of_an_error_is_printable() -> None:
    with pytest.raises(ValueError, match=r"x1b\[2J"):
        render("{{ raise_exception('\x1b[2J\nabc') }}")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "messages must be a list such as"),
        ([], "messages must be a list such as"),
        ({"role": "user", "content": "Hi"}, "messages must be a list such as"),
        (None, "messages must be a list such as"),
        (["Hi"], 'message 0 must have a "role"'),
        ([{"content": "Hi"}], 'message 0 must have a "role"'),
        ([*MESSAGES, {"role": 3, "content": "Hi"}], 'message 1 must have a "role"'),
        ([{"role": "user"}], 'message 0 has no "content"'),
        ([{"role": "user", "content": None}], 'message 0 has no "content"'),
        ([{"role": "user", "content": 3}], "the content of message 0 must be text, got 3"),
        ([{"role": "user", "content": b"Hi"}], "message 0 holds a bytes"),
        ([{"role": "user", "content": "Hi", "x": object()}], "message 0 holds a object"),
    ],
)
def test_messages_of_another_form(messages: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChatTemplates(Path("model"), {"default": "x"}, {}).render(messages)  # type: ignore[arg-type] # not messages


def test_a_message_that_holds_itself() -> None:
    message: dict[str, object] = {"role": "user", "content": "Hi"}
    message["self"] = message
    with pytest.raises(ValueError, match="inside one another"):
        ChatTemplates(Path("model"), {"default": "x"}, {}).render([message])


def test_a_setting_that_templates_do_not_take() -> None:
    with pytest.raises(ValueError, match="continue_final_message"):
        ChatTemplates(Path("model"), {"default": "x"}, {}).render(MESSAGES, continue_final_message=True)
    with pytest.raises(ValueError, match="a setting of the chat template holds a function"):
        ChatTemplates(Path("model"), {"default": "x"}, {}).render(MESSAGES, tools=[test_a_message_that_holds_itself])


def test_no_template_and_none_of_that_name() -> None:
    with pytest.raises(ValueError, match="model has no chat template; give a prompt as text, or put"):
        ChatTemplates(Path("model"), {}, {}).render(MESSAGES)
    with pytest.raises(ValueError, match="has the chat templates rag, got 'default'"):
        ChatTemplates(Path("model"), {"rag": "x"}, {}).render(MESSAGES)
    assert ChatTemplates(Path("model"), {"rag": "x"}, {}).render(MESSAGES, template="rag") == "x"


def test_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_template._require_jinja.cache_clear()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.1.4")
    with pytest.raises(ImportError, match="jinja2 3.1.4 is too old, 3.1.6 is the oldest"):
        render("x")
