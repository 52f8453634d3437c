"""Whether a port can be listened on, asked before anything is started that would fail on it later."""

import errno
import os
import socket

from trimtab.errors import TrimtabError


def check_port(section: str, host: str, port: int) -> None:
    """Raise TrimtabError when `host`:`port` cannot be listened on; port 0 always can.

    `section` is the settings' section that names them, such as "api".
    """
    if port == 0:
        return
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TrimtabError(
            f"{host!r} is no address of this machine ({error.strerror}): set {section}.host."
        ) from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as servers do: a port left a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise TrimtabError(_said(section, host, port, error)) from error


def _said(section: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} is taken: set {section}.port to a free one "
            f"(trimtab --set {section}.port={port + 1} …), or end what listens on {host}:{port}."
        )
    return (
        f"{host}:{port} cannot be listened on ({error.strerror}): "
        f"set {section}.host and {section}.port."
    )
