"""Publish in a master process, fork workers that answer HTTP, and reload them without a restart, as gunicorn --preload.

python packages/zerocopy/examples/prefork_server.py [WORKERS] [PORT] [DIRECTORY]

A GET of `/` answers with the version and the worker's process id. A POST of `/publish` makes the master publish the
next version; each worker uses it from its next request on. Ctrl-C or SIGTERM ends the master and the workers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import torch
from torch import nn

import zerocopy

torch.set_num_threads(1)


def build(version: int) -> nn.Module:
    """Build the model of a version: it adds that number to what it is given."""
    layer = nn.Linear(1024, 1024)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(1024))
        layer.bias.fill_(float(version))
    return layer.eval()


def serve(listener: socket.socket, name: str, directory: str | None) -> None:
    """Answer requests in one worker. The kernel hands each connection to one of the workers that wait."""
    live = zerocopy.follow(name, directory=directory)

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_GET(self) -> None:
            """Answer with the current version's output for zeros."""
            ref, model = live.get()
            with torch.no_grad():
                answer = model(torch.zeros(1, 1024))[0, 0].item()
            self._reply({"version": ref.version, "answer": answer, "worker": os.getpid()})

        def do_POST(self) -> None:
            """Ask the master for the next version."""
            os.kill(os.getppid(), signal.SIGUSR1)
            self._reply({"asked": os.getppid()})

        def _reply(self, value: dict[str, object]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = HTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def main(workers: int = 2, port: int = 8000, directory: str | None = None) -> None:
    """Publish, fork, and publish again on request, until a signal ends it."""
    name = f"prefork-{os.getpid()}"
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    asked = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    ref = zerocopy.publish(build(1), name=name, directory=directory)
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, asked)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(listener, name, directory)
        children.append(child)
    print(f"version {ref.version} on port {listener.getsockname()[1]}, workers {children}", flush=True)
    while signal.sigwait(asked) == signal.SIGUSR1:
        ref = zerocopy.publish(build(ref.version + 1), name=name, directory=directory)
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    zerocopy.unpublish(ref)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
