"""A command without its packages, as in an installation of prosparse-runtime, is one line and a hint."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from prosparse_export.cli.command import ProSparseCommand


def run(missing: str) -> tuple[int, str]:
    @click.command("export", cls=ProSparseCommand)
    def command() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    result = CliRunner().invoke(command, [], catch_exceptions=False)
    return result.exit_code, result.stderr


@pytest.mark.parametrize(("missing", "hint"), [("torch", "install prosparse-export"), ("onnx", "[bench]")])
def test_a_package_that_prosparse_runtime_leaves_out(missing: str, hint: str) -> None:
    code, text = run(missing)
    assert code == 1
    assert f"error: export: required package is not installed: {missing}\n" in text
    assert hint in text


def test_any_other_missing_module_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        run("prosparse_export.nothing")


def test_an_option_whose_choices_need_the_package() -> None:
    class Choices(click.ParamType):
        name = "choice"

        def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
            raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")

    @click.command("export", cls=ProSparseCommand)
    @click.option("--weights", type=Choices(), default="f32")
    def command(weights: str) -> None: ...

    result = CliRunner().invoke(command, [], catch_exceptions=False)
    assert result.exit_code == 1
    assert "error: export: required package is not installed: onnx_ir\n" in result.stderr
