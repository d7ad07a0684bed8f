# SPDX-License-Identifier: GPL-3.0-or-later
"""The chat application of this scenario, spoken to through ssh, and a server that turns text into vectors."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import testinfra
from conftest import INVENTORY, SSH_CONFIG, playbook

WEB, DATA = "chatweb1", "chatdata1"
DOCUMENTS = ("-e", f"@{INVENTORY.parent}/vars/documents.yml")
OLD = ("-e", f"@{INVENTORY.parent}/vars/old.yml")
KEPT = "/var/lib/onprem-llm/openwebui"


def host(name: str) -> Any:
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG))


def web(*arguments: str) -> Any:
    """One run of the stage."""
    return playbook("playbooks/web.yml", *DOCUMENTS, *arguments)


def way_back() -> Any:
    return playbook("playbooks/rollback.yml", *DOCUMENTS, "-e", "rollback=openwebui", "--limit", WEB)


def sql(command: str) -> str:
    return str(host(DATA).check_output("cd / && runuser -u postgres -- psql -AtX -d openwebui -c %s", command))


class Words(http.server.BaseHTTPRequestHandler):
    """Speaks OpenAI's embeddings: each word of a text adds to one of 64 numbers, so like texts have like vectors."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        texts = [asked] if isinstance(asked, str) else asked
        body = json.dumps({"data": [{"index": i, "embedding": vector(text)} for i, text in enumerate(texts)]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def vector(text: str) -> list[float]:
    numbers = [0.01] * 64
    for word in re.findall(r"\w+", text.lower()):
        numbers[hashlib.sha256(word.encode()).digest()[0] % 64] += 1
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def embeddings() -> http.server.ThreadingHTTPServer:
    """The server, at the address that the inventory names."""
    server = http.server.ThreadingHTTPServer(("10.77.232.1", 8099), Words)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Chat:
    """The application as its users see it, through a tunnel."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.tunnel = subprocess.Popen(
            ["ssh", "-F", str(SSH_CONFIG), "-o", "ControlPath=none", "-N", "-L", f"{self.port}:127.0.0.1:3000", WEB]
        )

    def close(self) -> None:
        self.tunnel.terminate()
        self.tunnel.wait()

    def ask(self, path: str, body: Any = None, token: str = "", kind: str = "application/json") -> tuple[int, Any]:
        """Status and answer of a GET, or of a POST when there is a body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        request.add_header("Content-Type", kind)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        except OSError as error:
            return 0, str(error)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def must(self, path: str, body: Any = None, token: str = "", kind: str = "application/json") -> Any:
        status, answer = self.ask(path, body, token, kind)
        assert status == 200, f"{path}: {status} {str(answer)[:500]}"
        return answer

    def ready(self) -> bool:
        return self.ask("/ready")[0] == 200

    def version(self) -> str:
        return str(self.must("/api/version")["version"])

    def sign_in(self, email: str, password: str) -> str:
        return str(self.must("/api/v1/auths/signin", {"email": email, "password": password})["token"])

    def upload(self, token: str, name: str, text: bytes) -> str:
        edge = "edge-of-a-part"
        head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain'
        body = f"--{edge}\r\n{head}\r\n\r\n".encode() + text + f"\r\n--{edge}--\r\n".encode()
        identity = str(
            self.must("/api/v1/files/?process=true", body, token, f"multipart/form-data; boundary={edge}")["id"]
        )
        for _ in range(60):
            status = self.must(f"/api/v1/files/{identity}", token=token)["data"].get("status")
            if status == "completed":
                return identity
            assert status != "failed"
            time.sleep(1)
        raise AssertionError(f"{name} was not read")


class Content:
    """What people put in, and whether it is all there."""

    def __init__(self, chat: Chat, admin_password: str) -> None:
        self.chat, self.admin_password = chat, admin_password
        self.people = {f"{name}@chat.test": f"Long-password-of-{name}-1" for name in ("ada", "bo", "cho")}
        self.chats: dict[str, dict[str, str]] = {}
        self.file, self.collection = "", ""
        self.text = b"The access code of the Kelora server is QX-4711.\nThe cellar of the north house is kept dry."

    def token(self, email: str) -> str:
        return self.chat.sign_in(email, self.people[email])

    def fill(self) -> None:
        admin = self.chat.sign_in("admin@localhost.localdomain", self.admin_password)
        for email, password in self.people.items():
            person = {"name": email.partition("@")[0], "email": email, "password": password, "role": "user"}
            self.chat.must("/api/v1/auths/add", person, admin)
        for email in self.people:
            self.say(email, f"what {email} asked")
        token = self.token("ada@chat.test")
        self.file = self.chat.upload(token, "codes.txt", self.text)
        made = self.chat.must("/api/v1/knowledge/create", {"name": "Codes", "description": "of servers"}, token)
        self.collection = made["id"]
        self.chat.must(f"/api/v1/knowledge/{self.collection}/file/add", {"file_id": self.file}, token)

    def say(self, email: str, words: str) -> str:
        message = {"id": "m1", "role": "user", "content": words, "parentId": None, "childrenIds": []}
        new = {"title": words[:20], "messages": [message], "history": {"messages": {"m1": message}, "currentId": "m1"}}
        identity = str(self.chat.must("/api/v1/chats/new", {"chat": new}, self.token(email))["id"])
        self.chats.setdefault(email, {})[identity] = words
        return identity

    def check(self) -> None:
        """Every account signs in, every chat reads as it was written, the document is found by meaning and is whole."""
        for email, chats in self.chats.items():
            token = self.token(email)
            listed = {chat["id"] for chat in self.chat.must("/api/v1/chats/?page=1", token=token)}
            assert listed == set(chats), email
            for identity, words in chats.items():
                kept = self.chat.must(f"/api/v1/chats/{identity}", token=token)["chat"]
                assert kept["history"]["messages"]["m1"]["content"] == words
        token = self.token("ada@chat.test")
        assert self.chat.ask(f"/api/v1/files/{self.file}/content", token=token) == (200, self.text)
        query = {"collection_names": [self.collection], "query": "access code of the Kelora server", "k": 1}
        found = self.chat.must("/api/v1/retrieval/query/collection", query, token)
        assert "QX-4711" in found["documents"][0][0], found
