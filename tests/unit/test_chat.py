"""A conversation on the demo model, against prompts computed from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from support.server import TEMPLATE

from prosparse_export import ProSparseError
from prosparse_export.artifact.chat_template import ChatTemplate
from prosparse_export.cli import main
from prosparse_export.runtime.chat import Chat
from prosparse_export.runtime.model import SparseModel, load
from prosparse_export.runtime.sampling import GREEDY


@pytest.fixture(scope="module")
def model(demo_artifact: Path) -> SparseModel:
    (demo_artifact.parent / "chat_template.jinja").write_text(TEMPLATE)
    return load(demo_artifact, threads=1)


@pytest.fixture
def chat(model: SparseModel) -> Chat:
    return Chat(model, ChatTemplate(TEMPLATE, {"bos_token": "<s>"}, Path("t")), GREEDY, 12, "Be brief.")


def expected(model: SparseModel, prompt: str) -> str:
    return "".join(model.stream_text(prompt, max_new_tokens=12, special_tokens=False))


def test_a_reply_sees_the_conversation(model: SparseModel, chat: Chat) -> None:
    prompt = "<s>Be brief.\nThe city of Paris\n"
    first = "".join(chat.reply("The city of Paris"))
    assert first == expected(model, prompt)
    tokens = chat.tokens
    second = "".join(chat.reply("And the river"))
    assert second == expected(model, f"{prompt}{first}\nAnd the river\n")
    assert chat.tokens > tokens


def test_a_stopped_reply_is_what_was_seen(model: SparseModel, chat: Chat) -> None:
    pieces = chat.reply("The city of Paris")
    seen = "".join(next(pieces) for _ in range(4))
    pieces.close()  # type: ignore[attr-defined]
    second = "".join(chat.reply("Water"))
    assert second == expected(model, f"<s>Be brief.\nThe city of Paris\n{seen}\nWater\n")


def test_reset(model: SparseModel, chat: Chat) -> None:
    list(chat.reply("The city of Paris"))
    chat.reset()
    assert chat.tokens == 0
    assert "".join(chat.reply("Water")) == expected(model, "<s>Be brief.\nWater\n")


def test_a_message_that_does_not_fit_is_forgotten(model: SparseModel, chat: Chat) -> None:
    with pytest.raises(ProSparseError, match="context: expected at most 2048 tokens") as caught:
        list(chat.reply("word " * 3000))
    assert "/reset" in (caught.value.hint or "")
    assert "".join(chat.reply("Water")) == expected(model, "<s>Be brief.\nWater\n")


def test_commands(model: SparseModel) -> None:
    lines = "Water\n/reset\n/help\n\nWater\n/exit\n"
    result = CliRunner().invoke(main, ["chat", str(model.path), "-n", "8", "--threads", "1"], input=lines)
    assert result.exit_code == 0, result.output
    reply = "".join(model.stream_text("<s>Water\n", max_new_tokens=8, special_tokens=False))
    assert result.stdout.count(reply) == 2
    assert "conversation cleared" in result.stderr
    message = CliRunner().invoke(main, ["generate", str(model.path), "Water", "--chat", "-n", "8", "--threads", "1"])
    assert message.stdout == reply + "\n"
