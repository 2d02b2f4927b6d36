"""A real S3 server, moto's, in a process of its own; and a proxy before it whose connections break on demand."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


@contextmanager
def s3_bucket(address: str = "127.0.0.1") -> Iterator[str]:
    """Yield the URL of a bucket; the environment names the server, at this address, and its keys meanwhile."""
    pytest.importorskip("moto", reason="needs moto[server] and s3fs: the remote extra")
    s3fs = pytest.importorskip("s3fs", reason="needs moto[server] and s3fs: the remote extra")
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    endpoint = f"http://{address}:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with s3_environment(endpoint):
            _wait_for(endpoint)
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("caches")
            yield "s3://caches"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def s3_environment(endpoint: str) -> Iterator[None]:
    """Make this server the one that `s3://` means, here and in the processes started meanwhile."""
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    settings |= {"AWS_DEFAULT_REGION": "us-east-1", "FSSPEC_S3_ENDPOINT_URL": endpoint}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait_for(endpoint: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(endpoint).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(endpoint)


class BreakingProxy:
    """Passes bytes between its port and another; `broken` connections from now on are closed without an answer."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.target = (host, int(port))
        self.broken = 0
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "BreakingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.broken:
                self.broken -= 1
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
