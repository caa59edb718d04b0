"""Every family of ReLU-type decoders through the whole chain, tiny and random: docs/reference/families.md."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from support.families import D_FF, D_MODEL, FAMILIES, VOCAB, Family
from support.relu_shapes import count_relu_shapes

from graph_passes import FfnOutcome
from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.runtime.encoder_decoder import EncoderDecoder, encoder_path
from prosparse_export.runtime.model import Cache, SparseModel
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
PADS = (0, 5, 9)
PROMPT, NEW = 12, 16  # 28 tokens: well beyond the sliding windows of 8


@dataclass(frozen=True)
class Measured:
    """What one family's export gave; differences are relative to the largest logit."""

    rewritten: tuple[FfnOutcome, ...]
    refused: tuple[FfnOutcome, ...]
    attention: tuple[str, ...]
    fused_attention: bool
    packed: bool
    shapes: int
    sparsity: float
    largest_difference: float
    bound: float
    greedy_differs: int


def rounding_bound(size: float) -> float:
    """Bound on the difference of logits of ``size``: half an ulp for each addition on the longest way through.

    Two layers at most. A layer: q, k or v and o (d_model each), the head's scores and weighted values (d_model and
    the tokens at most),
    up and down (d_model and d_ff), two norms and two residual additions (3 d_model at most). Cross-attention, of an
    encoder-decoder: as much as a layer's attention and a norm. Then lm_head's d_model. Both sides round, hence twice.
    """
    additions = 2 * (8 * D_MODEL + D_FF + PROMPT + NEW) + (5 * D_MODEL + PROMPT) + 2 * D_MODEL
    return 2 * additions * 2.0**-24 * max(1.0, size)


@functools.cache
def measure(family: Family) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "model", Path(name) / "out" / "m.onnx"
        family.save(folder)
        result = export_model(folder, output, ExportOptions(allow_dense=not family.op))
        model = load_checkpoint(folder, encoder_decoder=family.encoder_decoder).model
        kind = Encoded if family.encoder else Translated if family.encoder_decoder else Reference
        reference = kind(model, [o.linears[-1] for o in result.rewritten])
        size = max(float(np.abs(x).max()) for x in (reference.padded, reference.decoded))
        differences, greedy = [], 0
        for library in (True, False):
            sparse: Any = (EncoderDecoder.open if family.encoder_decoder else load)(output, library=library)
            differences += reference.differences(sparse)
            greedy += reference.greedy_differs(sparse, rounding_bound(size))
        shapes, packed = 0, False
        for path in (output, encoder_path(output)) if family.encoder_decoder else (output,):
            graph = ir.load(path).graph
            packed = packed or all_are_packed(graph)
            shapes += count_relu_shapes(graph) + sum(node.domain == "com.prosparse" for node in graph)
        return Measured(
            result.rewritten,
            result.not_rewritten,
            result.attention_not_fused,
            result.manifest.fused_attention,
            packed,
            shapes,
            reference.sparsity,
            float(np.max(differences)),  # keeps a NaN
            rounding_bound(size),
            greedy,
        )


def all_are_packed(graph: ir.Graph) -> bool:
    """Tell whether every attention takes q, k and v from one product."""
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    return bool(attentions) and all(node.inputs[1] is None and node.inputs[2] is None for node in attentions)


class Reference:
    """PyTorch float32 on a left-padded batch, its greedy continuation, and each token of one row by itself."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        zeros: list[float] = []
        for path in down_projs:  # the paths in the outcome are the model's
            model.get_submodule(path).register_forward_pre_hook(
                lambda _, x: zeros.append(float((x[0] == 0).double().mean()))
            )
        positions = np.maximum(self.mask.cumsum(-1) - 1, 0)
        tensors = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions}
        self.padded = model(**{k: torch.from_numpy(v) for k, v in tensors.items()}).logits.numpy()
        self.continuation = self._greedy(model)
        self.row = np.concatenate([self.ids[0], self.continuation[0][0]])[None, :-1]
        self.decoded = model(input_ids=torch.from_numpy(self.row)).logits.numpy()
        self.sparsity = float(np.mean(zeros)) if zeros else 0.0

    def _inputs(self) -> None:
        self.ids = np.random.default_rng(0).integers(3, VOCAB, (len(PADS), PROMPT))
        self.mask = np.ones_like(self.ids)
        for row, pad in enumerate(PADS):
            self.mask[row, :pad], self.ids[row, :pad] = 0, 0

    def _greedy(self, model: torch.nn.Module) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens ``[row, new]`` and the gaps between the two best logits, without a cache."""
        ids, mask, tokens, gaps = self.ids, self.mask, [], []
        for _ in range(NEW):
            positions = np.maximum(mask.cumsum(-1) - 1, 0)
            tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            best = model(**{k: torch.from_numpy(v) for k, v in tensors.items()}, use_cache=False).logits[:, -1].topk(2)
            tokens.append(best.indices[:, 0].numpy())
            gaps.append((best.values[:, 0] - best.values[:, 1]).numpy())
            ids = np.concatenate([ids, tokens[-1][:, None]], 1)
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
        return np.stack(tokens, 1), np.stack(gaps, 1)

    def differences(self, sparse: SparseModel) -> list[float]:
        """Largest difference of a logit: left-padded prefill, then one row's tokens one by one, with the cache."""
        logits, _ = sparse.forward(self.ids, self.mask)
        found = [float(np.abs(logits - self.padded)[self.mask == 1].max())]
        cache: Cache | None = None
        for i in range(self.row.shape[1]):
            step, cache = sparse.forward(self.row[:, i : i + 1], np.ones((1, i + 1), np.int64), cache)
            found.append(float(np.abs(step[:, 0] - self.decoded[:, i]).max()))
        return found

    def greedy_differs(self, sparse: SparseModel, bound: float) -> int:
        """Rows whose greedy tokens differ, up to a tie within twice the bound."""
        endless = replace(sparse, stop=frozenset())
        prompts = [row[pad:].tolist() for row, pad in zip(self.ids, PADS, strict=True)]
        actual = np.stack(list(endless.stream(prompts, max_new_tokens=NEW)), 1)
        tokens, gaps = self.continuation
        wrong = 0
        for row in range(len(PADS)):
            different = np.flatnonzero(actual[row] != tokens[row])
            wrong += bool(len(different)) and not gaps[row, different[0]] <= 2 * bound
        return wrong


class Encoded(Reference):
    """An encoder's hidden states on the same batch; there is nothing to generate."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        zeros: list[float] = []
        for path in down_projs:
            model.get_submodule(path).register_forward_pre_hook(
                lambda _, x: zeros.append(float((x[0] == 0).double().mean()))
            )
        tensors = {"input_ids": torch.from_numpy(self.ids), "attention_mask": torch.from_numpy(self.mask)}
        self.padded = self.decoded = model(**tensors).last_hidden_state.numpy()
        self.sparsity = float(np.mean(zeros))

    def differences(self, sparse: SparseModel) -> list[float]:
        states, _ = sparse.forward(self.ids, self.mask)
        return [float(np.abs(states - self.padded)[self.mask == 1].max())]

    def greedy_differs(self, sparse: SparseModel, bound: float) -> int:
        with pytest.raises(ProSparseError, match="expected a decoder with a KV cache"):
            next(sparse.stream([[5]]))
        return 0


class Translated(Reference):
    """PyTorch float32 of an encoder-decoder: a left-padded batch of sources, and what each becomes by itself."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        self.ids[self.mask == 0] = model.config.pad_token_id
        zeros: list[float] = []
        for path in down_projs:
            model.get_submodule(path).register_forward_pre_hook(
                lambda _, x: zeros.append(float((x[0] == 0).double().mean()))
            )
        source = {"input_ids": torch.from_numpy(self.ids), "attention_mask": torch.from_numpy(self.mask)}
        states = model.get_encoder()(**source)
        self.padded = states.last_hidden_state.numpy()
        start = model.config.decoder_start_token_id
        greedy = [self._translation(model, row[pad:], start) for row, pad in zip(self.ids, PADS, strict=True)]
        self.continuation = np.stack([tokens for tokens, _ in greedy]), np.stack([gaps for _, gaps in greedy])
        begin = np.full((len(PADS), 1), start)
        self.row = np.concatenate([begin, self.continuation[0][:, :-1]], 1)
        out = model(
            attention_mask=source["attention_mask"],
            encoder_outputs=states,
            decoder_input_ids=torch.from_numpy(self.row),
        )
        self.decoded = out.logits.numpy()
        self.sparsity = float(np.mean(zeros))

    @staticmethod
    def _translation(model: torch.nn.Module, row: NDArray[np.int64], start: int) -> tuple[Any, Any]:
        tokens, gaps = [start], []
        for _ in range(NEW):
            feeds = {"input_ids": torch.from_numpy(row[None].copy()), "decoder_input_ids": torch.tensor([tokens])}
            best = model(**feeds, use_cache=False).logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
        return np.array(tokens[1:]), np.array(gaps)

    def differences(self, sparse: EncoderDecoder) -> list[float]:  # type: ignore[override]
        """Largest difference: the encoder's states, all tokens in one go, one by one, and some in one go after one."""
        source = sparse.encode(self.ids, self.mask)
        found = [float(np.abs(source.states - self.padded)[self.mask == 1].max())]
        for cuts in ([NEW], [1] * NEW, [1, NEW - 1]):
            cache: Cache | None = None
            begin = 0
            for length in cuts:
                part = slice(begin, begin + length)
                logits, cache = sparse.forward(self.row[:, part], source, cache)
                found.append(float(np.abs(logits - self.decoded[:, part]).max()))
                begin += length
        return found

    def greedy_differs(self, sparse: EncoderDecoder, bound: float) -> int:  # type: ignore[override]
        """Rows whose greedy tokens differ, up to a tie; the artifact pads sources on the right."""
        endless = dataclasses.replace(sparse, stop=frozenset())
        prompts = [row[pad:].tolist() for row, pad in zip(self.ids, PADS, strict=True)]
        actual = np.stack(list(endless.stream(prompts, max_new_tokens=NEW)), 1)
        tokens, gaps = self.continuation
        wrong = 0
        for row in range(len(PADS)):
            different = np.flatnonzero(actual[row] != tokens[row])
            wrong += bool(len(different)) and not gaps[row, different[0]] <= 2 * bound
        return wrong


EXPORTED = [family for family in FAMILIES if not family.refused]
REFUSED = [family for family in FAMILIES if family.refused]


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_refused_family(family: Family, tmp_path: Path) -> None:
    assert family.refused in refusal(family, tmp_path)
    assert not (tmp_path / "out").exists()


def refusal(family: Family, folder: Path) -> str:
    family.save(folder / "model")
    with pytest.raises(ProSparseError) as caught:
        export_model(folder / "model", folder / "out" / "m.onnx")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", EXPORTED, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    found = measure(family)
    assert found.largest_difference <= found.bound
    assert found.greedy_differs == 0
    assert len(found.rewritten) == (family.blocks if family.op else 0)
    assert {(o.op, o.activation) for o in found.rewritten} <= {(family.op, family.activation)}
    assert all(o.threshold == pytest.approx(family.threshold, abs=1e-8) for o in found.rewritten)
    assert found.packed == family.packed
    assert all((o.d_model, o.d_ff) == (D_MODEL, D_FF) for o in found.rewritten)
    assert {o.reason for o in found.not_rewritten} == family.reasons
    of_relu = [o for o in found.not_rewritten if "not a ReLU" not in o.reason]
    assert found.shapes == len(found.rewritten) + len(of_relu)  # nothing was overlooked
    if family.encoder_decoder:
        assert found.attention == ("encoder-decoder: attention stays as it was traced",)
    elif family.attention:
        assert any(line.split(": ", 1)[1].startswith(family.attention) for line in found.attention)
    else:
        assert found.attention == ()


def table() -> str:
    lines = ["| family | FFNs | operator | activation | exact | generates | attention | sparsity |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    notes = []
    for family in EXPORTED:
        found = measure(family)
        refused = [o for o in found.not_rewritten if not (family.router and o.module.endswith(family.router))]
        total = len(found.rewritten) + len(refused)
        outcome = found.rewritten[0] if found.rewritten else None
        cells = [family.name, f"{len(found.rewritten)} of {total}"]
        cells += [outcome.op.removesuffix("F32") if outcome else "dense", outcome.activation if outcome else "-"]
        cells.append("yes" if found.largest_difference <= found.bound else "NO")
        generates = "-" if family.encoder else "yes" if found.greedy_differs == 0 else "NO"
        cells += [generates, "fused, packed" if found.packed else "fused" if found.fused_attention else "unfused"]
        cells.append(f"{found.sparsity:.0%}" if outcome else "-")
        lines.append("| " + " | ".join(cells) + " |")
        notes += [f"- {family.name}: {reason}." for reason in sorted({o.reason for o in refused})]
        if not family.encoder_decoder:
            notes += [f"- {family.name}: attention stays unfused: {family.attention}." for _ in found.attention[:1]]
    for family in REFUSED:
        lines.append(f"| {family.name} | - | not exported | - | - | - | - | - |")
        notes.append(f"- {family.name}: not exported: {family.note or family.refused}.")
    return "\n".join([*lines, "", "Reasons:", "", *notes])


def test_the_committed_table_is_current() -> None:
    from support.tables import check_table

    check_table(ROOT / "docs" / "reference" / "families.md", table())
