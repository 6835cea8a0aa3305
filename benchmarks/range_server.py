"""A web server that answers slowly, or badly: byte ranges, keep-alive, faults.

python benchmarks/range_server.py FOLDER [--latency-ms 30] [--fail 0.05] [--reset 0.01] ...
python benchmarks/range_server.py http://127.0.0.1:9000 [--fail 0.05] ...

It serves a folder, or passes requests on to another server. It prints its port on the first line
and runs until it is killed. Each share of requests that `--fail`, `--reset`, `--cut` and `--stall`
name gets a 503, a closed connection, a body that ends early, or a wait of `--stall-s` in the middle
of the body. `/.counts` answers what was served.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import email.utils
import json
import os
import random
import re
from pathlib import Path
from urllib import parse

REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Not Satisfiable"}
FAULTS = ("fail", "reset", "cut", "stall")
END = b"\r\n\r\n"


@dataclasses.dataclass
class Answer:
    """Head, without its last empty line, and body."""

    head: bytes
    body: bytes


class Folder:
    """Answers from the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[tuple[str, int, int], int] = {}

    async def answer(self, request: bytes, links: dict[str, object]) -> Answer:
        """Answer GET or HEAD."""
        method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
        path = self.folder / parse.unquote(target.lstrip("/"))
        if not path.is_file():
            return respond(404, b"", {})
        status = path.stat()
        size = status.st_size
        headers = {
            "ETag": f'"{status.st_mtime_ns:x}-{size:x}"',
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
        }
        asked = re.search(rb"\r\nrange: *bytes=(\d+)-(\d*)\r\n", request, re.I)
        if not asked:
            body = self._read(path, 0, size) if method == "GET" else b""
            return respond(200, body, {**headers, "Content-Length": str(size)})
        begin = int(asked[1])
        end = min(int(asked[2]) + 1 if asked[2] else size, size)
        if begin >= end:
            return respond(416, b"", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return respond(206, self._read(path, begin, end - begin), headers)

    def _read(self, path: Path, offset: int, length: int) -> bytes:
        status = path.stat()
        version = (str(path), status.st_ino, status.st_mtime_ns)
        if version not in self.files:
            self.files[version] = os.open(path, os.O_RDONLY)
        return os.pread(self.files[version], length, offset)


class Upstream:
    """Passes requests without a body on to another server, one connection per client."""

    def __init__(self, address: str) -> None:
        place = parse.urlsplit(address)
        self.host, self.port = place.hostname, place.port

    async def answer(self, request: bytes, links: dict[str, object]) -> Answer:
        """What the other server answers."""
        if "pair" not in links:
            links["pair"] = await asyncio.open_connection(self.host, self.port)
        reader, writer = links["pair"]
        writer.write(request)
        head = (await reader.readuntil(END))[: -len(END)]
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        wanted = 0 if request.startswith(b"HEAD") or not length else int(length[1])
        body = await reader.readexactly(wanted)
        if re.search(rb"\r\nconnection: *close", head, re.I):
            writer.close()
            del links["pair"]
            head = re.sub(rb"\r\nconnection: *close", b"", head, flags=re.I)
        return Answer(head, body)


class Server:
    """Adds latency and faults; `counts` holds requests, bytes of bodies and faults by name."""

    def __init__(self, origin: Folder | Upstream, options: argparse.Namespace) -> None:
        self.origin = origin
        self.options = options
        self.random = random.Random(0)
        self.counts: collections.Counter[str] = collections.Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it."""
        links: dict[str, object] = {}
        try:
            while await self._answer(await reader.readuntil(END), writer, links):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            if "pair" in links:
                links["pair"][1].close()

    async def _answer(
        self, request: bytes, writer: asyncio.StreamWriter, links: dict[str, object]
    ) -> bool:
        """Answer one request; whether the connection stays open."""
        method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
        if target == "/.counts":
            told = respond(200, json.dumps(self.counts).encode(), {})
            writer.write(told.head + END + told.body)
            return True
        await asyncio.sleep(self.options.latency_ms / 1000)
        self.counts[method] += 1
        answer = await self.origin.answer(request, links)
        if answer.head[9:10] != b"2":
            writer.write(answer.head + END + answer.body)
            return True
        fault = self._fault(bool(answer.body))
        if fault == "fail":
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        half = len(answer.body) // 2 if fault in ("cut", "stall") else len(answer.body)
        writer.write(answer.head + END + answer.body[:half])
        self.counts["bytes"] += half
        if fault == "cut":
            await writer.drain()
            return False
        if fault == "stall":
            await asyncio.sleep(self.options.stall_s)
            writer.write(answer.body[half:])
            self.counts["bytes"] += len(answer.body) - half
        return True

    def _fault(self, body: bool) -> str:
        draw = self.random.random()
        for fault in FAULTS:
            draw -= getattr(self.options, fault)
            if draw < 0:
                if fault in ("cut", "stall") and not body:
                    return ""
                self.counts[fault] += 1
                return fault
        return ""


def respond(status: int, body: bytes, headers: dict[str, str]) -> Answer:
    """An answer; `headers` may name another length than that of `body`."""
    lines = {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **headers}
    head = f"HTTP/1.1 {status} {REASONS[status]}"
    return Answer("\r\n".join([head, *(f"{k}: {v}" for k, v in lines.items())]).encode(), body)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("origin", help="folder, or address of another server")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--stall-s", type=float, default=2.0)
    for fault in FAULTS:
        parser.add_argument(f"--{fault}", type=float, default=0.0, help="share of requests")
    options = parser.parse_args()
    remote = options.origin.startswith("http://")
    origin = Upstream(options.origin) if remote else Folder(Path(options.origin))
    server = await asyncio.start_server(Server(origin, options).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
