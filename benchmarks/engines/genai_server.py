"""onnxruntime-genai behind an OpenAI-compatible API, one request at a time: its continuous batching is CUDA-only.

python benchmarks/engines/genai_server.py FOLDER PORT --threads 2
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import onnxruntime_genai as og
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def application(folder: str, threads: int) -> Starlette:
    """Return the application for a genai folder."""
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    turn = asyncio.Lock()

    async def chunks(ids: list[int], count: int) -> AsyncIterator[str]:
        async with turn:
            parameters = og.GeneratorParams(model)
            parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
            generator = og.Generator(model, parameters)
            await asyncio.to_thread(generator.append_tokens, np.asarray(ids, np.int32))
            stream, tokens = tokenizer.create_stream(), 0
            while not generator.is_done():
                await asyncio.to_thread(generator.generate_next_token)
                tokens += 1
                yield event({"choices": [{"index": 0, "text": stream.decode(generator.get_next_tokens()[0]) or "?"}]})
            usage = {"prompt_tokens": len(ids), "completion_tokens": tokens}
            yield event({"choices": [], "usage": usage}) + "data: [DONE]\n\n"

    async def completions(request: Request) -> Response:
        body = await request.json()
        return StreamingResponse(chunks(body["prompt"], body["max_tokens"]), media_type="text/event-stream")

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "genai", "object": "model"}]})

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"]), Route("/v1/models", models)])


def event(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    uvicorn.run(application(arguments.folder, arguments.threads), port=arguments.port, log_level="warning")
