"""graph_passes imports its names when they are first used: each has to be where the package says."""

from __future__ import annotations

import pytest

import graph_passes


def test_all_names_have_a_home() -> None:
    assert sorted(graph_passes._HOME) == sorted(graph_passes.__all__)


@pytest.mark.parametrize("name", graph_passes.__all__)
def test_a_name_is_found(name: str) -> None:
    assert getattr(graph_passes, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        graph_passes.nothing  # noqa: B018
