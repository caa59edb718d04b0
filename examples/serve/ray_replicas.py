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


def deployment(path: Path, threads: int, max_batch: int) -> Any:
    """Return a deployment whose replicas each open the artifact ``path``."""

    def application() -> Any:
        from prosparse_export.serve.app import create_app
        from prosparse_export.serve.server import ServeOptions, open_service

        service, _ = open_service(path, ServeOptions(threads=threads, max_batch=max_batch))
        service.engine.start()
        return create_app(service)

    return serve.deployment(serve.ingress(application)())


def main() -> None:
    """Start the replicas and wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx_file", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--max-batch", type=int, default=8, help="of each replica")
    arguments = parser.parse_args()
    replicas = deployment(arguments.onnx_file.resolve(), arguments.threads, arguments.max_batch).options(
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.threads},
        max_ongoing_requests=4 * arguments.max_batch,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(replicas.bind(), blocking=True)


if __name__ == "__main__":
    main()
