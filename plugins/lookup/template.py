# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendered templates, without a copy of every variable for each."""

from __future__ import annotations

DOCUMENTATION = r"""
name: template
short_description: The text of a template
version_added: 0.1.0
author: The onprem.llm developers
description:
  - What C(ansible.builtin.template) gives, for templates that include no others.
  - That one copies all variables of the host each time, a tenth of the controller's work in a run that has nothing to
    do, and more with many hosts.
options:
  _terms:
    description: Names of files in the role's folder C(templates).
    required: true
  template_vars:
    description: Variables for these templates only.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Write the unit
  onprem.llm.config_files:
    files:
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('onprem.llm.template', 'example.service.j2') }}"
"""

RETURN = r"""
_raw:
  description: The text of each template.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.template import Templar, trust_as_template


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        templar = Templar(self._loader, {**(variables or {}), **kwargs.get("template_vars", {})})
        found = []
        for name in terms:
            path = self.find_file_in_search_path(variables, "templates", name)
            if not path:
                raise AnsibleLookupError(f"there is no template {name}")
            text = trust_as_template(self._loader.get_text_file_contents(path))
            found.append(templar.template(text, escape_backslashes=False))
        return found
