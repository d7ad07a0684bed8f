# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor at a front door that lies: each lie is a failed finding that says what to do.

The door is forged, so this proves refusals only. That a true door passes is proved on real hosts.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.onprem.llm.plugins.module_utils.doctor import front, judge, tls
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import (
    FAILED,
    NOT_ASKED,
    OK,
    DoctorError,
    Finding,
)
from ansible_collections.onprem.llm.plugins.module_utils.doctor.http import Place

NAME = "ai.example.test"
KEY, PASSWORD = "the-engine-key", "the-password"
NOW = datetime.datetime.now(datetime.timezone.utc)


# --- certificates ---------------------------------------------------------------------------------------------------


class Authority:
    def __init__(self, folder: Path, name: str = "test CA") -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        public = self.key.public_key()
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = (
            self._builder(self.name, public, 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.file = folder / f"{name}.crt".replace(" ", "-")
        self.file.write_text(self.pem)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=400))
            .not_valid_after(NOW + datetime.timedelta(days=days))
        )

    def issue(self, label: str, name: str = NAME, days: float = 365) -> tuple[Path, Path]:
        """(certificate, key) files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            self._builder(subject, key.public_key(), days)
            .add_extension(alternative, critical=False)
            .add_extension(authority, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        files = self.folder / f"{label}.crt", self.folder / f"{label}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# --- a front door that can lie --------------------------------------------------------------------------------------


@dataclass
class Door:
    """What it holds, and the lie it tells."""

    lie: str = ""
    knowledge: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    chats: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    asked: int = 0


class Handler(BaseHTTPRequestHandler):
    door: Door
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        data = json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int = 401) -> None:
        self.reply(status, {"detail": "no"})

    def payload(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def lies(self, *names: str) -> bool:
        return self.door.lie in names

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        payload, door = self.payload(), self.door
        door.asked += 1
        path = self.path.partition("?")[0]
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = bearer == "session"
        if self.lies("down"):
            return self.refuse(502)
        if self.lies("hangs") and path == judge_chat_path(user):
            time.sleep(3)
            return self.refuse(504)
        if path.startswith("/engine/v1/"):
            return self.engine(path, bearer, json.loads(payload))
        if path == "/api/v1/auths/signup":
            return self.refuse(400 if self.lies("signup open") else 403)
        if path == "/api/v1/auths/ldap":
            return self.ldap(json.loads(payload))
        if path == "/api/models" and (user or self.lies("models open", "made-up token")):
            names = [] if self.lies("model hidden") else ["tiny-chat"]
            return self.reply(200, {"data": [{"id": name} for name in names]})
        if path == front.CHAT and (user or self.lies("chat open") or (self.lies("made-up token") and bearer)):
            return self.chat(json.loads(payload))
        if not user:
            return self.refuse(403 if self.lies("says 403") else 401)
        return self.workspace(method, path, payload)

    def ldap(self, form: dict[str, str]) -> None:
        right = form["password"] == PASSWORD and not self.lies("directory down")
        empty = form["password"] == "" and self.lies("empty password admitted")
        wrong = form["password"] not in ("", PASSWORD) and self.lies("wrong password admitted")
        if self.lies("throttled") and not right:
            return self.refuse(429)
        if right or empty or wrong:
            role = {"pending user": "pending", "doctor is admin": "admin"}.get(self.door.lie, "user")
            return self.reply(200, {"token": "session", "role": role})
        return self.refuse(500 if self.lies("error for a wrong password") else 400)

    def engine(self, path: str, bearer: str, body: dict[str, Any]) -> None:
        if bearer != KEY and not self.lies("engine open"):
            return self.refuse(404 if self.lies("engine says 404") else 401)
        if path.endswith("/embeddings"):
            length = 64 if self.lies("short embedding") else 128
            return self.reply(200, {"data": [{"embedding": [0 if self.lies("zero embedding") else 0.5] * length}]})
        return self.reply(200, said("" if self.lies("engine says nothing") else "Hello!"))

    def chat(self, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        if self.lies("keeps the chat"):
            self.door.chats.append(f"chat{len(self.door.chats)}")
        if body.get("stream"):
            return self.stream()
        if not body.get("files"):
            return self.reply(200, said("" if self.lies("empty answer") else f"You said {question}"))
        if self.lies("document breaks"):
            return self.refuse(500)
        last = list(self.door.files.values())[-1]
        text, file = last["text"], last["filename"]
        if self.lies("no token") or (self.lies("token at second try") and len(self.door.files) < 2):
            text = "I do not know."
        sources = [{"source": {"type": "collection"}, "metadata": [{"name": file, "source": file}]}]
        if self.lies("no citation"):
            sources = []
        if self.lies("other citation"):
            sources[0]["metadata"] = [{"name": "handbook.txt"}]
        return self.reply(200, {**said(text), "sources": sources})

    def stream(self) -> None:
        if self.lies("no stream"):
            return self.reply(200, said("Hello there"))
        words = ["Hello there"] if self.lies("one piece") else ["Hello", " there"]
        events = [json.dumps({"choices": [{"delta": {"content": word}}]}) for word in words]
        if not self.lies("stream breaks off"):
            events.append("[DONE]")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {event}\n\n".encode())

    def workspace(self, method: str, path: str, payload: bytes) -> None:
        door = self.door
        name = path.removesuffix("/delete").rpartition("/")[2]
        if path == "/api/v1/auths/":
            return self.reply(200, {"id": "me"})
        if path == "/api/v1/chats/list":
            return self.reply(200, [{"id": chat} for chat in door.chats])
        if path == "/api/v1/knowledge/search":
            return self.reply(200, {"items": list(door.knowledge.values())})
        if path == "/api/v1/files/search":
            found = list(door.files.values())
            return self.reply(200, found) if found else self.refuse(404)
        if path == "/api/v1/knowledge/create":
            if self.lies("no permission"):
                return self.refuse(403)
            made = {
                "id": f"k{door.asked}",
                "name": json.loads(payload)["name"],
                "user_id": "me",
                "created_at": time.time(),
            }
            door.knowledge[made["id"]] = made
            return self.reply(200, made)
        if path == "/api/v1/files/":
            if self.lies("no upload"):
                return self.refuse(413)
            head, _, body = payload.decode().partition("\r\n\r\n")
            file = head.partition('filename="')[2].partition('"')[0]
            made = {"id": f"f{door.asked}", "filename": file, "user_id": "me", "created_at": time.time()}
            door.files[made["id"]] = {**made, "text": body.rpartition("\r\n--")[0]}
            return self.reply(200, made)
        if path.endswith("/file/add"):
            return self.refuse(400) if self.lies("no index") else self.reply(200, {})
        if path.startswith("/api/v1/chats/"):
            if name not in door.chats:
                return self.refuse(401)
            if method == "DELETE":
                door.chats.remove(name)
            return self.reply(200, True)
        store: dict[str, dict[str, Any]] = door.knowledge if path.startswith("/api/v1/knowledge/") else door.files
        if name not in store:
            return self.refuse(404)
        if method == "DELETE":
            if self.lies("keeps what was deleted"):
                return self.reply(200, True)
            del store[name]
        return self.reply(200, True)


def judge_chat_path(user: bool) -> str:
    return front.CHAT if user else ""


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


class Plain(BaseHTTPRequestHandler):
    door: Door

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if self.door.lie == "plain http":
            self.send_response(200)
        else:
            self.send_response(301)
            scheme = "http" if self.door.lie == "redirect to http" else "https"
            host = "elsewhere.test" if self.door.lie == "redirect elsewhere" else NAME
            self.send_header("Location", f"{scheme}://{host}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the doctor asks many things at once

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up, as one does on an untrusted certificate, is no error here."""


class Lab:
    """Opens doors and lets the doctor ask them."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.servers: list[ThreadingHTTPServer] = []
        self.good = authority.issue("good")

    def serve(self, handler: type[BaseHTTPRequestHandler], door: Door, files: tuple[Path, Path] | None = None) -> int:
        server = Server(("127.0.0.1", 0), type("Bound", (handler,), {"door": door}))
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.servers.append(server)
        return int(server.server_address[1])

    def site(self, door: Door, certificate: tuple[Path, Path] | None = None, **changes: Any) -> front.Site:
        place = Place(NAME, "127.0.0.1", self.serve(Handler, door, certificate or self.good), self.serve(Plain, door))
        given = {
            "place": place,
            "models": (judge.Model("tiny-chat", "chat"), judge.Model("tiny-embed", "embedding", 128)),
            "ca_pem": self.authority.pem,
            "user": "doctor",
            "password": PASSWORD,
            "engine_path": "/engine/v1",
            "engine_key": KEY,
            "timeout": 5.0,
            "total": 10.0,
        }
        return front.Site(**{**given, **changes})

    def ask(self, door: Door, **changes: Any) -> dict[str, Finding]:
        return {one.check: one for one in front.Front(self.site(door, **changes)).ask().findings}

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def lab(authority: Authority) -> Iterator[Lab]:
    laboratory = Lab(authority)
    yield laboratory
    laboratory.close()


def untrue(findings: dict[str, Finding]) -> dict[str, str]:
    return {check: one.state for check, one in findings.items() if one.state != OK}


LIES = [
    # lie, the findings that are not ok, a piece of the detail, a piece of the remedy (of the first finding)
    ("chat open", ["front.stranger.chat"], "without a token gets an answer", "must ask for a sign-in"),
    ("models open", ["front.stranger.models"], "without a token gets the models", "must ask for a sign-in"),
    ("made-up token", ["front.stranger.chat", "front.stranger.models"], "made-up token gets", "must ask for a sign-in"),
    ("engine open", ["front.engine.stranger"], "gets an answer of the engine", "must ask for its key"),
    ("engine says 404", ["front.engine.stranger"], "not refused but gets HTTP 404", "401 and 403"),
    ("engine says nothing", ["front.engine.tiny-chat"], "empty", "the unit that serves tiny-chat"),
    ("short embedding", ["front.engine.tiny-embed"], "64 dimensions, declared are 128", "--embedding"),
    ("zero embedding", ["front.engine.tiny-embed"], "all zero", "--embedding"),
    ("signup open", ["front.signup"], "anybody may sign up", "ENABLE_SIGNUP=false"),
    ("empty password admitted", ["front.login.empty_password"], "let in with an empty password", "off the network"),
    ("wrong password admitted", ["front.login.wrong_password"], "let in with a wrong password", "off the network"),
    (
        "error for a wrong password",
        ["front.login.wrong_password", "front.login.empty_password"],
        "not clearly",
        "journal",
    ),
    ("doctor is admin", ["front.login"], "as an administrator", "ordinary user"),
    ("model hidden", ["front.models"], "does not see tiny-chat", "OPENAI_API_BASE_URLS"),
    ("empty answer", ["front.chat.tiny-chat"], "empty", "front.engine.tiny-chat"),
    ("no stream", ["front.stream"], "no stream but HTTP 200, application/json", "proxy_buffering"),
    ("one piece", ["front.stream"], "1 pieces", "proxy_buffering"),
    ("stream breaks off", ["front.stream"], "broke off", "proxy_buffering"),
    ("no token", ["front.document"], "lacks the planted word", "RAG_TEMPLATE"),
    ("no citation", ["front.citation"], "not among the sources of the answer: none", "embedding server"),
    ("other citation", ["front.citation"], "sources of the answer: handbook.txt", "embedding server"),
    ("keeps what was deleted", ["front.cleanup"], "left behind: file doctor-", "delete it by hand"),
    ("plain http", ["front.redirect"], "HTTP 200 instead of a redirect", "role nginx"),
    ("redirect to http", ["front.redirect"], "redirects to 'http://", "role nginx"),
    ("redirect elsewhere", ["front.redirect"], "elsewhere.test", "role nginx"),
]


@pytest.mark.parametrize(("lie", "checks", "detail", "remedy"), LIES, ids=[lie for lie, *_ in LIES])
def test_a_lie_is_found_and_nothing_else(lab: Lab, lie: str, checks: list[str], detail: str, remedy: str) -> None:
    door = Door(lie)
    findings = lab.ask(door)
    assert untrue(findings) == dict.fromkeys(checks, FAILED)
    assert detail in findings[checks[0]].detail
    assert remedy in findings[checks[0]].remedy
    if lie != "keeps what was deleted":
        assert (door.knowledge, door.files, door.accounts) == ({}, {}, [])


@pytest.mark.parametrize(
    ("lie", "detail", "remedy"),
    [
        ("no permission", "cannot create a knowledge base: HTTP 403", "permission to create knowledge"),
        ("no upload", "cannot upload a file: HTTP 413", "client_max_body_size"),
        ("no index", "cannot index the uploaded file: HTTP 400", "pgvector"),
        ("document breaks", "no answer: HTTP 500", "does not answer"),
    ],
)
def test_a_document_that_goes_nowhere(lab: Lab, lie: str, detail: str, remedy: str) -> None:
    door = Door(lie)
    findings = lab.ask(door)
    assert untrue(findings) == {"front.document": FAILED, "front.citation": NOT_ASKED}
    assert detail in findings["front.document"].detail
    assert remedy in findings["front.document"].remedy
    assert (door.knowledge, door.files) == ({}, {})


def test_a_second_attempt_is_said(lab: Lab) -> None:
    findings = lab.ask(Door("token at second try"))
    assert untrue(findings) == {}
    assert "second attempt" in findings["front.document"].detail


def test_chats_the_door_keeps_are_deleted(lab: Lab) -> None:
    door = Door("keeps the chat", chats=["somebody's older one"])
    findings = lab.ask(door)
    assert door.chats == ["somebody's older one"]
    assert "chat" in findings["front.cleanup"].detail


def test_a_directory_that_is_down_proves_no_refusal(lab: Lab) -> None:
    findings = lab.ask(Door("directory down"))
    assert findings["front.login"].state == FAILED
    assert "ldap_host" in findings["front.login"].remedy
    passwords = [findings[f"front.login.{kind}_password"] for kind in ("wrong", "empty")]
    assert [one.state for one in passwords] == [NOT_ASKED, NOT_ASKED]
    assert "proves nothing" in passwords[0].detail
    assert findings["front.document"].state == NOT_ASKED


def test_a_pending_account_is_not_asked_further(lab: Lab) -> None:
    findings = lab.ask(Door("pending user"))
    assert findings["front.login"].state == FAILED
    assert "DEFAULT_USER_ROLE=user" in findings["front.login"].remedy
    assert findings["front.document"].state == NOT_ASKED


def test_a_throttled_sign_in_is_waited_for_and_then_not_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(front.time, "sleep", waits.append)
    findings = lab.ask(Door("throttled"), total=60.0)
    assert findings["front.login.wrong_password"].state == NOT_ASKED
    assert sorted(waits) == [2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 8.0, 8.0]


def test_a_door_that_is_down_refuses_nobody(lab: Lab) -> None:
    findings = lab.ask(Door("down"))
    for check in (
        "front.stranger.chat",
        "front.stranger.models",
        "front.signup",
        "front.engine.tiny-chat",
        "front.login",
    ):
        assert findings[check].state == FAILED
        assert "does not answer" in findings[check].remedy
    assert findings["front.login.wrong_password"].state == NOT_ASKED


def test_forbidden_is_a_refusal_too(lab: Lab) -> None:
    assert untrue(lab.ask(Door("says 403"))) == {}


# --- certificates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("other name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("other ca", "certificate"),
        ("system store", "local issuer certificate"),
    ],
)
def test_an_untrusted_door_is_not_spoken_through(lab: Lab, tmp_path: Path, kind: str, detail: str) -> None:
    certificate, changes = lab.good, {}
    if kind == "other name":
        certificate = lab.authority.issue("other", "other.example.test")
    elif kind == "expired":
        certificate = lab.authority.issue("expired", days=-1)
    elif kind == "other ca":
        certificate = Authority(tmp_path).issue("stranger")
    else:
        changes = {"ca_pem": ""}
    door = Door()
    findings = lab.ask(door, certificate=certificate, **changes)
    assert findings["front.certificate"].state == FAILED
    assert detail in findings["front.certificate"].detail
    assert NAME in findings["front.certificate"].remedy
    assert door.asked == 0  # above all no password
    assert {one.state for check, one in findings.items() if check != "front.certificate"} == {NOT_ASKED}


def test_a_certificate_about_to_end_is_failed_but_spoken_through(lab: Lab) -> None:
    findings = lab.ask(Door(), certificate=lab.authority.issue("soon", days=20))
    assert untrue(findings) == {"front.certificate": FAILED}
    assert "fewer than 30" in findings["front.certificate"].detail
    assert "renew" in findings["front.certificate"].remedy


def test_an_address_can_be_the_public_name(lab: Lab) -> None:
    site = lab.site(Door())
    place = Place("127.0.0.1", "127.0.0.1", site.place.https_port, 0)
    found = front.Front(front.Site(**{**site.__dict__, "place": place})).ask().findings
    assert [one.check for one in found if one.state != OK] == []
    assert "front.redirect" not in [one.check for one in found]


def test_nobody_at_the_door(lab: Lab) -> None:
    site = lab.site(Door(), place=Place(NAME, "127.0.0.1", 1, 0))
    findings = {one.check: one for one in front.Front(site).ask().findings}
    assert findings["front.certificate"].state == FAILED
    assert "units.nginx" in findings["front.certificate"].remedy


@pytest.mark.parametrize(
    ("days", "name", "other_key", "state", "says"),
    [
        (365, NAME, False, OK, "365 days left"),
        (20, NAME, False, FAILED, "fewer than 30"),
        (-1, NAME, False, FAILED, "expired"),
        (365, "other.example.test", False, FAILED, "Hostname mismatch"),
        (365, NAME, True, FAILED, "key values mismatch"),
    ],
)
def test_certificate_files(
    authority: Authority, days: float, name: str, other_key: bool, state: str, says: str
) -> None:
    certificate, key = authority.issue(f"file{days}{name}", days=days)
    if other_key:
        key = authority.issue("another")[1]
    one = tls.judge_file("web1", str(certificate), str(key), str(authority.file), name, 30)
    assert (one.check, one.state) == (f"certificate.{name}", state)
    assert says in one.detail


def test_a_certificate_file_of_another_ca_or_none(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("mine")
    other = Authority(tmp_path, "another CA")
    foreign = tls.judge_file("web1", str(certificate), str(key), str(other.file), NAME, 30)
    missing = tls.judge_file("web1", str(tmp_path / "no.crt"), str(key), str(authority.file), NAME, 30)
    assert (foreign.state, missing.state) == (FAILED, FAILED)
    assert "issuer" in foreign.detail
    assert "no such file" in missing.detail


# --- time, leftovers, settings --------------------------------------------------------------------------------------


def test_a_model_that_hangs_costs_no_more_than_the_total(lab: Lab) -> None:
    door = Door("hangs")
    began = time.monotonic()
    findings = lab.ask(door, total=1.0, timeout=30.0)
    assert time.monotonic() - began < 25, "one hanging request alone would have taken 30"
    late = {check: findings[check].state for check in ("front.chat.tiny-chat", "front.stream", "front.document")}
    assert set(late.values()) == {FAILED}
    assert findings["front.cleanup"].state == OK
    assert (door.knowledge, door.files) == ({}, {})


def test_old_leftovers_of_its_own_are_deleted_and_nothing_else(lab: Lab) -> None:
    old, new = time.time() - 3600, time.time()
    door = Door()
    for number, (name, owner, created, _) in enumerate(
        [
            ("doctor 00000001", "me", old, "leftover"),
            ("doctor 00000002", "me", new, "another doctor at work"),
            ("doctor 00000003", "somebody", old, "not mine"),
            ("doctor notes", "me", old, "not made by a doctor"),
        ]
    ):
        door.knowledge[f"old{number}"] = {"id": f"old{number}", "name": name, "user_id": owner, "created_at": created}
    findings = lab.ask(door)
    assert findings["front.cleanup"].detail == "deleted 1 file, 1 knowledge base, 1 leftover"
    assert [one["name"] for one in door.knowledge.values()] == ["doctor 00000002", "doctor 00000003", "doctor notes"]


def test_without_an_account_nothing_behind_the_sign_in_is_green(lab: Lab) -> None:
    findings = lab.ask(Door(), user="", password="")
    asked = {"front.certificate", "front.redirect", "front.stranger.chat", "front.stranger.models", "front.signup"}
    asked |= {"front.engine.stranger", "front.engine.tiny-chat", "front.engine.tiny-embed"}
    assert {check for check, one in findings.items() if one.state == OK} == asked
    rest = [one for check, one in findings.items() if check not in asked]
    assert {one.state for one in rest} == {NOT_ASKED}
    assert all("doctor_user" in one.remedy for one in rest)


def test_without_a_key_the_engine_is_asked_as_a_stranger_only(lab: Lab) -> None:
    findings = lab.ask(Door(), engine_key="")
    assert untrue(findings) == {"front.engine.tiny-chat": NOT_ASKED, "front.engine.tiny-embed": NOT_ASKED}


def test_a_wrong_key_is_named(lab: Lab) -> None:
    findings = lab.ask(Door(), engine_key="another")
    assert findings["front.engine.tiny-chat"].state == FAILED
    assert "doctor_engine_key" in findings["front.engine.tiny-chat"].remedy


def test_without_a_chat_model_nothing_is_answered(lab: Lab) -> None:
    findings = lab.ask(Door(), models=(judge.Model("tiny-embed", "embedding", 128),))
    assert untrue(findings) == dict.fromkeys(
        ["front.chat", "front.stream", "front.document", "front.citation"], NOT_ASKED
    )


def test_no_secret_is_in_the_report(lab: Lab) -> None:
    for lie in ("", "directory down", "engine open"):
        text = json.dumps([one.as_dict() for one in lab.ask(Door(lie)).values()])
        assert PASSWORD not in text
        assert KEY not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document": "no word planted"}, "doctor_document must contain {token}"),
        ({"question": "What is {token}?"}, "doctor_question must not contain"),
        ({"password": ""}, "doctor_user names doctor and no password"),
    ],
)
def test_settings_that_cannot_work_are_refused(lab: Lab, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DoctorError) as caught:
        lab.site(Door(), **changes)
    assert message in str(caught.value)


def test_a_ca_that_is_none_is_refused(lab: Lab) -> None:
    with pytest.raises(DoctorError, match="doctor_ca_file"):
        lab.ask(Door(), ca_pem="-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
