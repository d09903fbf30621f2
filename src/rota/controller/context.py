"""The client context in HOME/client: what the command line needs to be the admin.

`context.json` names the API's address, the cluster, the user, and the files beside it: `ca.crt`, `user.crt`
and `user.key`.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from rota.controller.ca import USER_DAYS, Authority
from rota.controller.files import private_directory, write_private


def write_context(directory: Path, authority: Authority, *, user: str, address: str, now: datetime) -> None:
    """Makes the context, or brings it up to date; the key is made anew once half of its time is over."""
    private_directory(directory)
    write_private(directory / "ca.crt", authority.pem)
    if not _usable(directory, authority, now):
        identity = authority.make_user(user, now)
        write_private(directory / "user.key", identity.key)
        write_private(directory / "user.crt", identity.chain)
    context = {
        "address": address,
        "cluster": authority.cluster,
        "user": user,
        "ca": "ca.crt",
        "cert": "user.crt",
        "key": "user.key",
    }
    write_private(directory / "context.json", (json.dumps(context, indent=2) + "\n").encode())


def _usable(directory: Path, authority: Authority, now: datetime) -> bool:
    """Whether the certificate there is of this authority and has half of its time left."""
    try:
        leaf = x509.load_pem_x509_certificates((directory / "user.crt").read_bytes())[0]
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem))
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
        return False
    return (directory / "user.key").exists() and leaf.not_valid_after_utc - now > timedelta(
        days=USER_DAYS // 2
    )
