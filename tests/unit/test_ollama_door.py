# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's door: whom it lets in, to what, and when it gives up. What is behind it here only notes what arrives."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_exposure import rendered

PATH = Path(__file__).parents[2] / "roles/ollama/files/door.py"
KEY, FORMER = "k" * 32, "f" * 32
CHAT = json.dumps({"model": "tiny", "messages": []}).encode()
Way = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Behind:
    """In the place of Ollama: keeps each request, and answers a word every tenth of a second until nobody listens."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.left = asyncio.Event()
        self.words = 3

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = int(re.search(r"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        self.bodies.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(self.words):
            writer.write(b"word ")
            await asyncio.sleep(0.1)
            if reader.at_eof():
                self.left.set()
                break
        writer.close()


def run(test: Callable[[Any, Behind, Callable[..., Coroutine[Any, Any, bytes]]], Coroutine[Any, Any, None]]) -> None:
    """The test with the door, what is behind it, and a way to send bytes to it."""

    async def body() -> None:
        spec = importlib.util.spec_from_file_location("door", PATH)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        behind = Behind()
        inner = await asyncio.start_server(behind, "127.0.0.1", 0)
        module.PORT = inner.sockets[0].getsockname()[1]
        door = module.Door("tiny", "chat", 0, f"{KEY}\n{FORMER}")
        door.why, door.module = "", module
        outer = await asyncio.start_server(door.let_in, "127.0.0.1", 0)
        address = outer.sockets[0].getsockname()

        async def send(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(data)
            found = await reader.read()
            writer.close()
            return found

        send.address = address  # type: ignore[attr-defined]
        async with inner, outer:
            await asyncio.wait_for(test(door, behind, send), 30)

    asyncio.run(body())


def request(path: str = "/v1/chat/completions", method: str = "POST", key: str = KEY, body: bytes = CHAT) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {key}\r\nX-Real-IP: 1.2.3.4\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_who_has_the_key_is_let_in() -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        assert (await send(request())).endswith(b"\r\n\r\nword word word ")
        assert behind.bodies == [CHAT]
        # Nothing of the client's head goes on.
        assert "evil" not in behind.heads[0] and KEY not in behind.heads[0] and "Real" not in behind.heads[0]
        assert behind.heads[0].startswith("POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b'"id": "tiny"' in await send(request("/v1/models?x", "GET"))
        again = request("/v1/models", "GET").replace(b"X-Real-IP", b"Via: 1.1 a\r\nVia: 1.1 b\r\nX-Real-IP")
        assert b'"id": "tiny"' in await send(again)
        # While one key follows another.
        assert b'"id": "tiny"' in await send(request("/v1/models", "GET", key=FORMER))

    run(test)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(key="wrong" * 8), 401),
        (request(key=""), 401),
        (request(key=f"{KEY} {FORMER}"), 401),
        (request().replace(b"Authorization", b"X-Authorization"), 401),
        (request("/api/tags", "GET", key=""), 401),
        (request("/api/create"), 404),
        (request("/api/delete", "DELETE"), 404),
        (request("/v1/chat/completions/"), 404),
        (request("/v1/../api/tags"), 404),
        (request("http://127.0.0.1:11434/api/tags", "GET"), 404),
        (request(method="GET"), 405),
        (request("/v1/models"), 405),
        (request("/health"), 404),
        (request().replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nContent-Length: "), 411),
        (request().replace(b"Content-Length: ", b"content-length: 1\r\nContent-Length: "), 400),
        (request().replace(b"Authorization", b"Authorization: Bearer x\r\nAuthorization"), 400),
        (request().replace(b"Content-Length: ", b"Content-Length: +"), 400),
        (request().replace(b"Content-Length:", b"Content-Length :"), 400),
        (request().replace(b"Content-Length: ", b"Content-Length: 9999999"), 413),
        (request().replace(b"HTTP/1.1", b"HTTP/2"), 400),
        (b"hello\r\n\r\n", 400),
    ],
)
def test_nobody_and_nothing_else_is(asked: bytes, status: int) -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        assert (await send(asked)).startswith(f"HTTP/1.1 {status} ".encode())
        assert behind.heads == []

    run(test)


def test_what_follows_a_request_goes_nowhere() -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        await send(request() + request("/api/delete", "DELETE"))
        assert len(behind.heads) <= 1 and not any("delete" in one for one in behind.heads)
        assert b"delete" not in b"".join(behind.bodies)

    run(test)


def test_who_leaves_is_not_answered_any_longer() -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        behind.words = 200
        reader, writer = await asyncio.open_connection(*send.address)
        writer.write(request())
        await reader.readuntil(b"word ")
        writer.close()
        await asyncio.wait_for(behind.left.wait(), 5)

    run(test)


def test_while_the_model_loads_others_are_asked() -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        door.why = "tiny is being loaded"
        assert (await send(request())).startswith(b"HTTP/1.1 503 ")
        assert (await send(b"GET /health HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        door.why = ""
        assert (await send(b"GET /health HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert behind.heads == []

    run(test)


def test_a_fall_back_to_the_cpu_ends_the_service() -> None:
    async def test(door: Any, behind: Behind, send: Any) -> None:
        said: list[Any] = [{"models": []}, {}, {"models": [{"name": "tiny:latest", "size_vram": 2**28}]}]
        asked = []

        def ask(path: str, body: Any = None) -> Any:
            asked.append((path, body))
            return said.pop(0)

        door.module.ask, door.gpu_bytes = ask, 2**30
        with pytest.raises(
            door.module.Useless, match=r"has 1\.0 GiB of tiny on the GPU, and Ollama put 0\.2 GiB there"
        ):
            await door.watch()
        assert asked[1] == ("/api/generate", {"model": "tiny", "keep_alive": -1})
        assert door.why == "tiny is being loaded"

    run(test)


def test_the_socket_is_the_only_way_in() -> None:
    """T1: the service has a network of its own; who may use the socket is the socket's."""
    given = {"ollama_clients": ["web1"], "models_dir": "/srv/llm/models", "ollama_placements": []}
    unit = rendered("ollama", "ollama@.service.j2", **given)
    assert re.search(r"(?m)^PrivateNetwork=yes$", unit) and re.search(r"(?m)^LoadCredential=api_key:", unit)
    assert re.search(r"(?m)^IPAddressDeny=any\nIPAddressAllow=localhost$", unit)
    socket = rendered("ollama", "model.socket.j2", item={"model": "tiny", "port": 9101}, **given)
    assert "\nListenStream=192.0.2.11:9101\n" in socket and "\nPartOf=ollama@tiny.service\n" in socket
    assert re.search(r"(?m)^IPAddressDeny=any\nIPAddressAllow=localhost 192\.0\.2\.11 192\.0\.2\.12$", socket)
    alone = rendered(
        "ollama", "model.socket.j2", item={"model": "tiny", "port": 9101}, **{**given, "ollama_clients": []}
    )
    assert "\nListenStream=127.0.0.1:9101\n" in alone and alone.rstrip().endswith("IPAddressAllow=localhost")
