"""The addresses of one replica: bound at the start, so that one in use is an error before anything else."""

from __future__ import annotations

import errno
import socket

from gateway.settings import SettingsError

BACKLOG = 2048
_THE_PORTS_FAULT = frozenset({errno.EADDRINUSE, errno.EACCES})
_HOST_OF = {"--admin-port": "--admin-host"}


def listener(host: str, port: int, option: str) -> socket.socket:
    """Bound and listening. Raises `SettingsError`, which names `option`."""
    listening = _bound(host, port, option, socket.SO_REUSEADDR)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def reserved(host: str, port: int, option: str = "--grpc-port") -> socket.socket:
    """Bound and not listening, so that the workers can each listen on the same address.

    gRPC takes no socket from elsewhere, it binds its own. The address stays reserved for this user's sockets
    that share it too, while no worker listens. Raises `SettingsError` where anybody else has it.
    """
    # Sockets that share a port do not see each other: this one does not share, and so sees all of them.
    with _bound(host, port, option, socket.SO_REUSEADDR) as alone:
        port = alone.getsockname()[1]
    # Not SO_REUSEADDR: with it another gateway's look, like ours above, would pass over this socket.
    return _bound(host, port, option, socket.SO_REUSEPORT)


def bound_to(bound: socket.socket) -> str:
    """The address as gRPC wants it: numbers, so that the workers' is the one that was bound."""
    return at(bound.getsockname()[0], bound)


def at(host: str, bound: socket.socket) -> str:
    """`host` with the port that was bound."""
    return f"{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def _bound(host: str, port: int, option: str, shared: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, shared, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        wrong = option if error.errno in _THE_PORTS_FAULT else _HOST_OF.get(option, "--host")
        raise SettingsError(
            f"{host}:{port} cannot be bound ({error.strerror}): choose another {wrong}"
        ) from error
    return made
