"""Deliberate faults at run time: an old library, truncated weights, results that depend on threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.mutations import LAYER, assert_named, check, failed, ffn_node

from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import library_path
from prosparse_export.validation import validate

pytestmark = pytest.mark.integration


OLD_LIBRARY = r"""
#include <dlfcn.h>
#include <string.h>

typedef struct { const void* (*get_api)(unsigned); const char* (*version)(void); } Base;
static const Base* onnxruntime;
static void* table[300];  /* OrtApi, as far as the library knows it; docs in native/ort/ort_abi.h */
static void* (*add_really)(void*, void**);

static void* add(void* domain, void** op) {
  const char* name = ((const char* (*)(void*))op[2])(op);
  return strncmp(name, LACKS, strlen(LACKS)) == 0 ? 0 : add_really(domain, op);
}
static const void* get_api(unsigned version) {
  memcpy(table, onnxruntime->get_api(version), sizeof table);
  add_really = table[27];
  table[27] = add;  /* CustomOpDomain_Add */
  return table;
}
static const char* version(void) { return onnxruntime->version(); }
static void* real(const char* name) { return dlsym(dlopen(LIBRARY, RTLD_NOW), name); }

void* RegisterCustomOps(void* options, const Base* base) {
  static Base older = {get_api, version};
  onnxruntime = base;
  return ((void* (*)(void*, const Base*))real("RegisterCustomOps"))(options, &older);
}
const char* prosparse_ops_info(void) {  /* names of lacking operators get another first letter */
  static char info[1 << 16];
  strncpy(info, ((const char* (*)(void))real("prosparse_ops_info"))(), sizeof info - 1);
  char* name = strchr(strstr(info, "\"operators\""), '[');
  char* const end = strchr(name, ']');
  while ((name = strchr(name + 1, '"')) != 0 && name < end) {
    if (strncmp(name + 1, LACKS, strlen(LACKS)) == 0) name[1] = '-';
    name = strchr(name + 1, '"');
  }
  return info;
}
"""


@pytest.mark.parametrize(
    ("lacks", "unknown"),
    [("Linear", {"LinearBF16"}), ("", {"LinearBF16", "RotaryCachedAttentionF32", "SparseGatedFFNBF16"})],
)
def test_library_of_an_older_version(
    lacks: str,
    unknown: set[str],
    demo_folder: Path,
    demo_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """onnxruntime silently runs the function bodies of operators that the library lacks."""
    source, library = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text(OLD_LIBRARY)
    macros = [f'-DLACKS="{lacks}"', f'-DLIBRARY="{library_path()}"']
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", *macros, "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("PROSPARSE_OPS_LIBRARY", str(library))
    with pytest.raises(ProSparseError, match=f"without {', '.join(sorted(unknown))}$"):
        check(demo_folder, demo_artifact)
    shutil.copytree(demo_artifact.parent, tmp_path / "out")
    manifest = tmp_path / "out" / "prosparse.json"
    values = json.loads(manifest.read_text())
    del values["operators"]  # an artifact of an older version does not list them
    manifest.write_text(json.dumps(values))
    result = check(demo_folder, tmp_path / "out" / demo_artifact.name)
    assert failed(result) == ["operators in the library"]
    assert set(result.unknown_operators) == unknown


def test_truncated_data(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_artifact.parent, tmp_path, dirs_exist_ok=True)
    data = tmp_path / f"{demo_artifact.name}.data"
    os.truncate(data, data.stat().st_size - 5000)
    stages: list[str] = []
    with pytest.raises(ProSparseError, match=r"demo\.onnx\.data: expected [\d,]+ bytes, got") as caught:
        validate(demo_folder, tmp_path / demo_artifact.name, progress=lambda stage, *_: stages.append(stage))
    assert "copy" in str(caught.value.hint)
    assert stages == []  # before PyTorch's model is loaded


def test_racing_thread(demo_folder: Path, demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some columns of one operator's output, with the library, vary from run to run."""
    rng = np.random.default_rng()
    output = ffn_node(read_graph(demo_artifact)).output[0]
    real = onnxruntime.InferenceSession

    class Racing(real):  # type: ignore[valid-type,misc]
        def __init__(self, path: Any, options: Any, **kwargs: Any) -> None:
            super().__init__(path, options, **kwargs)
            try:
                options.get_session_config_entry("prosparse.registered")
                self.races = True
            except RuntimeError:
                self.races = False

        def run(self, names: Any, feeds: Any, *rest: Any) -> Any:
            names = names or [o.name for o in self.get_outputs()]
            values = super().run(names, feeds, *rest)
            for name, value in zip(names, values, strict=True):
                if self.races and name in (output, "logits"):
                    value[..., :64] += np.float32(1e-5 if name == "logits" else 1e-2) * rng.random(dtype=np.float32)
            return values

    monkeypatch.setattr(onnxruntime, "InferenceSession", Racing)
    result = check(demo_folder, demo_artifact)
    assert "bit-identical runs" in failed(result)
    assert all(c.passed for c in result.comparisons)  # well within their bounds: only the bits differ
    assert_named(result, LAYER, "SparseGatedFFNBF16")


def test_threads_that_race_are_seen_by_repeat_alone(
    demo_folder: Path, demo_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one logit differs with two threads; with one thread all is right."""
    real = onnxruntime.InferenceSession

    class Racing(real):  # type: ignore[valid-type,misc]
        def __init__(self, path: Any, options: Any, **kwargs: Any) -> None:
            super().__init__(path, options, **kwargs)
            self.races = options.intra_op_num_threads > 1

        def run(self, names: Any, feeds: Any, *rest: Any) -> Any:
            values = super().run(names, feeds, *rest)
            if self.races:
                values[0].view(np.uint32).flat[-1] ^= 1
            return values

    monkeypatch.setattr(onnxruntime, "InferenceSession", Racing)
    usual = check(demo_folder, demo_artifact, threads=1, explain=False)
    assert usual.passed, failed(usual)
    result = check(demo_folder, demo_artifact, threads=1, explain=False, repeat=True)
    assert failed(result) == ["bit-identical runs"]
    assert "run 2 (2 threads) against run 1 (1)" in result.determinism.first
