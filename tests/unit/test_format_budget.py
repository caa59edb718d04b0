"""Budgets for size and perplexity: which parts of a model get 8 bits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.families import family

from graph_passes import FfnFormat
from prosparse_export.cli.budget_options import Percent, Size
from prosparse_export.errors import ProSparseError
from prosparse_export.export import ExportOptions, choose_formats, format_budget
from prosparse_export.export.choose_formats import plan_weights, rounds_compensating
from prosparse_export.export.format_budget import Budget, choose_exceptions, held_back, parts_within_size
from prosparse_export.export.mixed_precision import (
    Part,
    PartRounding,
    find_parts,
    mean_nll,
    measure_costs,
    widest_gains,
)
from prosparse_export.export.options import check_options
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.progress import no_progress
from prosparse_export.text import Document
from prosparse_models import Checkpoint, load_checkpoint

LAYER = "model.layers.0."
FFN = [f"{LAYER}mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
IDS = torch.randint(3, 50, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("m")
    family("LLaMA (ReluLLaMA)").save(folder)
    return load_checkpoint(folder, in_files=True)


@pytest.fixture(scope="module")
def matrices() -> dict[str, bool]:
    attention = [f"{LAYER}self_attn.{name}_proj" for name in "qkvo"]
    return {name: name == FFN[-1] for name in (*attention, *FFN)}


def test_costs_are_measured_and_bytes_go_where_they_gain_most(
    checkpoint: Checkpoint, matrices: dict[str, bool]
) -> None:
    parts = find_parts(checkpoint.model, matrices, [FFN], "i4")
    assert [part.name for part in parts[:2]] == ["embedding and lm_head", "q_proj, layers 0 to 0"]
    gate = next(part for part in parts if part.name.startswith("gate_proj and up_proj"))
    assert gate.modules == tuple(FFN[:2])
    assert gate.needs == "down_proj, layers 0 to 0"
    measured = measure_costs(checkpoint, parts, IDS, PartRounding({}, {FFN[-1]}), no_progress)
    assert all(part.kl > 0 for part in measured)
    order = [part.name for part in widest_gains(measured)]
    assert order.index(gate.needs) < order.index(gate.name)
    assert sorted(order) == sorted(part.name for part in parts)


@pytest.mark.parametrize("first", [("gate_proj", "up_proj"), ("fc1",)])
def test_parts_of_rewritten_ffns_need_the_down_proj_part_that_dense_ffns_share(first: tuple[str, ...]) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            ffns = [torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in (*first, "down")}) for _ in range(8)]
            self.layers = torch.nn.ModuleList(ffns)

        def get_input_embeddings(self) -> None: ...

        def get_output_embeddings(self) -> None: ...

    ffns = [[f"layers.{i}.{name}" for name in (*first, "down")] for i in range(8)]
    is_down = {name: name == names[-1] for names in ffns for name in names}
    parts = find_parts(Model(), is_down, ffns[1:], "nl4")  # layer 0 stays dense
    needs = [part.needs for part in parts if ffns[1][0] in part.modules or ffns[7][0] in part.modules]
    assert needs == ["down, layers 0 to 1", "down, layers 6 to 7"]
    assert set(needs) <= {part.name for part in parts}


def test_most_cost_per_byte_comes_first() -> None:
    parts = [
        Part("large", ("a",), 1000, "i4", kl=0.5),
        Part("small", ("b",), 10, "i4", kl=0.1),
        Part("free", ("c",), 10, "i4"),
    ]
    assert [part.name for part in widest_gains(parts)] == ["small", "large", "free"]


def budget(checkpoint: Checkpoint, matrices: dict[str, bool], options: ExportOptions) -> dict[str, str]:
    rounding = PartRounding({}, {FFN[-1]})
    parts, left = parts_within_size(checkpoint, Path("m"), options, [FFN], matrices)
    return dict(choose_exceptions(checkpoint, Path("m"), options, parts, left, rounding, IDS, no_progress).exceptions)


@pytest.mark.parametrize("weights", ["i4", "nl4"])
def test_a_target_size(
    weights: FfnFormat, checkpoint: Checkpoint, matrices: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_budget, "_other_bytes", lambda *_: 0)
    parts = find_parts(checkpoint.model, matrices, [FFN], "nl4")
    least, most = format_budget.matrix_bytes(parts), sum(part.more_bytes for part in parts)
    assert budget(checkpoint, matrices, ExportOptions(weights=weights, target_bytes=least)) == {}
    everything = budget(checkpoint, matrices, ExportOptions(weights=weights, target_bytes=least + most))
    assert everything.keys() == {name for part in parts for name in part.modules}
    some = budget(checkpoint, matrices, ExportOptions(weights=weights, target_bytes=least + most // 2))
    assert 0 < len(some) < len(everything)
    with pytest.raises(ProSparseError, match=rf"target size: m: {weights} takes 0.0 MB, got 0.0 MB") as caught:
        budget(checkpoint, matrices, ExportOptions(weights=weights, target_bytes=least - 1))
    assert caught.value.hint == "pass --target-size 2MB or more"


def test_a_limit_of_perplexity(
    checkpoint: Checkpoint, matrices: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def nll(_: object, ids: object, formats: dict[str, str], rounding: object) -> float:
        if not formats:
            return 2.0
        asked.append(sum(weights == "i8" for weights in formats.values()))
        return 2.0 + math.log(1 + 0.1 / (1 + asked[-1]))

    monkeypatch.setattr(format_budget, "mean_nll", nll)
    found = budget(checkpoint, matrices, ExportOptions(weights="i4", max_ppl_increase=0.03))
    assert 0.1 / (1 + len(found)) <= 0.03
    assert len(found) < max(asked)
    with pytest.raises(ProSparseError, match=r"expected at most 0.10% more, got .*% with every matrix in i8"):
        budget(checkpoint, matrices, ExportOptions(weights="i4", max_ppl_increase=0.001))


def test_a_budget_that_leaves_nothing_in_i4(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        pytest.fail("there is nothing to round: the model need not run")

    linears = [name for name, module in checkpoint.model.named_modules() if isinstance(module, torch.nn.Linear)]
    everything = Budget(dict.fromkeys(linears, "i8"), ())
    monkeypatch.setattr(choose_formats, "sparse_ffns", lambda *_: [FFN])
    monkeypatch.setattr(choose_formats, "calibration_documents", lambda *_, **__: (Document("a", np.full(1024, 5)),))
    monkeypatch.setattr(choose_formats, "parts_within_size", lambda *_: ([], 0))
    monkeypatch.setattr(choose_formats, "choose_exceptions", lambda *_: everything)
    monkeypatch.setattr(choose_formats, "compensated_matrices", fails)
    options = ExportOptions(weights="i4", target_bytes=1)
    plan, record = plan_weights(checkpoint, Path("m"), options, [], no_progress, graph=ir.Graph([], [], nodes=[]))
    assert plan.exceptions == everything.exceptions
    assert record is not None
    assert not record.compensated


def test_the_likelihood_is_pytorchs(checkpoint: Checkpoint) -> None:
    with torch.no_grad(), as_stored(checkpoint, {}):
        logits = checkpoint.model(input_ids=IDS).logits[:, :-1]
    expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()))
    assert mean_nll(checkpoint, IDS, {}, PartRounding({}, set())) == pytest.approx(expected, rel=1e-6)


def test_every_document_gives_rows_by_its_length() -> None:
    documents = [
        Document("a", np.arange(3000)),
        Document("b", np.arange(5000, 6200)),
        Document("c", np.arange(9000, 9100)),
    ]
    kept, rest = held_back(documents, {})
    assert [len(document.ids) for document in kept] == [3000 - 768, 1200 - 256, 100]
    np.testing.assert_array_equal(rest.numpy()[:3].ravel(), np.arange(3000 - 768, 3000))
    np.testing.assert_array_equal(rest.numpy()[3], np.arange(6200 - 256, 6200))


def test_the_end_of_the_text_is_held_back() -> None:
    documents = [Document("a", np.arange(1200)), Document("b", np.arange(1200, 1400))]  # b is shorter than a row
    kept, rest = held_back(documents, {})
    assert rest.shape == (2, 256)
    assert rest.flatten().tolist() == list(range(1200 - 512, 1200))
    documents = [Document(str(i), np.arange(200 * i, 200 * (i + 1))) for i in range(7)]  # so are all
    kept, rest = held_back(documents, {})
    assert rest.flatten().tolist() == list(range(1400 - 512, 1400))
    assert np.concatenate([document.ids for document in kept]).tolist() == list(range(1400 - 512))
    with pytest.raises(ProSparseError, match="expected at least 512 tokens to choose formats on, got 511"):
        held_back([Document("a", np.arange(511))], {})


def test_rows_fit_a_short_context() -> None:
    kept, rest = held_back([Document("a", np.arange(600))], {"max_position_embeddings": 100})
    assert rest.shape == (2, 100)
    assert rest[0, 0] == 600 - 256
    assert [len(document.ids) for document in kept] == [600 - 256]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(weights="i8", target_bytes=1), "chooses between 4 and 8 bits, got i8"),
        (ExportOptions(weights="i4", other_weights="i8", max_ppl_increase=0.1), "got i4 and i8 outside the FFNs"),
        (ExportOptions(weights="i4", target_bytes=1, max_ppl_increase=0.1), "expected one budget"),
    ],
)
def test_options_that_contradict_each_other(options: ExportOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProSparseError, match=message):
        check_options(tmp_path / "m", tmp_path / "out" / "m.onnx", options)


@pytest.mark.parametrize(
    ("options", "texts", "compensates"),
    [
        (ExportOptions(weights="i4"), [], False),
        (ExportOptions(weights="i4"), ["t"], True),
        (ExportOptions(weights="i4", target_bytes=1), [], True),
        (ExportOptions(weights="i4", max_ppl_increase=0.1), [], True),
        (ExportOptions(weights="i4", target_bytes=1, rounding="nearest"), ["t"], False),
        (ExportOptions(weights="i4", rounding="compensated"), [], True),
    ],
)
def test_a_text_or_a_budget_turns_compensation_on(options: ExportOptions, texts: list[str], compensates: bool) -> None:
    assert rounds_compensating(options, texts) is compensates


def test_sizes_and_percentages() -> None:
    assert Size().convert("91MB", None, None) == 91_000_000
    assert Size().convert("1.5 GiB", None, None) == 3 << 29
    assert Percent().convert("5%", None, None) == 0.05
    for kind, text in ((Size(), "91 apples"), (Size(), "0MB"), (Percent(), "0.05"), (Percent(), "0%")):
        with pytest.raises(Exception, match=r"expected a (size|percentage), such as"):
            kind.convert(text, None, None)
