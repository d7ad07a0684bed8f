# SPDX-License-Identifier: GPL-3.0-or-later
"""What an answer of the front door means. Nothing here asks; it only judges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import (
    DoctorError,
    Finding,
    failed,
    not_asked,
    ok,
)
from ansible_collections.onprem.llm.plugins.module_utils.doctor.http import Answer, Place


@dataclass(frozen=True)
class Model:
    name: str
    kind: str
    dimensions: int | None = None


def model(raw: Mapping[str, Any]) -> Model:
    try:
        return Model(str(raw["name"]), str(raw["kind"]), int(raw.get("dimensions") or 0) or None)
    except (KeyError, ValueError) as error:
        raise DoctorError(f"doctor_models: {dict(raw)} is no model; write {{name: ..., kind: chat}}") from error


DOWN = (
    "the service behind nginx does not answer: see units.*, journalctl -u nginx and its own journal, then run site.yml"
)


def unwell(answer: Answer, remedy: str) -> str:
    """What to do: a 502 says that the service is down, whatever was asked of it."""
    return DOWN if answer.status >= 500 else remedy


def stranger(check: str, host: str, what: str, answers: Mapping[str, Answer], remedy: str) -> Finding:
    """``answers`` by the way the stranger came. Only 401 and 403 are refusals: an error refuses nobody for sure."""
    for way, answer in answers.items():
        if answer.status < 400:
            return failed(check, host, f"a stranger {way} gets {what}: {answer.brief()}", remedy)
    for way, answer in answers.items():
        if answer.status not in (401, 403):
            remedy = unwell(answer, f"only 401 and 403 are refusals; {remedy}")
            return failed(check, host, f"a stranger {way} is not refused but gets {answer.brief()}", remedy)
    return ok(check, host, "refused " + ", ".join(f"{way} ({a.status})" for way, a in answers.items()))


def redirect(host: str, place: Place, answer: Answer) -> Finding:
    check, remedy = "front.redirect", "port 80 must only redirect to https: run site.yml (role nginx)"
    location = answer.headers.get("location", "")
    if answer.status in (301, 302, 307, 308):
        parts = urlsplit(location)
        if parts.scheme == "https" and parts.hostname == place.name.lower():
            return ok(check, host, f"http answers {answer.status} to {location}")
        return failed(check, host, f"http redirects to '{location}', not to {place.url}", remedy)
    return failed(
        check, host, f"http is answered with {answer.brief()} instead of a redirect to https", unwell(answer, remedy)
    )


def signup(host: str, answer: Answer) -> Finding:
    """The probe's mail address is no address: a closed door refuses it before looking at it, and no account is made."""
    check = "front.signup"
    if answer.status in (401, 403, 404, 405):
        return ok(check, host, f"sign-up is closed ({answer.status})")
    remedy = "set ENABLE_SIGNUP=false for Open WebUI (run site.yml) and look for accounts nobody should have"
    if answer.status in (200, 400, 422):
        return failed(check, host, f"anybody may sign up: the form is processed ({answer.brief()})", remedy)
    return failed(check, host, f"sign-up is not clearly refused: {answer.brief()}", unwell(answer, remedy))


def login(host: str, user: str, answer: Answer) -> Finding:
    check = "front.login"
    said = answer.json()
    role = str(said.get("role", "")) if isinstance(said, dict) else ""
    if answer.status == 200 and isinstance(said, dict) and said.get("token"):
        if role == "pending":
            remedy = "set DEFAULT_USER_ROLE=user for Open WebUI, and give the doctor's account that role once"
            return failed(check, host, f"{user} signs in but may do nothing: role pending", remedy)
        if role == "admin":
            remedy = (
                "the doctor must be an ordinary user; if it became admin by being the first to sign in, set"
                " the admin account of Open WebUI, then demote the doctor's"
            )
            return failed(check, host, f"{user} signs in as an administrator", remedy)
        return ok(check, host, f"{user} signs in through LDAP (role {role or 'unknown'})")
    if answer.status == 429:
        return failed(
            check,
            host,
            "too many sign-ins from this address lately (HTTP 429)",
            "wait a minute, then run the doctor again",
        )
    remedy = (
        "check doctor_user's name and password; then ldap_host, ldap_port, ldap_ca_file, ldap_base and"
        " ldap_bind_dn; the journal of Open WebUI says which step failed (journalctl -u openwebui | grep -i"
        " ldap)"
    )
    return failed(check, host, f"{user} cannot sign in: {answer.brief()}", unwell(answer, remedy))


def refused_password(check: str, host: str, user: str, kind: str, answer: Answer, right_one_works: bool) -> Finding:
    """A directory that is down refuses everybody: a refusal counts only beside a sign-in that works."""
    said = answer.json()
    if answer.status == 200 or (isinstance(said, dict) and said.get("token")):
        remedy = (
            "take Open WebUI off the network at once; then check what the directory does with such a bind,"
            " and run site.yml"
        )
        return failed(check, host, f"{user} is let in with {kind} password", remedy)
    if answer.status == 429:
        return not_asked(
            check,
            host,
            "too many sign-ins from this address lately (HTTP 429)",
            "wait a minute, then run the doctor again",
        )
    if not right_one_works:
        detail = f"refused ({answer.brief()}), but so is the right password: that proves nothing"
        return not_asked(check, host, detail, "mend front.login first, then run the doctor again")
    if answer.status in (400, 401, 403, 422):
        return ok(check, host, f"refused ({answer.status})")
    return failed(
        check,
        host,
        f"not clearly refused: {answer.brief()}",
        "read the journal of Open WebUI, then run the doctor again",
    )


def models(host: str, user: str, wanted: Sequence[Model], answer: Answer) -> Finding:
    check = "front.models"
    said = answer.json()
    seen = {str(one.get("id")) for one in said.get("data", [])} if isinstance(said, dict) else set()
    missing = [model.name for model in wanted if model.name not in seen]
    if answer.status != 200 or missing:
        detail = f"{user} does not see {', '.join(missing)}" if answer.status == 200 else answer.brief()
        remedy = (
            "check the engine (units.*, front.engine.*), its address in Open WebUI (OPENAI_API_BASE_URLS) and"
            " who may use the model; then run site.yml"
        )
        return failed(check, host, f"{detail}; seen: {', '.join(sorted(seen)) or 'none'}", unwell(answer, remedy))
    return ok(check, host, f"{user} sees {', '.join(model.name for model in wanted)}")


def words(answer: Answer) -> str:
    """What the model said; its thoughts when it did not get beyond them."""
    try:
        message = answer.json()["choices"][0]["message"]
        return str(message.get("content") or message.get("reasoning_content") or "").strip()
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""


def chat(check: str, host: str, answer: Answer, remedy: str) -> Finding:
    said = words(answer)
    if answer.status == 200 and said:
        return ok(check, host, f"answered: {shorten(said)}")
    detail = "the answer is empty" if answer.status == 200 else answer.brief()
    return failed(check, host, detail, unwell(answer, remedy))


def stream(host: str, answer: Answer, events: Sequence[str]) -> Finding:
    check = "front.stream"
    remedy = (
        "streaming must pass every proxy unbuffered: check proxy_buffering off for /api/ (role nginx), then"
        " the engine's journal"
    )
    if answer.status != 200 or "text/event-stream" not in answer.headers.get("content-type", ""):
        kind = answer.headers.get("content-type", "no content type")
        return failed(check, host, f"no stream but {answer.brief()}, {kind}", unwell(answer, remedy))
    said = [text for text in map(delta, events) if text]
    if len(said) < 2:
        return failed(check, host, f"the stream carried {len(said)} pieces of text in {len(events)} events", remedy)
    if events[-1] != "[DONE]":
        return failed(check, host, f"the stream broke off after {len(said)} pieces", remedy)
    return ok(check, host, f"streamed in {len(said)} pieces: {shorten(''.join(said))}")


def delta(event: str) -> str:
    try:
        piece = json.loads(event)["choices"][0]["delta"]
        return str(piece.get("content") or piece.get("reasoning_content") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""


def embedding(check: str, host: str, model: Model, answer: Answer) -> Finding:
    remedy = (
        f"check the engine that serves {model.name} (--embedding, its journal) and `dimensions` of the model"
        " in the inventory"
    )
    try:
        vector = answer.json()["data"][0]["embedding"]
        length = len(vector)
    except (KeyError, IndexError, TypeError):
        return failed(check, host, f"no embedding but {answer.brief()}", unwell(answer, remedy))
    if not any(vector):
        return failed(check, host, f"the embedding has {length} dimensions, all zero", remedy)
    if model.dimensions and length != model.dimensions:
        return failed(check, host, f"the embedding has {length} dimensions, declared are {model.dimensions}", remedy)
    return ok(check, host, f"an embedding of {length} dimensions")


def sources(answer: Answer) -> list[str]:
    """Names of the files an answer says it was drawn from."""
    said = answer.json()
    names: list[str] = []
    for source in said.get("sources") or [] if isinstance(said, dict) else []:
        for meta in source.get("metadata") or []:
            names += [str(meta[key]) for key in ("name", "source") if meta.get(key)]
        names += [str(source.get("source", {}).get("name") or "")]
    return list(dict.fromkeys(name for name in names if name))


def document(host: str, token: str, file: str, answer: Answer) -> list[Finding]:
    """The planted token in the answer, and the file among its sources."""
    asked, cited = "front.document", "front.citation"
    if answer.status != 200:
        remedy = unwell(answer, "see front.chat.* and the journal of Open WebUI")
        silent = not_asked(cited, host, "there was no answer to look at", "mend front.document first")
        return [failed(asked, host, f"no answer: {answer.brief()}", remedy), silent]
    said, named = words(answer), sources(answer)
    findings = []
    if token.lower() in said.lower():
        findings.append(ok(asked, host, f"answered from the uploaded file: {shorten(said)}"))
    else:
        remedy = (
            "if front.citation failed too, nothing was retrieved: see there; otherwise the model did not use the text:"
            " check RAG_TEMPLATE, the model's context length, doctor_document and doctor_question"
        )
        lacks = f"the answer lacks the planted word {token}: {shorten(said) or '(empty)'}"
        findings.append(failed(asked, host, lacks, remedy))
    if file in named:
        mark = "".join(re.findall(r"\[[^\]]{1,80}\]", said)[:1])
        findings.append(ok(cited, host, f"{file} is named as its source" + (f", cited {mark}" if mark else "")))
    else:
        remedy = (
            "nothing was retrieved from it: check the embedding server (front.engine.*), pgvector, Open WebUI's journal"
        )
        lacks = f"{file} is not among the sources of the answer: {', '.join(named) or 'none'}"
        findings.append(failed(cited, host, lacks, remedy))
    return findings


def shorten(text: str, length: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def identity(answer: Answer) -> str:
    said = answer.json()
    found = str(said.get("id") or "") if answer.status == 200 and isinstance(said, dict) else ""
    return found if re.fullmatch(r"[A-Za-z0-9-]+", found) else ""
