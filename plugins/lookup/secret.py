# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets of a site: read, or created once, in the inventory's own folder."""

from __future__ import annotations

DOCUMENTATION = r"""
name: secret
short_description: A secret of this site, created on first use
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Returns the content of the file C(secrets_dir)/NAME on the controller.
  - A missing file is created with a random token, mode 0600, in a folder of mode 0700. So a secret exists from the
    moment anything needs it, also in check mode and with C(--limit), and never changes afterwards.
  - That needs the site's CA (C(tls/ca.crt)) beside it. A second operator without the folder would otherwise make up
    secrets of his own, and lock out everything that has the site's.
  - A file encrypted with ansible-vault is decrypted. The files may so be encrypted at any time.
options:
  _terms:
    description: Names of secrets, each a plain file name.
    required: true
  secrets_dir:
    description: Folder of the secrets; taken from the variable of that name.
    type: path
    required: true
    vars:
      - name: secrets_dir
  secrets_begin:
    description: Whether a secret may be made before the site has its CA. A play says so that comes before it.
    type: bool
    default: false
    vars:
      - name: secrets_begin
"""

EXAMPLES = r"""
- name: A password that survives every run
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.secret', 'postgresql_openwebui_password') | length }}"
"""

RETURN = r"""
_raw:
  description: The secrets, without surrounding white space.
  type: list
  elements: str
"""

import os
import re
import secrets
import string
import tempfile
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
CA = "tls/ca.crt"


def create(path: str) -> None:
    """Write a random token to ``path`` unless somebody else has just done so."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write("".join(secrets.choice(ALPHABET) for _ in range(LENGTH)) + "\n")
        os.link(temporary, path)  # fails when it exists: of two runs one wins, both read the same
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        # Not get_option(): it returns the variable as it was written, with its braces.
        folder = kwargs.get("secrets_dir") or self._templar.template((variables or {}).get("secrets_dir"))
        if not folder:
            raise AnsibleLookupError("secrets_dir is not set: it names the folder of this site's secrets")
        found = []
        for name in terms:
            if not re.fullmatch(r"[A-Za-z0-9_.@-]+", name):
                raise AnsibleLookupError(f"'{name}' is no name for a secret: use letters, digits and _.@-")
            path = os.path.join(folder, name)
            if not os.path.exists(path):
                if not os.path.exists(os.path.join(folder, CA)) and not (variables or {}).get("secrets_begin"):
                    raise AnsibleLookupError(
                        f"{folder} has neither the secret {name} nor a CA ({CA}), so it is not the folder of a site "
                        "that was set up. Copy that folder from the control host that did it; for a new site run "
                        "site.yml, which makes both. No secret was made up."
                    )
                create(path)
            value = self._loader.get_text_file_contents(path).strip()
            if not value:
                raise AnsibleLookupError(f"the secret file {path} is empty: restore it, or delete it to get a new one")
            found.append(value)
        return found
