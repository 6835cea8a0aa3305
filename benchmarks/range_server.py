"""A web server of one folder that answers slowly, or badly: byte ranges, keep-alive, faults.

python benchmarks/range_server.py FOLDER [--latency-ms 30] [--fail 0.05] [--reset 0.01] ...

It prints its port on the first line and serves until it is killed. Each share of requests that
`--fail`, `--reset`, `--cut` and `--stall` name gets a 503, a closed connection, a body that ends
early, or a wait of `--stall-s` in the middle of the body. `/.counts` answers what was served.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import email.utils
import json
import os
import random
import re
from pathlib import Path
from urllib import parse

REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Not Satisfiable"}
FAULTS = ("fail", "reset", "cut", "stall")


class Server:
    """Answers GET and HEAD; `counts` holds requests, bytes of bodies and faults by name."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.random = random.Random(0)
        self.counts: collections.Counter[str] = collections.Counter()
        self.files: dict[tuple[str, int, int], int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it."""
        try:
            while await self._answer(await reader.readuntil(b"\r\n\r\n"), writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
        name = parse.unquote(target.lstrip("/"))
        if name == ".counts":
            told = json.dumps(self.counts).encode()
            return self._send(writer, 200, told, {}, "counts")
        await asyncio.sleep(self.options.latency_ms / 1000)
        self.counts[method] += 1
        path = self.folder / name
        if not path.is_file():
            return self._send(writer, 404, b"", {}, method)
        fault = self._fault()
        if fault == "fail":
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        status = path.stat()
        size = status.st_size
        headers = {
            "ETag": f'"{status.st_mtime_ns:x}-{size:x}"',
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
        }
        asked = re.search(rb"\r\nrange: *bytes=(\d+)-(\d*)\r\n", request, re.I)
        if not asked:
            body = self._read(path, 0, size) if method == "GET" else bytes(0)
            headers["Content-Length"] = str(size)
            return self._send(writer, 200, body, headers, method)
        begin = int(asked[1])
        end = min(int(asked[2]) + 1 if asked[2] else size, size)
        if begin >= end:
            return self._send(writer, 416, b"", {"Content-Range": f"bytes */{size}"}, method)
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        body = self._read(path, begin, end - begin)
        headers["Content-Length"] = str(len(body))
        if fault in ("cut", "stall"):
            self._send(writer, 206, body[: len(body) // 2], headers, method)
            if fault == "cut":
                await writer.drain()
                return False
            await asyncio.sleep(self.options.stall_s)
            writer.write(body[len(body) // 2 :])
            return True
        return self._send(writer, 206, body, headers, method)

    def _fault(self) -> str:
        draw = self.random.random()
        for fault in FAULTS:
            draw -= getattr(self.options, fault)
            if draw < 0:
                self.counts[fault] += 1
                return fault
        return ""

    def _read(self, path: Path, offset: int, length: int) -> bytes:
        status = path.stat()
        version = (str(path), status.st_ino, status.st_mtime_ns)
        if version not in self.files:
            self.files[version] = os.open(path, os.O_RDONLY)
        return os.pread(self.files[version], length, offset)

    def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        headers: dict[str, str],
        method: str,
    ) -> bool:
        lines = {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\n{head}\r\n".encode())
        if method != "HEAD":
            writer.write(body)
        if method == "GET":
            self.counts["bytes"] += len(body)
        return True


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--stall-s", type=float, default=2.0)
    for fault in FAULTS:
        parser.add_argument(f"--{fault}", type=float, default=0.0, help="share of requests")
    options = parser.parse_args()
    server = await asyncio.start_server(
        Server(options.folder, options).serve, "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
