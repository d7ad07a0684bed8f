# SPDX-License-Identifier: GPL-3.0-or-later
"""The door of one model. Ollama asks for no key, and lets whoever reaches it create, pull and delete.

It runs behind this program, as its child, in a network of their own where nothing else is: the one socket that leads
in is handed over by systemd. Let in are those with the key, to a few paths, one request per connection. The model is
loaded before the first request and stays; when less of it lies on the GPU than the plan put there, the service ends and
says so.

Environment: DOOR_MODEL, DOOR_KIND (chat, embedding), DOOR_GPU_BYTES (weights that the plan has on GPUs), DOOR_OLLAMA
(the program).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

ADDRESS, PORT = "127.0.0.1", 11434
#: What may be asked of Ollama. Never /api: it creates, copies, pulls, pushes and deletes.
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
#: An empty request loads a model.
LOAD = {"chat": "/api/generate", "embedding": "/api/embed"}
#: Of a model that is named without one.
TAG = "latest"
#: Fields by whose second value two programs could understand two requests.
ONCE = ("authorization", "content-length", "host", "transfer-encoding")
MOST = 32 << 20
"""Bytes of a request's body."""


class Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Useless(Exception):
    """The service cannot do what the plan says. The text is the last line of its journal."""


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """One request to Ollama itself, as long as it takes. OSError: nobody listens yet; Useless: it refused."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{ADDRESS}:{PORT}{path}", data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Useless(
            f"Ollama answered {path} with {error.code}: {error.read(2000).decode(errors='replace').strip()}"
        ) from error


def parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and fields of a request. What two programs could read in two ways is refused."""
    line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "This is no request of HTTP/1.")
    fields: dict[str, str] = {}
    for one in lines:
        name, colon, value = one.partition(":")
        if not colon or name != name.strip() or (name.lower() in fields and name.lower() in ONCE):
            raise Refused(400, "A field of the request's head is no field, or comes twice.")
        fields[name.lower()] = value.strip()
    if "transfer-encoding" in fields:
        raise Refused(411, "Send a Content-Length; this server takes no chunks.")
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "The Content-Length is no number.")
    if int(length) > MOST:
        raise Refused(413, f"The body has {length} bytes; at most {MOST} are taken.")
    return words[0], words[1].partition("?")[0], fields


class Door:
    def __init__(self, model: str, kind: str, gpu_bytes: int, keys: str) -> None:
        """``keys``: one a line, and each is accepted."""
        self.model, self.kind, self.gpu_bytes = model, kind, gpu_bytes
        self.keys = [f"Bearer {key}".encode() for key in keys.split()]
        self.why = "Ollama is starting"
        """Why no request can be answered now; empty when it can."""

    async def watch(self) -> None:
        """Keeps the model loaded, and looks where it lies."""
        while True:
            try:
                running = (await asyncio.to_thread(ask, "/api/ps"))["models"]
                found = next((one for one in running if one["name"] == f"{self.model}:{TAG}"), None)
                if found is None:
                    self.why = f"{self.model} is being loaded"
                    await asyncio.to_thread(ask, LOAD[self.kind], {"model": self.model, "keep_alive": -1})
                    continue
                if found["size_vram"] < self.gpu_bytes / 2:
                    raise Useless(
                        f"The plan has {self.gpu_bytes / 2**30:.1f} GiB of {self.model} on the GPU, and Ollama put "
                        f"{found['size_vram'] / 2**30:.1f} GiB there: it would compute on the CPU. The driver may be "
                        "older than 550, or was updated without a restart: see nvidia-smi, run playbooks/drivers.yml."
                    )
                self.why = ""
            except OSError as error:
                self.why = f"Ollama does not answer: {error}"
            await asyncio.sleep(1 if self.why else 5)

    async def let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            try:
                await self.answer(*parse(head), reader, writer)
            except Refused as refused:
                await reply(writer, refused.status, {"error": {"message": str(refused), "code": refused.status}})
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass  # The client, or Ollama, is gone.
        finally:
            writer.close()

    async def answer(
        self, method: str, path: str, fields: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if (method, path) == ("GET", "/health"):
            return await reply(writer, 503 if self.why else 200, {"status": self.why or "ok"})
        given = fields.get("authorization", "").encode()
        if not any([hmac.compare_digest(given, key) for key in self.keys]):
            raise Refused(401, "Wrong or missing key.")
        if (method, path) == ("GET", "/v1/models"):
            listed = {"id": self.model, "object": "model", "owned_by": "ollama"}
            return await reply(writer, 200, {"object": "list", "data": [listed]})
        if path not in (*PATHS, "/v1/models"):
            raise Refused(404, f"There is no {path} here.")
        if method != "POST" or path not in PATHS:
            raise Refused(405, f"{path} takes no {method}.")
        if self.why:
            raise Refused(503, self.why)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        try:
            inside, out = await asyncio.open_connection(ADDRESS, PORT)
        except OSError as error:
            raise Refused(503, f"Ollama does not answer: {error}") from error
        try:
            # Nothing of the client's head goes on: neither the key nor a name of a host.
            out.write(
                f"POST {path} HTTP/1.1\r\nHost: {ADDRESS}:{PORT}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await pass_on(inside, writer, reader)
        finally:
            out.close()


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, client: asyncio.StreamReader) -> None:
    """Bytes as they come, to the end, or until the client leaves: Ollama then stops to compute."""
    gone = asyncio.ensure_future(client.read(1))
    try:
        while True:
            more = asyncio.ensure_future(source.read(1 << 16))
            await asyncio.wait({more, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not more.done():
                more.cancel()
                return
            if not (data := more.result()):
                return
            target.write(data)
            await target.drain()
    finally:
        gone.cancel()


async def reply(writer: asyncio.StreamWriter, status: int, data: Any) -> None:
    body = json.dumps(data).encode()
    writer.write(
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body
    )
    await writer.drain()


async def main() -> int:
    keys = Path(os.environ["CREDENTIALS_DIRECTORY"], "api_key").read_text(encoding="utf-8")
    door = Door(os.environ["DOOR_MODEL"], os.environ["DOOR_KIND"], int(os.environ["DOOR_GPU_BYTES"]), keys)
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "CREDENTIALS_", "DOOR_"))
    }
    ollama = await asyncio.create_subprocess_exec(os.environ["DOOR_OLLAMA"], "serve", env=ours)
    server = await asyncio.start_server(door.let_in, sock=socket.socket(fileno=3), backlog=512)
    watch, ended = asyncio.ensure_future(door.watch()), asyncio.ensure_future(ollama.wait())
    async with server:
        await asyncio.wait({watch, ended}, return_when=asyncio.FIRST_COMPLETED)
    print(
        f"door: ollama serve ended with {ended.result()}" if ended.done() else f"door: {watch.exception()}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
