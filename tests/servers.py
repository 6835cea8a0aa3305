"""Real servers for tests: processes that a test starts and stops."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "range_server.py"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}


@contextlib.contextmanager
def web(origin: Path | str, *options: str) -> Iterator[str]:
    """Address of a web server of a folder, or before another server.

    The options are those of benchmarks/range_server.py.
    """
    command = [sys.executable, str(SCRIPT), str(origin), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def counts(address: str) -> dict[str, int]:
    """What a web server has served so far."""
    with urllib.request.urlopen(f"{address}/.counts") as answer:
        return json.load(answer)


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """Address of a moto server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(process, f"{address}/moto-api/")
            yield address
        finally:
            process.kill()


def _wait(process: subprocess.Popen, address: str) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the S3 server did not start")


def bucket(address: str, name: str, objects: dict[str, bytes]) -> None:
    """Make a bucket that anyone may read."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_REGION"],
    )
    client.create_bucket(Bucket=name, ACL="public-read")
    for key, body in objects.items():
        client.put_object(Bucket=name, Key=key, Body=body, ACL="public-read")
