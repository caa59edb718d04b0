"""`prosparse serve` after SIGTERM: running requests finish, or get an error when their time is over."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx2
import openai
import pytest
from support.server import LONG, serving

from prosparse_export.runtime.model import load

pytestmark = pytest.mark.integration
PROMPT = "The city of Paris is"


def test_a_signal_lets_running_requests_end(demo_artifact: Path) -> None:
    with serving(demo_artifact) as server:
        texts: list[str] = []

        def ask() -> None:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=300, temperature=0)
            texts.append(answer.choices[0].text)

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(200):
            if httpx2.get(f"{server.url}/health").json()["running"]:
                break
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert server.process.wait(30) == 0
        assert texts == [load(demo_artifact, threads=1).generate(PROMPT, max_new_tokens=300)]


def test_requests_that_outlast_drain_get_an_error(demo_artifact: Path) -> None:
    with serving(demo_artifact, "--drain", 1) as server:
        answers: dict[bool, httpx2.Response] = {}

        def ask(stream: bool) -> None:
            body = {**LONG, "n": 4, "max_tokens": 1900, "stream": stream}
            answers[stream] = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60)

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            if httpx2.get(f"{server.url}/health").json()["running"] == 8:
                break
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(30) == 0
        assert answers[False].status_code == 503
        assert "shutting down" in answers[False].json()["error"]["message"]
        assert "shutting down" in answers[True].text.splitlines()[-2]
        assert "shutting down: sequences left: 8, 1 s to finish" in server.log
        assert "Traceback" not in server.log
