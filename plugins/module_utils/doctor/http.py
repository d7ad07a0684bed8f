# SPDX-License-Identifier: GPL-3.0-or-later
"""A small HTTPS client that always ends: verified, to a given address under a given name, within a deadline."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.doctor import tls

LIMIT = 8 * 1024 * 1024  # no answer the doctor asks for is bigger


class NoAnswer(Exception):
    """The service did not answer: no connection, no trust, no time, or no HTTP."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON, {} when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}

    def brief(self) -> str:
        """Status and the service's own words, for a person."""
        said = self.json()
        words = said.get("detail") or said.get("error") or said.get("message") if isinstance(said, dict) else ""
        if isinstance(words, dict):
            words = words.get("message") or words
        text = " ".join(str(words or "").split())
        return f"HTTP {self.status}" + (f": {text[:200]}" if text else "")


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass(frozen=True)
class Place:
    """Where the front door is: the name clients use, and the address to connect to (so DNS need not know it)."""

    name: str
    address: str
    https_port: int = 443
    http_port: int = 80

    def host(self, port: int, default: int) -> str:
        try:
            name = f"[{self.name}]" if ipaddress.ip_address(self.name).version == 6 else self.name
        except ValueError:
            name = self.name
        return name if port == default else f"{name}:{port}"

    @property
    def url(self) -> str:
        return f"https://{self.host(self.https_port, 443)}"


class Client:
    def __init__(self, place: Place, context: ssl.SSLContext, timeout: float, deadline: Deadline) -> None:
        self.place, self.context, self.timeout, self.deadline = place, context, timeout, deadline

    def _seconds(self, deadline: Deadline) -> float:
        left = min(self.timeout, deadline.left())
        if left <= 0:
            raise NoAnswer("there was no time left to ask")
        return left

    def connect(self) -> ssl.SSLSocket:
        """A verified connection. Raises what the socket or TLS raises."""
        raw = socket.create_connection((self.place.address, self.place.https_port), self._seconds(self.deadline))
        try:
            return self.context.wrap_socket(raw, server_hostname=self.place.name)
        except BaseException:
            raw.close()
            raise

    @contextmanager
    def _open(
        self, method: str, path: str, payload: bytes | None, headers: Mapping[str, str], plain: bool
    ) -> Iterator[tuple[http.client.HTTPResponse, socket.socket, Deadline]]:
        until = Deadline(self._seconds(self.deadline))
        where = f"{self.place.address}:{self.place.http_port if plain else self.place.https_port}"
        connection = http.client.HTTPConnection(self.place.name)
        try:
            sock = (
                socket.create_connection((self.place.address, self.place.http_port), self._seconds(until))
                if plain
                else self.connect()
            )
            connection.sock = sock
            sock.settimeout(self._seconds(until))
            host = self.place.host(self.place.http_port, 80) if plain else self.place.host(self.place.https_port, 443)
            connection.request(method, path, payload, {"Host": host, "Connection": "close", **headers})
            sock.settimeout(self._seconds(until))
            yield connection.getresponse(), sock, until
        except NoAnswer:
            raise
        except TimeoutError:
            raise NoAnswer(f"{where} took longer than {self.timeout:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"{where}: {tls.reason(error)}") from error
        finally:
            connection.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str = "",
        payload: bytes | None = None,
        content: str = "application/json",
        plain: bool = False,
    ) -> Answer:
        headers, payload = self._head(body, token, payload, content)
        with self._open(method, path, payload, headers, plain) as (response, sock, until):
            parts: list[bytes] = []
            size = 0
            while size < LIMIT and not response.isclosed():
                sock.settimeout(self._seconds(until))
                part = response.read1(65536)
                if not part:
                    break
                parts.append(part)
                size += len(part)
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, b"".join(parts))

    def events(self, path: str, body: Any, token: str) -> tuple[Answer, list[str]]:
        """Ask for a stream; the answer's head, and the `data:` of each event."""
        headers, payload = self._head(body, token, None, "application/json")
        found: list[str] = []
        with self._open("POST", path, payload, headers, False) as (response, sock, until):
            head = {k.lower(): v for k, v in response.headers.items()}
            if response.status != 200 or "text/event-stream" not in head.get("content-type", ""):
                return Answer(response.status, head, response.read(65536)), found
            while not response.isclosed():
                sock.settimeout(self._seconds(until))
                line = response.readline(LIMIT)
                if not line:
                    break
                if line.startswith(b"data:"):
                    found.append(line[5:].decode(errors="replace").strip())
                    if found[-1] == "[DONE]":
                        break
            return Answer(response.status, head, b""), found

    @staticmethod
    def _head(body: Any, token: str, payload: bytes | None, content: str) -> tuple[dict[str, str], bytes | None]:
        headers = {"Accept": "application/json, text/event-stream"}
        if body is not None:
            payload = json.dumps(body).encode()
        if payload is not None:
            headers["Content-Type"] = content
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers, payload


def form_file(name: str, text: str) -> tuple[bytes, str]:
    """A text file as a form upload: (body, content type)."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type:'
        " text/plain\r\n\r\n"
    )
    return f"{head}{text}\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
