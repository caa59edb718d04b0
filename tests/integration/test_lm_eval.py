"""lm-evaluation-harness: every item scores as with the harness's Hugging Face model."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from prosparse_export.lm_eval import ProSparseLM
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import default_text

pytestmark = pytest.mark.integration
ITEMS = 100
CHARACTERS = 60_332  # the items are cut from the beginning of the bundled text, which has something of every subject


def items() -> list[dict[str, Any]]:
    """Multiple choice: which words follow? Last word, as in LAMBADA: the word that ends a passage."""
    words = default_text()[:CHARACTERS].split()
    rng = np.random.default_rng(0)
    made = []
    for k in range(ITEMS):
        begin = k * (len(words) // ITEMS)
        context = " ".join(words[begin : begin + 24])
        places = [begin + 24, *(int(p) for p in rng.integers(0, len(words) - 4, 3))]
        choices = [" ".join(words[p : p + 3]) for p in places]
        order = rng.permutation(4)
        shuffled = [choices[i] for i in order]
        label = int(np.flatnonzero(order == 0)[0])
        made.append({"context": context, "choices": shuffled, "label": label, "last": words[begin + 24]})
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("task")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items()))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{context}}",
    }
    choice = {
        "task": "local_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    last = {
        "task": "local_last_word",
        "output_type": "loglikelihood",
        "doc_to_target": "{{' ' + last}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    }
    text = {
        "task": "local_text",
        "output_type": "generate_until",
        "doc_to_target": "{{last}}",
        "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [{**common, **choice}, {**common, **last}, {**common, **text}]


def evaluate(model: Any, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    result = lm_eval.simple_evaluate(
        model=model,
        tasks=[dict(t) for t in tasks],
        task_manager=TaskManager(include_defaults=False),  # else it reads thousands of files
        log_samples=True,
        bootstrap_iters=0,
    )
    assert result is not None
    return result


def test_scores_are_those_of_the_hugging_face_model(
    tasks: list[dict[str, Any]], demo_folder: Path, demo_artifact: Path
) -> None:
    theirs = evaluate(HFLM(pretrained=str(demo_folder), device="cpu", dtype="float32", batch_size=1), tasks)
    ours = evaluate(ProSparseLM(str(demo_artifact), threads=1), tasks)
    for task in ("local_choice", "local_last_word", "local_text"):
        expected, actual = (sorted(r["samples"][task], key=lambda s: s["doc_id"]) for r in (theirs, ours))
        assert len(expected) == len(actual) == ITEMS
        for e, a in zip(expected, actual, strict=True):
            assert e["doc"] == a["doc"]
            if task == "local_text":
                assert e["resps"] == a["resps"]
                continue
            for (log_e, greedy_e), (log_a, greedy_a) in zip(_flat(e), _flat(a), strict=True):
                assert log_a == pytest.approx(log_e, abs=1e-3)  # a few tokens, each within the bound of a logit
                assert greedy_a == greedy_e
            for metric in ("acc", "acc_norm"):
                assert e.get(metric) == a.get(metric)
    choice = ours["results"]["local_choice"]["acc,none"]
    assert choice == theirs["results"]["local_choice"]["acc,none"] > 0.3  # chance is 0.25: the task is a task
    assert {s["filtered_resps"][0] for s in ours["samples"]["local_text"]} != {""}


def _flat(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    return [(float(r[0]), str(r[1]) == "True") for r in (response[0] for response in sample["resps"])]


def test_a_batch_and_the_function_bodies_score_the_same(tasks: list[dict[str, Any]], demo_artifact: Path) -> None:
    alone, batch, dense = (
        evaluate(ProSparseLM(str(demo_artifact), threads=1, **options), tasks[:1])["samples"]["local_choice"]
        for options in ({}, {"batch_size": 8}, {"library": "False"})
    )
    for one, *others in zip(alone, batch, dense, strict=True):
        for other in others:
            for (log_a, greedy_a), (log_b, greedy_b) in zip(_flat(one), _flat(other), strict=True):
                assert log_a == pytest.approx(log_b, abs=1e-3)
                assert greedy_a == greedy_b


@dataclass
class Generation:
    args: tuple[str, dict[str, Any]]


def test_a_batch_generates_the_same_texts_in_order(demo_artifact: Path) -> None:
    """Prompts of unlike lengths, options of three kinds in turns, ends by stop text, by end token and by the limit."""
    words = default_text().split()
    ends_at = {"until": [".", ","], "max_gen_toks": 24}
    sampled = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    kinds = [ends_at, {"until": "the", "max_gen_toks": 12}, ends_at, sampled]
    contexts = [" ".join(words[40 * k : 40 * k + 3 + (7 * k) % 31]) for k in range(26)]
    requests = [Generation((context, kinds[k % len(kinds)])) for k, context in enumerate(contexts)]
    alone, batch = ProSparseLM(str(demo_artifact), threads=1), ProSparseLM(str(demo_artifact), threads=1, batch_size=8)
    # A token that ends a text, though not a batch: the commonest first one of the greedy texts that has a letter.
    firsts = [int(next(alone.model.stream([alone.tok_encode(c)], max_new_tokens=1))[0]) for c in contexts[::2]]
    end = Counter(t for t in firsts if alone.tokenizer.decode([t]).strip().isalpha()).most_common(1)[0][0]
    for model in (alone, batch):
        model.model = replace(model.model, stop=frozenset([end]))
    steps = Counter[int]()
    stream = SparseModel.stream

    def counted(self: SparseModel, prompts: Any, **options: Any) -> Any:
        steps[len(prompts)] += 1
        return stream(self, prompts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseModel, "stream", counted)
        expected = [alone.generate_until([request], disable_tqdm=True)[0] for request in requests]
        assert steps == {1: 26}
        assert alone.generate_until(requests, disable_tqdm=True) == expected
        steps.clear()
        actual = batch.generate_until(requests, disable_tqdm=True)
    assert actual == expected
    assert steps == {8: 1, 5: 1, 7: 1, 1: 6}  # 13 of the first kind, 7 of the second, 6 sampled
    assert [expected[2 * k] for k, first in enumerate(firsts) if first == end] == [""] * firsts.count(end)
    assert len(set(expected)) > 15


def test_rolling_is_the_hugging_face_models(demo_folder: Path, demo_artifact: Path) -> None:
    class Request:
        args = (default_text()[:3000],)

    ours = ProSparseLM(str(demo_artifact), max_length=64)
    theirs = HFLM(pretrained=str(demo_folder), device="cpu", dtype="float32", batch_size=1, max_length=64)
    (actual,) = ours.loglikelihood_rolling([Request()], disable_tqdm=True)
    (expected,) = theirs.loglikelihood_rolling([Request()], disable_tqdm=True)
    count = len(ours.tok_encode(Request.args[0]))
    assert count > 200
    assert actual == pytest.approx(expected, abs=2e-4 * count)


def test_the_command_scores_as_in_process(tasks: list[dict[str, Any]], demo_artifact: Path, tmp_path: Path) -> None:
    """``prosparse-lm-eval`` in a separate process, on tasks in YAML files, without a network."""
    data = tmp_path / "ten.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items()[:10]))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
    ten: list[dict[str, Any]] = [{**task, "dataset_kwargs": source} for task in tasks]
    for task in ten:
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    names = [task["task"] for task in ten]
    command = [str(Path(sysconfig.get_path("scripts")) / "prosparse-lm-eval"), "run", "--model", "prosparse"]
    command += ["--model_args", f"path={demo_artifact},threads=1", "--batch_size", "4", "--tasks", ",".join(names)]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json"), "--log_samples"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=offline)
    assert child.returncode == 0, child.stderr
    (written,) = tmp_path.glob("out_*.json")
    actual = json.loads(written.read_text())
    assert actual["config"]["model"] == "prosparse"
    expected = evaluate(ProSparseLM(str(demo_artifact), threads=1), ten)
    for name in names:
        assert actual["n-samples"][name]["effective"] == 10
        metrics = {k for k, v in expected["results"][name].items() if "," in k and not isinstance(v, str)}
        assert len(metrics) >= 1
        for metric in metrics:
            assert actual["results"][name][metric] == pytest.approx(expected["results"][name][metric], rel=1e-3), metric
        (samples,) = tmp_path.glob(f"samples_{name}_*.jsonl")
        answers = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [a["doc"] for a in answers] == [s["doc"] for s in expected["samples"][name]]
        if name == "local_text":
            assert [a["resps"] for a in answers] == [s["resps"] for s in expected["samples"][name]]
