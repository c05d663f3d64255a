"""A server that asks for a login, and what is asked of it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import urllib3

import avb_service

SECRETS = Path(__file__).parents[2] / "deploy" / "secrets.sh"


@contextmanager
def serving(store: str, secrets: Path, log: Path, artifacts: str | None = None) -> Iterator[str]:
    """`avb ui --secrets` on a tracking file or another database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {"MLFLOW_TRACKING_URI": store, **({"AVB_ARTIFACTS": artifacts} if artifacts else {})}
    arguments = ["ui", "--port", str(port), "--secrets", str(secrets)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from avb_service.cli import main; main()", *arguments],
            env={**os.environ, **ours},
            cwd=log.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            patient = urllib3.Retry(total=None, connect=400, read=400, backoff_factor=0.1, backoff_max=0.5)
            try:
                urllib3.request("GET", f"http://127.0.0.1:{port}/health", retries=patient)
            except urllib3.exceptions.MaxRetryError:
                pytest.fail(f"the server does not answer; its log:\n{log.read_text()[-3000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def samples(uri: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", uri)
        return avb_service.load("models:/kept@champion").sample(4, seed=3)
