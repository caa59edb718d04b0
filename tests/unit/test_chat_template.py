"""Chat templates: found where tokenizers keep them, and run in a sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prosparse_export.artifact.chat_template import ChatTemplate, ChatTemplateError, read_chat_template

TALK = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "é"}]
SOURCE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def write(folder: Path, **settings: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, **settings}))
    return folder


def rendered(source: str, **values: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, Path("t.jinja")).render(TALK, **values)


def test_a_conversation() -> None:
    assert rendered(SOURCE) == "<s>user: Hi <b>\nassistant: é\n"


def test_a_template_in_its_own_file_comes_first(tmp_path: Path) -> None:
    write(tmp_path, chat_template="old")
    assert read_chat_template(tmp_path).render([]) == "old"  # type: ignore[union-attr]
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}new")
    assert read_chat_template(tmp_path).render([]) == "<s>new"  # type: ignore[union-attr]
    (tmp_path / "mine").write_text("mine")
    assert read_chat_template(tmp_path, tmp_path / "mine").render([]) == "mine"  # type: ignore[union-attr]


def test_a_list_of_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    write(tmp_path, chat_template=named)
    assert read_chat_template(tmp_path).render([]) == "plain"  # type: ignore[union-attr]
    tools = read_chat_template(tmp_path, name="tool_use")
    assert tools is not None
    assert tools.render([], tools=[{"name": "é<"}]) == '[{"name": "é<"}]'


def test_no_template(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    with pytest.raises(ChatTemplateError, match="no such file"):
        read_chat_template(tmp_path, tmp_path / "missing")


def test_what_templates_of_transformers_use() -> None:
    assert rendered("{% generation %}{{ messages | length }}{% endgeneration %}") == "2"
    assert rendered("{% for m in messages %}{% break %}{{ m }}{% endfor %}-") == "-"
    assert (
        rendered("{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}{{ thinking }}", thinking=1) == "4True1"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'a' %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ (1).__init__.__globals__ }}", "unsafe"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_failures_and_escapes(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message) as caught:
        rendered(source)
    assert "--chat-template" in (caught.value.hint or "")
