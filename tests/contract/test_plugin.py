"""The operator library as a plugin execution provider: onnxruntime 1.24 and newer find the operators by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support import operator_cases
from support.graphs import weights_model
from support.kernels import session

from prosparse_export.runtime.operator_library import library_path

pytestmark = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24), reason="plugins bring operators since 1.24"
)

# Registration lasts as long as the process, hence a child.
BY_DEVICE = """
import json, sys
import numpy as np
import onnxruntime as ort
library, model = sys.argv[1:]
ort.register_execution_provider_library("ours", library)
found = [device for device in ort.get_ep_devices() if device.ep_name == "ProSparse"]
options = ort.SessionOptions()
options.add_provider_for_devices(found, {})
opened = ort.InferenceSession(model, options)
y = opened.run(None, {"x": np.load(model + ".npy")})[0]
print(json.dumps([len(found), opened.get_providers(), y.tolist()]))
"""

# Through the C interface, since Python's own sessions leave these operators out: positions in struct OrtApi.
BY_POLICY = """
import ctypes, sys
library, model, runtime, with_library = sys.argv[1:]
base = ctypes.CDLL(runtime).OrtGetApiBase
base.restype = ctypes.POINTER(ctypes.c_void_p)
api = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint32)(base()[0])(24)
def call(slot, *arguments):
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, *map(type, arguments))(api[slot])
    status = function(*arguments)
    if status:
        sys.exit(ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(api[2])(status).decode())
text = lambda value: ctypes.c_char_p(value.encode())
out = lambda handle: ctypes.c_void_p(ctypes.addressof(handle))
env, options, session = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
call(3, ctypes.c_int(3), text("test"), out(env))  # CreateEnv
if with_library == "yes":
    call(301, env, text("ours"), text(library))  # RegisterExecutionProviderLibrary
call(10, out(options))  # CreateSessionOptions
call(305, options, ctypes.c_int(1))  # SessionOptionsSetEpSelectionPolicy: PREFER_CPU
call(7, env, text(model), options, out(session))  # CreateSession
print("opened")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one operator without its function body, which only the library can run; and its input."""
    path = tmp_path_factory.mktemp("plugin") / "m.onnx"
    inputs, _ = operator_cases.make("gated", "i4", 64, 96, np.random.default_rng(0))
    proto = weights_model("SparseGatedFFNI4", inputs, 2, activation="relu", threshold=0.0)
    del proto.functions[:]
    onnx.save(proto, path)
    np.save(f"{path}.npy", np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32))
    return path


def child(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(library_path()), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_device_that_the_application_names(model: Path) -> None:
    done = child(BY_DEVICE, model)
    assert done.returncode == 0, done.stderr
    count, providers, y = json.loads(done.stdout)
    assert (count, providers) == (1, ["ProSparse", "CPUExecutionProvider"])
    registered = session(model, library=True).run(None, {"x": np.load(f"{model}.npy")})[0]
    assert np.array_equal(np.array(y, np.float32), registered)


def test_devices_that_onnxruntime_chooses(model: Path) -> None:
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if sys.platform != "linux" or runtime is None:
        pytest.skip("needs a wheel with libonnxruntime.so")
    done = child(BY_POLICY, model, runtime, "yes")
    assert (done.returncode, done.stdout) == (0, "opened\n"), done.stderr
    done = child(BY_POLICY, model, runtime, "no")
    assert done.returncode == 1
    assert "SparseGatedFFNI4" in done.stderr
