# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates: whether a client that trusts one CA would accept them, and for how long."""

from __future__ import annotations

import calendar
import ssl
import time
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, failed, ok


def client_context(ca_pem: str = "") -> ssl.SSLContext:
    """A client that verifies, trusting the given CA only, or the system's when none is given."""
    context = ssl.create_default_context(cadata=ca_pem or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def days_left(certificate: Any, now: float | None = None) -> float:
    """``certificate``: what getpeercert() returns."""
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    return (ends - (time.time() if now is None else now)) / 86400


def expires(certificate: Any) -> str:
    ends = time.strptime(certificate["notAfter"], "%b %d %H:%M:%S %Y GMT")
    return time.strftime("%Y-%m-%d", time.gmtime(calendar.timegm(ends)))


def issuer(certificate: Any) -> str:
    names = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    return str(names.get("commonName") or names.get("organizationName") or "?")


def handshake(certificate: str, key: str, ca: str, name: str) -> Any:
    """Let a client that trusts ``ca`` meet a server with this certificate, in memory. Returns what the client saw.

    So the chain, the dates, the name and that key and certificate belong together are judged by the TLS library itself.
    """
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate, key)
    client_side = ssl.create_default_context(cafile=ca or None)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        done = 0
        for side in (client, server):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
        if done == 2:
            return client.getpeercert()
    raise ssl.SSLError("the handshake did not end")


def reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message).rstrip(".")
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()} ({error.filename})" if error.filename else error.strerror.lower()
    return str(error) or type(error).__name__


def judge_dates(check: str, host: str, certificate: Any, limit: int, what: str, renew: str) -> Finding:
    left = days_left(certificate)
    detail = f"{what}, issued by {issuer(certificate)}, valid until {expires(certificate)} ({left:.0f} days left)"
    if left < limit:
        return failed(check, host, f"{detail}, fewer than {limit}", renew)
    return ok(check, host, detail)


def judge_file(host: str, certificate: str, key: str, ca: str, name: str, limit: int) -> Finding:
    """``ca`` '': the CAs of the system."""
    check, trust = f"certificate.{name}", ca or "the system's CAs"
    renew = (
        f"run site.yml for {host} to renew it (a provided certificate: put a new one where tls_certificate_file says)"
    )
    try:
        seen = handshake(certificate, key, ca, name)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        detail = f"{certificate} does not convince a client that trusts {trust}: {reason(error)}"
        return failed(check, host, detail, renew)
    return judge_dates(check, host, seen, limit, f"{certificate} is trusted through {trust}", renew)
