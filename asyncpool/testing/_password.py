"""The password of a server, as the server stores it: a SCRAM verifier with a single iteration.

PostgreSQL's 4096 iterations protect weak passwords. They take both sides some milliseconds of CPU
time at each connect, which is half of a connect's, and a password of 128 random bits needs none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

ITERATIONS = 1


def new_password() -> str:
    """Return a random password of 128 bits."""
    return secrets.token_hex(16)


def verifier(password: str) -> str:
    """Return the verifier of a password, which PostgreSQL accepts in place of the password.

    Source: RFC 5802, and `scram_build_secret` in PostgreSQL's src/common/scram-common.c
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    stored_key, server_key = (b64encode(key).decode() for key in keys)
    return f"SCRAM-SHA-256${ITERATIONS}:{b64encode(salt).decode()}${stored_key}:{server_key}"
