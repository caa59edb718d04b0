"""What the documentation names exists: commands with their options, paths, links, tables, glossary."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

import prosparse_export
from prosparse_export.cli import main
from prosparse_export.runtime.model import SparseModel

ROOT = Path(__file__).parent.parent.parent
ROOTS = ("prosparse_export/", "graph_passes/", "models/", "native/", "tests/", "benchmarks/", "docs/", ".ci/")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "native" / "README.md"])
_PREFIXES = (".venv/bin/python", "taskset", "-c", "0-3")  # before the command itself
_GENERATED = re.compile(r"^(out|models/mine|docs/\*\*)")  # written by a command on the same page, or a reader's


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(text: str) -> list[str]:
    """Lines of fenced and indented code, with continued lines joined."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line)
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands(text: str) -> list[list[str]]:
    """Return every command line of prosparse in ``text``, code blocks and backticks, as arguments after `prosparse`."""
    found = []
    for line in [*_blocks(text), *re.findall(r"`([^`\n]+)`", text)]:
        if "prosparse" not in line:
            continue
        words = shlex.split(line.strip().removeprefix("$ ").removeprefix("- "), comments=True)
        while words and (re.fullmatch(r"[A-Z_]+=\S+", words[0]) or words[0] in _PREFIXES):
            words = words[1:]
        if words[:1] == ["prosparse-export"]:
            found.append(["export", *words[1:]])
        elif words[:1] == ["prosparse"]:
            found.append(words[1:])
        elif "prosparse_export" in words and "-m" in words:  # torchrun, accelerate
            found.append(words[words.index("prosparse_export") + 1 :])
    return [words[: words.index(">")] if ">" in words else words for words in found]


def check_command(words: list[str]) -> None:
    """Fail unless click knows the command, its options, and the values of their choices."""
    if not words or words[0].startswith("-"):
        return
    command = main.commands.get(words[0])
    assert command is not None, f"no command {words[0]}"
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options |= {"-h": click.Option(["-h"], is_flag=True), "--help": click.Option(["--help"], is_flag=True)}
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-") or word == "-":
            continue
        name, equals, value = word.partition("=")
        assert name in options, f"{words[0]} has no option {name}"
        option = options[name]
        if isinstance(option, click.Option) and not option.is_flag and not option.count:
            value = value if equals else next(rest, "")
            if isinstance(option.type, click.Choice):
                assert value in option.type.choices, f"{words[0]} {name}: no choice {value!r}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_parse(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        check_command(words)


def test_a_wrong_command_is_found() -> None:
    text = "```shell\nprosparse bench \\\n  m.onnx --no-such-option\n```\n"
    text += "and `PROSPARSE_ISA=avx2 prosparse-export a b --attention plain`"
    first, second = commands(text)
    with pytest.raises(AssertionError, match="bench has no option --no-such-option"):
        check_command(first)
    with pytest.raises(AssertionError, match="no choice 'plain'"):
        check_command(second)
    with pytest.raises(AssertionError, match="no command"):
        check_command(["benchmark"])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}
    named |= {word for line in _blocks(text) for word in line.split()}
    for word in named:
        path = word.strip("'\"(),:;").partition("::")[0]
        if not path.startswith(ROOTS) or _GENERATED.match(path) or re.search(r"NAME|VERB|MACHINE|[{<]", path):
            continue
        assert list(ROOT.glob(path.rstrip("/"))), f"{_name(page)}: {path} does not exist"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT], ids=_name)
def test_links_outside_the_site_exist(page: Path) -> None:
    """mkdocs --strict checks the links of the site itself, and their anchors."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{_name(page)}: {target} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_examples_use_what_exists(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("prosparse", "graph_passes")):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                known = {"model": SparseModel, "prosparse_export": prosparse_export}.get(owner)
                if known is not None:
                    signature = inspect.signature(getattr(known, node.func.attr))
                    first = [None] if known is SparseModel else []
                    signature.bind(*first, *node.args, **{word.arg: word.value for word in node.keywords})


def test_performance_tables_are_current() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import tables
    finally:
        sys.path.pop(0)
    for page in tables.PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert tables.updated(text) == text, f"{page.name}: python benchmarks/tables.py writes it"


def test_every_benchmark_is_named() -> None:
    text = (ROOT / "docs" / "performance" / "index.md").read_text(encoding="utf-8")
    helpers = {"__init__.py", "common.py", "domains.py", "engine_accuracy.py", "measurements.py", "random_weights.py"}
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert script.name in helpers or script.name in text, f"{script.name} is not in docs/performance/index.md"


def test_the_glossary_is_short() -> None:
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    assert 15 <= len(re.findall(r"^:   ", text, re.MULTILINE)) <= 25


def test_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 550
