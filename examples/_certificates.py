"""Throw-away certificates for the examples: an authority of their own, and what it has signed.

    python examples/_certificates.py DIRECTORY NAME [NAME ...]

Each name gets ``DIRECTORY/NAME.pem``, its key and its certificate in one file: a server's where the
name is a host name, a client's where it is an e-mail address. ``DIRECTORY/ca.pem`` is whom to trust.
A second run makes new ones by a new authority. It needs trustme: pip install 'trioproxy[selfsigned]'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trustme

HOST = ("localhost", "127.0.0.1", "::1")


def make(directory: Path, *names: str) -> None:
    """Write the files."""
    directory.mkdir(exist_ok=True, mode=0o700)
    authority = trustme.CA(organization_name="Examples", organization_unit_name="trioproxy")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name in names:
        certificate = authority.issue_cert(
            *(HOST if name in HOST else (name,)),
            common_name=name,
            organization_name="Examples",
            organization_unit_name="trioproxy",
        )
        path = str(directory / f"{name}.pem")
        certificate.private_key_and_cert_chain_pem.write_to_path(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
