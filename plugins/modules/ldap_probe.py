#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Could people sign in through this LDAP server?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: ldap_probe
short_description: Asks an LDAP server whether people could sign in through it
version_added: 0.1.0
author: The onprem.llm developers
description:
  - From the host it runs on, does what an application does before somebody signs in. It opens a TLS connection and
    verifies the certificate, binds as the reading account, and searches for users.
  - Fails with one message that names the server, the setting and the way out. Users without a mail address are named in
    a warning; when none has one, it fails.
  - Needs nothing but Python on the host. Speaks ldaps only.
attributes:
  check_mode:
    support: full
    description:
      - It only reads. In check mode a server that cannot be reached is a warning, since an earlier step of the real run
        may bring it up.
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  host: {description: Name of the server\, as in its certificate., type: str, required: true}
  port: {description: Port where it speaks ldaps., type: int, default: 636}
  ca_file:
    description: Certificate of the authority that signed the server's. Empty means the host's own certificate store.
    type: str
    default: ''
  ca_data: {description: The content of I(ca_file)\, when it is not on the host yet., type: str, default: ''}
  base: {description: Entry below which users are., type: str, required: true}
  bind_dn: {description: The reading account., type: str, required: true}
  bind_password: {description: Its password., type: str, required: true}
  user_filter: {description: One filter in parentheses that users match., type: str, default: (objectClass=person)}
  username_attribute: {description: Attribute with the name people sign in with., type: str, default: uid}
  mail_attribute: {description: Attribute with the mail address., type: str, default: mail}
  mail_domain: {description: Domain of addresses made up for users without one., type: str, default: ''}
  timeout: {description: Seconds to wait for the server., type: int, default: 10}
"""

EXAMPLES = r"""
- name: Ask the directory
  onprem.llm.ldap_probe:
    host: ldap.example.com
    ca_file: /etc/onprem-llm/tls/ca.crt
    base: dc=example,dc=com
    bind_dn: cn=reader,dc=example,dc=com
    bind_password: "{{ ldap_bind_password }}"
"""

RETURN = r"""
users: {description: How many users may sign in (at most 5000 are looked at)., type: int, returned: success}
without_mail: {description: Names of users that have no mail address., type: list, elements: str, returned: success}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import ldap_probe


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 636},
            "ca_file": {"type": "str", "default": ""},
            "ca_data": {"type": "str", "default": ""},
            "base": {"type": "str", "required": True},
            "bind_dn": {"type": "str", "required": True},
            "bind_password": {"type": "str", "required": True, "no_log": True},
            "user_filter": {"type": "str", "default": "(objectClass=person)"},
            "username_attribute": {"type": "str", "default": "uid"},
            "mail_attribute": {"type": "str", "default": "mail"},
            "mail_domain": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    settings = ldap_probe.Settings(**module.params)
    try:
        report = ldap_probe.probe(settings)
    except ldap_probe.LdapProbeError as error:
        if module.check_mode and not error.reachable:
            module.warn(f"Not asked in check mode: {error}")
            module.exit_json(changed=False, users=0, without_mail=[])
        module.fail_json(msg=str(error))
    for warning in report.warnings(settings):
        module.warn(warning)
    module.exit_json(changed=False, users=report.users, without_mail=report.without_mail)


if __name__ == "__main__":
    main()
