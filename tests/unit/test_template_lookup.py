# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of a template: Ansible's own lookup is the reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar, trust_as_template

from ansible_collections.onprem.llm.plugins.lookup import template as ours

TEXTS = {
    "loop": "{% for one in many %}\n{{ one }} {{ nested }}\n{% endfor %}\nend\n",
    "backslash": "\\n stays, and {{ 'so\\ndoes this' }}\n\n",
    "of its own": "{{ item.name }}{% set many = [] %}{{ many | length }}\n",
    "native": "{{ many | length }}",
    "nothing": "{% if false %}never{% endif %}",
}


def look_up(which: Any, folder: Path, name: str) -> Any:
    loader = DataLoader()
    variables: dict[str, Any] = {
        "ansible_search_path": [str(folder)],
        "many": [1, "two", "{{ not a template }}"],
        "nested": trust_as_template("{{ many | first }}"),
    }
    lookup = which(loader=loader, templar=Templar(loader, variables))
    (text,) = lookup.run([name], variables=variables, template_vars={"item": {"name": "x"}})
    assert variables["many"] == [1, "two", "{{ not a template }}"]
    return text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_is_what_ansible_makes_of_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/it.j2").write_text(text)
    expected = look_up(partial(lookup_loader.get, "template"), tmp_path, "it.j2")
    assert look_up(ours.LookupModule, tmp_path, "it.j2") == expected


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match=r"there is no template other\.j2"):
        look_up(ours.LookupModule, tmp_path, "other.j2")


def test_a_variable_that_nobody_set(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/it.j2").write_text("{{ forgotten }}\n")
    with pytest.raises(AnsibleError, match="'forgotten' is undefined"):
        look_up(ours.LookupModule, tmp_path, "it.j2")
