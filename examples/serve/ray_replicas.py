"""Replicas of a server with Ray Serve, each with its own copy of the model and its own threads.

    pip install "ray[serve]" '.[serve]'
    python examples/serve/ray_replicas.py out/model/demo.onnx --replicas 2 --threads 1

On a cluster, Ray places replicas on all machines; each needs the artifact at the same path.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray import serve


@serve.deployment
class Replica:
    """One server: Ray passes HTTP requests on to its ASGI application."""

    def __init__(self, path: Path, threads: int, max_batch: int) -> None:
        from prosparse_export.serve.app import create_app
        from prosparse_export.serve.server import ServeOptions, open_service

        service, _ = open_service(path, ServeOptions(threads=threads, max_batch=max_batch))
        service.engine.start()
        self._engine = service.engine
        self._app = create_app(service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)

    def __del__(self) -> None:
        self._engine.stop()


def main() -> None:
    """Start the replicas and wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx_file", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--max-batch", type=int, default=8, help="of each replica")
    arguments = parser.parse_args()
    deployment = Replica.options(
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.threads},
        max_ongoing_requests=4 * arguments.max_batch,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(deployment.bind(arguments.onnx_file.resolve(), arguments.threads, arguments.max_batch), blocking=True)


if __name__ == "__main__":
    main()
