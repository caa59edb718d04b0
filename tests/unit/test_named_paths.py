"""Files and folders that comments and docstrings of the code name exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "prosparse_export",
    "graph_passes",
    "models",
    "native",
    "tests",
    "benchmarks",
    "docs",
    "packaging",
    "examples",
)
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
CODE = [path for path in FILES if path.suffix in (".py", ".cc", ".h", ".inc")]
NAMES = {f"/{path.relative_to(ROOT).as_posix()}" for path in [*FILES, *ROOT.glob("*")]}
SOURCE_FILE = re.compile(r"[\w/.-]*\w\.(?:py|cc|h|inc|md)\b(?!\.\w)")
BELOW_ROOT = re.compile(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w")
OUTSIDE = {
    "onnxruntime_c_api.h",
    "onnxruntime_cxx_api.h",
    "onnxruntime_ep_c_api.h",
    "models/builders/base.py",
}  # onnxruntime's and onnxruntime-genai's
FILLED_IN = re.compile(r"VERB|NAME|MACHINE")


def _python_prose(text: str) -> str:
    """Comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


def missing_paths(text: str, suffix: str) -> set[str]:
    """Paths in the prose of a source file that no file or folder of the repository ends with."""
    prose = _python_prose(text) if suffix == ".py" else "\n".join(re.findall(r"//(.*)", text))
    named = {*SOURCE_FILE.findall(prose), *BELOW_ROOT.findall(prose)} - OUTSIDE
    return {path for path in named if not FILLED_IN.search(path) and not any(n.endswith(f"/{path}") for n in NAMES)}


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name != "docs"])
def test_named_paths_exist(folder: str) -> None:
    code = [path for path in CODE if path.is_relative_to(ROOT / folder)]
    assert code
    missing = {path.name: missing_paths(path.read_text(encoding="utf-8"), path.suffix) for path in code}
    assert {name: paths for name, paths in missing.items() if paths} == {}


@pytest.mark.parametrize(
    "name", ["docs/custom_ops" + ".md", "native/kernels", "graph_passes/no_pass" + ".py", "no_kernel" + ".inc"]
)
def test_a_missing_path_is_found(name: str) -> None:
    assert missing_paths(f'"""As `{name}`."""\nx = 1  # docs/index.md, graph_passes/patterns\n', ".py") == {name}
    assert missing_paths(f"// {name}, kernels.h, native/tests\n", ".cc") == {name}
