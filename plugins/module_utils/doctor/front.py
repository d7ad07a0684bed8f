# SPDX-License-Identifier: GPL-3.0-or-later
"""The front door, asked as its users and as a stranger would: certificate, sign-in, chat, a cited answer."""

from __future__ import annotations

import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from ansible_collections.onprem.llm.plugins.module_utils.doctor import judge, tls
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import (
    OK,
    DoctorError,
    Finding,
    failed,
    not_asked,
    ok,
)
from ansible_collections.onprem.llm.plugins.module_utils.doctor.http import (
    Answer,
    Client,
    Deadline,
    NoAnswer,
    Place,
    form_file,
)

CHAT = "/api/chat/completions"
PREFIX = "doctor"  # what the doctor makes is named so, and is its to delete
LEFTOVER_AGE = 600  # seconds; younger things may belong to a doctor that is still at work
OPEN_DOOR = "the web app must ask for a sign-in: check what nginx passes on and WEBUI_AUTH of Open WebUI, run site.yml"
CLEANING = 15.0  # seconds kept for cleaning up, beyond the deadline

# Planted tokens are made-up names. Small models copy these reliably; digits they often do not.
FIRST = [
    c + v
    for c in ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "t", "v", "z"]
    for v in ["a", "e", "o", "el", "or"]
]
LAST = [
    c + v
    for c in ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"]
    for v in ["a", "or", "is", "on"]
]
UNLUCKY = {"ba", "ka", "por", "zor", "vel", "ta"}


def plant() -> str:
    """A random made-up name, such as Mesis."""
    first = [part for part in FIRST if part not in UNLUCKY]
    last = [part for part in LAST if part not in UNLUCKY]
    return (secrets.choice(first) + secrets.choice(last)).capitalize()


@dataclass(frozen=True)
class Site:
    """What the doctor is told about the front door."""

    place: Place
    models: tuple[judge.Model, ...] = ()
    ca_pem: str = ""
    user: str = ""
    password: str = ""
    engine_path: str = ""
    engine_key: str = ""
    document: str = "The access code of the Kelora server is {token}. Internal use only."
    question: str = "What is the access code of the Kelora server?"
    greeting: str = "Hello"
    answer_tokens: int = 1024
    days: int = 30
    timeout: float = 60.0
    total: float = 120.0

    def __post_init__(self) -> None:
        if "{token}" not in self.document:
            raise DoctorError("doctor_document must contain {token}, where the doctor plants a random word to ask for")
        if "{token}" in self.question:
            raise DoctorError("doctor_question must not contain {token}: the question would give the answer away")

        if self.user and not self.password:
            raise DoctorError(f"doctor_user names {self.user} and no password: give it one, or set doctor_user to {{}}")

    @property
    def chats(self) -> list[judge.Model]:
        return [model for model in self.models if model.kind == "chat"]


@dataclass
class Result:
    findings: list[Finding]
    answer: dict[str, str] = field(default_factory=dict)  # question, answer, source


@dataclass(frozen=True)
class Job:
    """One question, and the checks it answers."""

    checks: Sequence[str]
    run: Callable[[], list[Finding]]
    remedy: str


class Front:
    """Asks everything, several questions at once, and cleans up after itself in any case."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.host = site.place.name
        self.deadline = Deadline(site.total)
        self.client: Client
        self.token = ""
        self.trusted = False
        self.answer: dict[str, str] = {}
        self.made: list[tuple[str, str, str]] = []  # (kind, path to delete it, name)
        self.chats_before: set[str] | None = None
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []

    # What is asked, in the order of the report.

    def open_checks(self) -> list[str]:
        checks = ["front.redirect"] if self.site.place.http_port else []
        checks += ["front.stranger.chat", "front.stranger.models", "front.signup"]
        if self.site.engine_path:
            checks += ["front.engine.stranger"]
            checks += [f"front.engine.{model.name}" for model in self.site.models]
        return checks

    def user_checks(self) -> list[str]:
        checks = ["front.login", "front.login.wrong_password", "front.login.empty_password", "front.models"]
        checks += [f"front.chat.{model.name}" for model in self.site.chats] or ["front.chat"]
        return [*checks, "front.stream", "front.document", "front.citation", "front.cleanup"]

    def ask(self) -> Result:
        try:
            context = tls.client_context(self.site.ca_pem)
        except ssl.SSLError as error:
            raise DoctorError(f"doctor_ca_file holds no CA certificate in PEM form: {tls.reason(error)}") from error
        self.client = Client(self.site.place, context, self.site.timeout, self.deadline)
        door = self.certificate()
        found = {door.check: door}
        if not self.trusted:
            detail, remedy = (
                "nobody should speak through this door",
                "mend front.certificate first, then run the doctor again",
            )
            silent = [not_asked(c, self.host, detail, remedy) for c in self.open_checks() + self.user_checks()]
            return Result([door, *silent])
        try:
            jobs = self.open_jobs()
            if self.site.user:
                jobs.append(Job(["front.login"], self.login, "read the journal of Open WebUI"))
                found.update(self.together(jobs))
                if self.token:
                    self.together([Job([], self.sweep, "")])
                found.update(self.together(self.user_jobs(found["front.login"])))
            else:
                found.update(self.together(jobs))
        finally:
            if self.token:
                cleaned = self.clean()
                found[cleaned.check] = cleaned
        if not self.site.user:
            remedy = (
                "give the doctor an account of its own in the directory, and set doctor_user: {name: ...,"
                " password: ...}"
            )
            for check in self.user_checks():
                found[check] = not_asked(check, self.host, "the doctor has no account", remedy)
        for check in self.open_checks() + self.user_checks():
            if check not in found:
                remedy = "mend front.login first, then run the doctor again"
                found[check] = not_asked(check, self.host, "it needs a sign-in", remedy)
        order = [door.check, *self.open_checks(), *self.user_checks()]
        return Result([found[check] for check in order], self.answer)

    def together(self, jobs: Sequence[Job]) -> dict[str, Finding]:
        """Run jobs at once until the deadline. A question without an answer by then has failed."""
        results: dict[str, Finding] = {}

        def work(job: Job) -> None:
            try:
                found = job.run()
            except NoAnswer as error:
                found = [failed(check, self.host, f"no answer: {error}", job.remedy) for check in job.checks]
            except (
                Exception
            ) as error:  # a thread's exception would be lost, and a lost question looks like a good answer
                detail = f"the doctor stumbled over the answer: {type(error).__name__}: {error}"
                found = [failed(check, self.host, detail, job.remedy) for check in job.checks]
            with self.lock:
                results.update({one.check: one for one in found})

        threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
        self.threads += threads
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.deadline.left()) + 0.5)
        with self.lock:
            late = dict(results)
        for job in jobs:
            for check in job.checks:
                if check not in late:
                    detail = f"no answer within {self.site.total:.0f} s in all"
                    remedy = f"{job.remedy}; if the model is just slow, raise doctor_total_timeout"
                    late[check] = failed(check, self.host, detail, remedy)
        return late

    # Without an account.

    def certificate(self) -> Finding:
        check = "front.certificate"
        place = self.site.place
        renew = "run site.yml to renew it (a provided certificate: put a new one where tls_certificate_file says)"
        try:
            with self.client.connect() as sock:
                seen, version = sock.getpeercert(), sock.version()
                self.trusted = True
        except ssl.SSLCertVerificationError as error:
            remedy = (
                f"the certificate must name {place.name}, be in date and be issued by the CA in"
                " doctor_ca_file"
                f" ({'given' if self.site.ca_pem else 'none given: the system store was used'}): run site.yml"
            )
            return failed(check, self.host, f"not trusted: {tls.reason(error)}", remedy)
        except (OSError, NoAnswer) as error:
            detail = f"no TLS on {place.address}:{place.https_port}: {tls.reason(error)}"
            return failed(check, self.host, detail, "check units.nginx and the firewall on the way, then run site.yml")
        return tls.judge_dates(check, self.host, seen, self.site.days, f"{version}, names {place.name}", renew)

    def open_jobs(self) -> list[Job]:
        nginx = "check units.nginx, then run site.yml"
        model = self.site.chats[0].name if self.site.chats else "any"
        body = {"model": model, "messages": [{"role": "user", "content": self.site.greeting}], "max_tokens": 8}
        jobs = [
            Job(
                ["front.stranger.chat"],
                lambda: [self.stranger("front.stranger.chat", "an answer", "POST", CHAT, body)],
                nginx,
            ),
            Job(
                ["front.stranger.models"],
                lambda: [self.stranger("front.stranger.models", "the models", "GET", "/api/models")],
                nginx,
            ),
            Job(["front.signup"], self.signup, nginx),
        ]
        if self.site.place.http_port:
            jobs.append(
                Job(
                    ["front.redirect"], self.redirect, "port 80 must answer with a redirect to https: check units.nginx"
                )
            )
        if self.site.engine_path:
            path = f"{self.site.engine_path}/chat/completions"
            remedy = "the engine API must ask for its key: run site.yml (role nginx)"
            jobs.append(
                Job(
                    ["front.engine.stranger"],
                    lambda: [
                        self.stranger("front.engine.stranger", "an answer of the engine", "POST", path, body, remedy)
                    ],
                    nginx,
                )
            )
            for one in self.site.models:
                jobs.append(Job([f"front.engine.{one.name}"], partial(self.engine, one), nginx))
        return jobs

    def stranger(self, check: str, what: str, method: str, path: str, body: Any = None, remedy: str = "") -> Finding:
        ways = {"without a token": "", "with a made-up token": "doctor-" + secrets.token_hex(8)}
        answers = {way: self.client.ask(method, path, body, token) for way, token in ways.items()}
        return judge.stranger(check, self.host, what, answers, remedy or OPEN_DOOR)

    def redirect(self) -> list[Finding]:
        return [judge.redirect(self.host, self.site.place, self.client.ask("GET", "/", plain=True))]

    def signup(self) -> list[Finding]:
        form = {"name": "doctor", "email": "doctor-is-no-address", "password": secrets.token_urlsafe(16)}
        return [judge.signup(self.host, self.client.ask("POST", "/api/v1/auths/signup", form))]

    def engine(self, model: judge.Model) -> list[Finding]:
        check = f"front.engine.{model.name}"
        if not self.site.engine_key:
            remedy = "set doctor_engine_key to the key of the engine API"
            return [not_asked(check, self.host, "the doctor has no key for the engine API", remedy)]
        if model.kind == "embedding":
            body: dict[str, Any] = {"model": model.name, "input": self.site.question}
            answer = self.client.ask("POST", f"{self.site.engine_path}/embeddings", body, self.site.engine_key)
            return [judge.embedding(check, self.host, model, answer)]
        body = {
            "model": model.name,
            "messages": [{"role": "user", "content": self.site.greeting}],
            "max_tokens": 32,
            "temperature": 0,
        }
        remedy = (
            f"check the unit that serves {model.name} and its journal, and the engine's address in nginx; run site.yml"
        )
        answer = self.client.ask("POST", f"{self.site.engine_path}/chat/completions", body, self.site.engine_key)
        if answer.status in (401, 403):
            remedy = (
                "the key the doctor has is not the engine's: compare doctor_engine_key with the secret, run site.yml"
            )
        return [judge.chat(check, self.host, answer, remedy)]

    # With the doctor's account.

    def signin(self, password: str) -> Answer:
        """One sign-in; waits when there were too many from this address."""
        for wait in (2.0, 4.0, 6.0, 8.0, 0.0):
            answer = self.client.ask("POST", "/api/v1/auths/ldap", {"user": self.site.user, "password": password})
            if answer.status != 429 or not wait or self.deadline.left() < wait:
                break
            time.sleep(wait)
        return answer

    def login(self) -> list[Finding]:
        answer = self.signin(self.site.password)
        finding = judge.login(self.host, self.site.user, answer)
        if answer.status == 200:
            self.token = str(answer.json().get("token") or "")
        return [finding]

    def user_jobs(self, login: Finding) -> list[Job]:
        journal = "read the journal of Open WebUI (journalctl -u openwebui)"
        works = bool(self.token)

        def refused(kind: str, check: str, password: str) -> list[Finding]:
            return [judge.refused_password(check, self.host, self.site.user, kind, self.signin(password), works)]

        wrong = secrets.token_urlsafe(16)
        jobs = [
            Job(
                ["front.login.wrong_password"], lambda: refused("a wrong", "front.login.wrong_password", wrong), journal
            ),
            Job(["front.login.empty_password"], lambda: refused("an empty", "front.login.empty_password", ""), journal),
        ]
        if not works or login.detail.endswith("role pending"):
            return jobs
        jobs.append(Job(["front.models"], self.models, journal))
        if not self.site.chats:
            remedy = "declare a model of kind chat in the inventory's models"
            nothing = [
                not_asked(check, self.host, "the site declares no chat model", remedy)
                for check in ("front.chat", "front.stream", "front.document", "front.citation")
            ]
            return [
                *jobs,
                Job(["front.chat", "front.stream", "front.document", "front.citation"], lambda: nothing, remedy),
            ]
        for model in self.site.chats:
            jobs.append(Job([f"front.chat.{model.name}"], partial(self.chat, model), journal))
        jobs.append(Job(["front.stream"], self.stream, journal))
        jobs.append(Job(["front.document", "front.citation"], self.document, journal))
        return jobs

    def models(self) -> list[Finding]:
        return [
            judge.models(
                self.host, self.site.user, self.site.chats, self.client.ask("GET", "/api/models", token=self.token)
            )
        ]

    def body(self, model: judge.Model, text: str, tokens: int, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {
            "model": model.name,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": False,
            **more,
        }

    def chat(self, model: judge.Model) -> list[Finding]:
        remedy = (
            f"check front.engine.{model.name} and the unit that serves it; if those are fine, the journal of Open WebUI"
        )
        for attempt in (1, 2):
            answer = self.client.ask("POST", CHAT, self.body(model, self.site.greeting, 32), self.token)
            finding = judge.chat(f"front.chat.{model.name}", self.host, answer, remedy)
            if finding.state == OK:
                return [finding] if attempt == 1 else [again(finding)]
        return [finding]

    def stream(self) -> list[Finding]:
        body = self.body(self.site.chats[0], self.site.greeting, 32, stream=True)
        return [judge.stream(self.host, *self.client.events(CHAT, body, self.token))]

    def document(self) -> list[Finding]:
        """Upload, ask, judge. A second attempt with another word, said so: a model may stumble over one."""
        for attempt in (1, 2):
            findings = self.document_once()
            if all(finding.state == OK for finding in findings):
                return findings if attempt == 1 else [again(finding) for finding in findings]
        return findings

    def document_once(self) -> list[Finding]:
        run, token = secrets.token_hex(4), plant()
        file, text = f"{PREFIX}-{run}.txt", self.site.document.replace("{token}", token)
        form = {"name": f"{PREFIX} {run}", "description": "Made by the doctor, who deletes it."}
        answer = self.client.ask("POST", "/api/v1/knowledge/create", form, self.token)
        knowledge = judge.identity(answer)
        if not knowledge:
            remedy = (
                "give the doctor's account the permission to create knowledge"
                " (USER_PERMISSIONS_WORKSPACE_KNOWLEDGE_ACCESS or its group)"
            )
            return self.stuck("create a knowledge base", answer, remedy)
        self.remember("knowledge base", f"/api/v1/knowledge/{knowledge}/delete", form["name"])
        payload, content = form_file(file, text + "\n")
        path = "/api/v1/files/?process=true&process_in_background=false"
        answer = self.client.ask("POST", path, token=self.token, payload=payload, content=content)
        uploaded = judge.identity(answer)
        if not uploaded:
            return self.stuck(
                "upload a file", answer, "check client_max_body_size in nginx and the journal of Open WebUI"
            )
        self.remember("file", f"/api/v1/files/{uploaded}", file)
        answer = self.client.ask("POST", f"/api/v1/knowledge/{knowledge}/file/add", {"file_id": uploaded}, self.token)
        if answer.status != 200:
            remedy = "check the embedding server (front.engine.*), pgvector and the journal of Open WebUI"
            return self.stuck("index the uploaded file", answer, remedy)
        body = self.body(
            self.site.chats[0],
            self.site.question,
            self.site.answer_tokens,
            files=[{"type": "collection", "id": knowledge}],
        )
        answer = self.client.ask("POST", CHAT, body, self.token)
        if answer.status == 200:
            self.answer = {
                "question": self.site.question,
                "answer": judge.words(answer),
                "source": ", ".join(judge.sources(answer)),
            }
        return judge.document(self.host, token, file, answer)

    def stuck(self, what: str, answer: Answer, remedy: str) -> list[Finding]:
        detail = f"{self.site.user} cannot {what}: {answer.brief()}"
        silent = not_asked("front.citation", self.host, "there was no answer to look at", "mend front.document first")
        return [failed("front.document", self.host, detail, judge.unwell(answer, remedy)), silent]

    # Leaving nothing behind.

    def remember(self, kind: str, path: str, name: str) -> None:
        with self.lock:
            self.made.append((kind, path, name))

    def chat_ids(self, client: Client) -> set[str]:
        said = client.ask("GET", "/api/v1/chats/list?include_folders=true&include_pinned=true", token=self.token).json()
        return {str(one["id"]) for one in said} if isinstance(said, list) else set()

    def sweep(self) -> list[Finding]:
        """Put what an earlier doctor was killed over on the list of things to delete."""
        self.chats_before = self.chat_ids(self.client)
        mine = self.client.ask("GET", "/api/v1/auths/", token=self.token).json().get("id")
        old = time.time() - LEFTOVER_AGE
        listed = self.client.ask("GET", f"/api/v1/knowledge/search?query={PREFIX}", token=self.token).json()
        bases = listed.get("items", []) if isinstance(listed, dict) else listed
        for one in bases:
            if one.get("user_id") == mine and old_work(one.get("name"), f"{PREFIX} ", one.get("created_at"), old):
                self.remember("leftover", f"/api/v1/knowledge/{quote(one['id'])}/delete", one["name"])
        files = self.client.ask(
            "GET", f"/api/v1/files/search?filename={PREFIX}-*.txt&content=false", token=self.token
        ).json()
        for one in files if isinstance(files, list) else []:
            if one.get("user_id") == mine and old_work(one.get("filename"), f"{PREFIX}-", one.get("created_at"), old):
                self.remember("leftover", f"/api/v1/files/{quote(one['id'])}", one["filename"])
        return []  # clean() reports

    def clean(self) -> Finding:
        """Delete what was made, with time of its own, and see that it is gone."""
        self.deadline.end = 0.0  # no further question; one that is under way may still make something
        patience = Deadline(CLEANING / 3)
        for thread in self.threads:
            thread.join(max(0.0, patience.left()))
        client = Client(self.site.place, self.client.context, CLEANING, Deadline(CLEANING))
        stays: list[str] = []
        deleted: dict[str, int] = {}
        with self.lock:
            made = list(reversed(self.made))  # files before the knowledge base that holds them
        try:
            if self.chats_before is not None:
                new = self.chat_ids(client) - self.chats_before
                made += [("chat", f"/api/v1/chats/{chat}", chat) for chat in sorted(new)]
            for kind, path, name in made:
                answer = client.ask("DELETE", path, token=self.token)
                gone = client.ask("GET", path.removesuffix("/delete"), token=self.token)
                if gone.status == 200:
                    stays.append(f"{kind} {name} ({answer.brief()})")
                else:
                    deleted[kind] = deleted.get(kind, 0) + 1
        except NoAnswer as error:
            stays.append(f"no answer: {error}")
        if stays:
            remedy = (
                f"delete it by hand: sign in as {self.site.user}, Workspace, Knowledge; a later doctor also"
                f" deletes what is named '{PREFIX} …' and older than {LEFTOVER_AGE // 60} minutes"
            )
            return failed("front.cleanup", self.host, f"left behind: {'; '.join(stays)}", remedy)
        said = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in deleted.items())
        return ok("front.cleanup", self.host, f"deleted {said}" if said else "nothing was made")


def old_work(name: Any, prefix: str, created: Any, before: float) -> bool:
    """Whether something bears the doctor's name and is too old to be in use."""
    own = re.fullmatch(re.escape(prefix) + r"[0-9a-f]{8}(\.txt)?", str(name or ""))
    return bool(own) and isinstance(created, (int, float)) and 0 < created < before


def again(finding: Finding) -> Finding:
    return Finding(
        finding.check,
        finding.host,
        finding.state,
        f"{finding.detail} (second attempt; the first failed)",
        finding.remedy,
    )
