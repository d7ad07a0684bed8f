#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_front
short_description: Asks the front door as its users and as a stranger would
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Checks the certificate, the redirect to https, that a stranger is refused, that sign-up is closed, the engine API,
    the sign-in through LDAP with a right, a wrong and an empty password, a chat with every model, a stream, and an
    uploaded document that is answered with its citation and a planted word.
  - Does not fail because of what it finds. The findings say what is untrue and what to do.
  - Deletes what it made, also when it is interrupted, and what an earlier one was killed over.
  - Needs only Python's standard library.
attributes:
  check_mode: {support: none, description: It uploads a document and deletes it. In check mode it is skipped.}
  diff_mode: {support: none, description: It leaves nothing changed.}
  idempotent: {support: full, description: It leaves nothing changed.}
options:
  public_name:
    description: Name or address that clients use. Without one the front door is not asked.
    type: str
    default: ''
  connect_to:
    description: Address to connect to. The default is O(public_name), which then must resolve.
    type: str
    default: ''
  https_port:
    description: Port of the front door.
    type: int
    default: 443
  http_port:
    description: Port that redirects to https. With 0 there is none and it is not asked.
    type: int
    default: 80
  ca_pem:
    description: The CA that clients trust, in PEM form. The default is the system's store.
    type: str
    default: ''
  days:
    description: Days the certificate must still last.
    type: int
    default: 30
  models:
    description:
      - Models of the site, each with C(name), C(kind) (V(chat) or V(embedding)) and for embeddings their C(dimensions).
      - Further keys are passed over, so the site's own list fits.
    type: list
    elements: dict
    default: []
  engine_path:
    description: Path of the engine API at the front door. Empty when it is not public.
    type: str
    default: ''
  engine_key:
    description: Key of the engine API.
    type: str
    default: ''
  user:
    description: Name of the doctor's own account in the directory. Without one these checks are not asked.
    type: str
    default: ''
  password:
    description: Its password.
    type: str
    default: ''
  document:
    description: Text of the document; C({token}) is replaced by a random word.
    type: str
    default: The access code of the Kelora server is {token}. Internal use only.
  question:
    description: Question that the document answers.
    type: str
    default: What is the access code of the Kelora server?
  answer_tokens:
    description: Length that the answer may have. Models that think aloud need more.
    type: int
    default: 1024
  timeout:
    description: Seconds for one question.
    type: float
    default: 60
  total_timeout:
    description: Seconds for all of them. Cleaning up may take 15 more.
    type: float
    default: 120
"""

EXAMPLES = r"""
- name: Ask the front door
  onprem.llm.doctor_front:
    public_name: ai.example.org
    connect_to: 10.0.0.12
    ca_pem: "{{ lookup('file', 'ca.crt') }}"
    models: [{name: tiny-chat, kind: chat}]
    user: doctor
    password: "{{ lookup('onprem.llm.secret', 'user_doctor') }}"
  delegate_to: localhost
"""

RETURN = r"""
findings:
  description: Answers, each with check, host, state (ok, failed or not_asked), detail and remedy.
  returned: success
  type: list
  elements: dict
answer:
  description: The question about the document, its answer and the source named; empty when it was not asked.
  returned: success
  type: dict
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import signal
import time
from types import FrameType
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils.doctor import front, judge
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import NOT_ASKED, DoctorError, Finding
from ansible_collections.onprem.llm.plugins.module_utils.doctor.http import Place


def stop(number: int, frame: FrameType | None) -> None:
    """An interrupted doctor cleans up: SystemExit passes through its `finally`."""
    raise SystemExit(128 + number)


def site(given: dict[str, Any]) -> front.Site:
    return front.Site(
        place=Place(
            given["public_name"], given["connect_to"] or given["public_name"], given["https_port"], given["http_port"]
        ),
        models=tuple(judge.model(one) for one in given["models"]),
        ca_pem=given["ca_pem"],
        user=given["user"],
        password=given["password"],
        engine_path=given["engine_path"].rstrip("/"),
        engine_key=given["engine_key"],
        document=given["document"],
        question=given["question"],
        answer_tokens=given["answer_tokens"],
        days=given["days"],
        timeout=given["timeout"],
        total=given["total_timeout"],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "public_name": {"type": "str", "default": ""},
            "connect_to": {"type": "str", "default": ""},
            "https_port": {"type": "int", "default": 443},
            "http_port": {"type": "int", "default": 80},
            "ca_pem": {"type": "str", "default": ""},
            "days": {"type": "int", "default": 30},
            "models": {"type": "list", "elements": "dict", "default": []},
            "engine_path": {"type": "str", "default": ""},
            "engine_key": {"type": "str", "default": "", "no_log": True},
            "user": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "document": {"type": "str", "default": front.Site.document},
            "question": {"type": "str", "default": front.Site.question},
            "answer_tokens": {"type": "int", "default": 1024, "no_log": False},
            "timeout": {"type": "float", "default": 60},
            "total_timeout": {"type": "float", "default": 120},
        },
        supports_check_mode=False,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    began = time.monotonic()
    if not module.params["public_name"]:
        finding = Finding(
            "front", "front door", NOT_ASKED, "the site has no public name", "set public_name of the site"
        )
        module.exit_json(changed=False, findings=[finding.as_dict()], answer={}, seconds=0.0)
    try:
        result = front.Front(site(module.params)).ask()
    except DoctorError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in result.findings],
        answer=result.answer,
        seconds=round(time.monotonic() - began, 2),
    )


if __name__ == "__main__":
    main()
