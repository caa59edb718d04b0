"""Contexts of 131,072 tokens: attention stays fused and packed, and reads its cos/sin cache to the last row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from support.model_sizes import grouped
from transformers import DynamicCache

from graph_passes.cached_rows import cached_head_dim, read_rows
from prosparse_export import ExportOptions, export_model, load
from prosparse_export.analysis.cache_scales import cache_scales
from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.export.rounded_cache import RoundedCache, cache_rounding
from prosparse_export.export.rounded_reference import format_bound
from prosparse_export.runtime.cache import Cache, cache_inputs
from prosparse_export.runtime.model import SparseModel
from prosparse_models import cache_argument, load_checkpoint

pytestmark = pytest.mark.integration
CONTEXT = 131_072
OPERATORS = {"f32": "RotaryCachedAttentionF32", "i8-token": "RotaryCachedAttentionI8"}


@pytest.fixture(scope="module", params=[64, 128], ids=["head_dim 64", "head_dim 128"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with one layer and the frequencies of long contexts."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {**grouped(), "max_position_embeddings": CONTEXT, "head_dim": request.param}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, hidden_act="relu", rope_parameters=rope)).save_pretrained(folder)
    return folder


def exported(folder: Path, kind: Literal["f32", "i8-token"]) -> Path:
    return export_model(folder, folder / kind / "m.onnx", ExportOptions(kv_cache=kind)).path


def past_of(model: SparseModel, tokens: int) -> Cache:
    """A cache of random keys and values: a prompt as long would take minutes."""
    rng = np.random.default_rng(tokens)

    def rows(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        if dtype == np.float32:
            return rng.standard_normal(shape, np.float32)
        width = cached_head_dim(shape[-1])
        result = rng.integers(-127, 128, shape, np.int8)
        scales = np.full((*shape[:-1], (shape[-1] - width) // 2), 2.0**-6, np.float32)  # bfloat16: the upper half
        result[..., width:] = (scales.view(np.uint32) >> np.uint32(16)).astype("<u2").view(np.int8)
        return result

    empty = Cache.empty(cache_inputs(model.session), 1).values
    return Cache({name: rows((1, a.shape[1], tokens, a.shape[3]), a.dtype) for name, a in empty.items()})


def pytorch(path: Path, folder: Path, past: Cache, token: int, *, rounded: bool) -> NDArray[np.float32]:
    """PyTorch's logits of ``token`` after ``past``."""
    values = [read_rows(array.astype(np.int8)) if array.dtype == np.int8 else array for array in past.values.values()]
    filled = DynamicCache()
    filled.update(*map(torch.from_numpy, values), 0)
    if rounded:
        filled.__class__ = RoundedCache
        filled._scales = cache_scales(read_graph(path), path.parent)
    with torch.no_grad():
        model = load_checkpoint(folder).model
        return model(input_ids=torch.tensor([[token]]), **cache_argument(model, filled)).logits[0].numpy()


@pytest.mark.parametrize("kind", ["f32", "i8-token"])
def test_decode_up_to_the_last_token(folder: Path, kind: Literal["f32", "i8-token"]) -> None:
    path = exported(folder, kind)
    head_dim = json.loads((folder / "config.json").read_text())["head_dim"]
    graph = read_graph(path).graph
    (attention,) = (node for node in graph.node if node.op_type == OPERATORS[kind])
    assert attention.input[1] == "past_key_values.0.key"  # after one projection: packed
    shapes = [list(tensor.dims) for tensor in graph.initializer if tensor.name in attention.input[-4:]]
    assert shapes == [[CONTEXT, head_dim // 2]] * 2
    models = {library: load(path, threads=1, library=library) for library in (True, False)}
    for past in (40_000, CONTEXT - 1):
        cache = past_of(models[True], past)
        expected = pytorch(path, folder, cache, 7, rounded=kind != "f32")
        bound = format_bound({}, float(np.abs(expected).max()))
        if kind != "f32":
            bound += cache_rounding(expected, pytorch(path, folder, cache, 7, rounded=False))
        for model in models.values():
            found, _ = model.forward(np.array([[7]]), np.ones((1, past + 1), np.int64), cache)
            assert np.abs(found[0] - expected).max() <= bound
