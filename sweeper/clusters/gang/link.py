"""What holds the nodes of a gang together: a connection from each node to the first one.

Guarantees: nobody is heard who has not proved that it knows the gang's token, and nobody is told anything (each side
answers the other's challenge with an HMAC, which covers what the node says of itself); the token itself is never sent;
a node that is silent for SILENCE_S, or whose connection ends without a farewell, is lost, on either side, so that both
sides of a cut network end their part. Nothing blocks: `pump` handles what is there.

One JSON object a line. The first node listens on its own address alone, at a port that it writes to link.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEAT_S = 1.0
SILENCE_S = 10.0
HANDSHAKE_S = 20.0
MOST = 1_000_000
"""Bytes of a line; a stranger's that is longer is no node's."""

Message = dict[str, Any]


class LinkError(Exception):
    """The other side is not what it must be; the message says why."""


def proof(token: str, *words: str) -> str:
    """That who says those words knows the token."""
    return hmac.new(token.encode(), "\0".join(words).encode(), hashlib.sha256).hexdigest()


def own_address() -> str:
    """The address of this host that others reach it at: of its way to elsewhere, else of its name. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())


class Wire:
    """One connection: lines out, lines in, and when it was last heard."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self.peer = str(connection.getpeername()[0])
        self._in = b""
        self._waiting: list[Message] = []
        self.heard = self.since = time.monotonic()
        self._beat = 0.0
        self.lost = ""
        """Why nothing comes any more; empty while it may."""

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """A line; what cannot be sent is a loss."""
        try:
            # A line is short and the kernel's buffer is not: what does not fit was not read for hours.
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self.lost = self.lost or f"the connection broke ({error.strerror or error})"

    def receive(self) -> list[Message]:
        """What came; sets `lost` at the connection's end."""
        try:
            while part := self._socket.recv(65_536):
                self._in += part
                self.heard = time.monotonic()
                if len(self._in) > MOST:
                    raise OSError("too long a line")
            self.lost = self.lost or "the connection ended"
        except BlockingIOError:
            pass
        except OSError as error:
            self.lost = self.lost or f"the connection broke ({error.strerror or error})"
        *lines, self._in = self._in.split(b"\n")
        found, self._waiting = self._waiting, []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                self.lost = self.lost or "it does not speak our language"
                break
            found.append(message)
        return found

    def next(self, timeout_s: float) -> Message:
        """Wait for one line that says something. OSError if none comes, with why."""
        deadline = time.monotonic() + timeout_s
        while True:
            said = [message for message in self.receive() if message]
            if said:
                self._waiting = said[1:]
                return said[0]
            if self.lost or time.monotonic() > deadline:
                raise ConnectionError(self.lost or f"it said nothing for {timeout_s:.0f} s")
            select.select([self], [], [], max(0.0, deadline - time.monotonic()))

    def keep(self, now: float) -> None:
        """Say that we live; find out whether the other side does."""
        if now >= self._beat:
            self._beat = now + BEAT_S
            self.send({})
        if now - self.heard > SILENCE_S:
            self.lost = self.lost or f"it was silent for {SILENCE_S:.0f} s"

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class Head:
    """The first node's side."""

    def __init__(self, address: str, token: str, nodes: int, file: Path) -> None:
        """Listen and say where in `file`. OSError if the address is not this host's."""
        self._token, self._nodes = token, nodes
        self._listener = socket.create_server((address, 0), backlog=128)
        self._listener.setblocking(False)
        self._strangers: dict[Wire, str] = {}
        """Each with the challenge that it was sent."""
        self._members: dict[int, Wire] = {}
        self.about: dict[int, Message] = {}
        """What each node that joined says of itself."""
        self.refused: list[str] = []
        """Addresses of those who asked to join and were sent away."""
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps({"host": address, "port": self._listener.getsockname()[1]}))
        partial.replace(file)

    @property
    def missing(self) -> list[int]:
        """Ranks that have not joined."""
        return [rank for rank in range(1, self._nodes) if rank not in self.about]

    def files(self) -> Sequence[Any]:
        """For select."""
        return [self._listener, *self._strangers, *self._members.values()]

    def pump(self) -> list[tuple[int, Message]]:
        """Handle what is there: what members said, by rank; {"lost": why} is said for one that is gone."""
        now = time.monotonic()
        with contextlib.suppress(OSError):  # none is left, or it is gone already
            while True:
                self._greet(Wire(self._listener.accept()[0]))
        for wire in list(self._strangers):
            self._listen(wire, now)
        said = []
        for rank, wire in list(self._members.items()):
            said += [(rank, message) for message in wire.receive() if message]
            wire.keep(now)
            if wire.lost:
                if not any(r == rank and "bye" in m for r, m in said):
                    said.append((rank, {"lost": wire.lost}))
                del self._members[rank]
                wire.close()
        return said

    def _greet(self, wire: Wire) -> None:
        self._strangers[wire] = secrets.token_hex(16)
        wire.send({"challenge": self._strangers[wire]})

    def _listen(self, wire: Wire, now: float) -> None:
        """A stranger becomes a member, or is sent away."""
        for message in wire.receive():
            challenge, known, rank, theirs = self._strangers.pop(wire), False, 0, ""
            try:
                about, theirs = str(message["about"]), str(message["challenge"])
                known = hmac.compare_digest(str(message["proof"]), proof(self._token, "node", challenge, theirs, about))
                said = json.loads(about)
                rank = int(said["rank"])
            except (KeyError, TypeError, ValueError):
                pass
            if not known or rank not in self.missing:
                self.refused.append(wire.peer)
                wire.send({"refused": True})
                wire.close()
                return
            self._members[rank], self.about[rank] = wire, said
            wire.send({"proof": proof(self._token, "head", theirs)})
            return
        if wire.lost or now - wire.since > HANDSHAKE_S:
            del self._strangers[wire]
            wire.close()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Something to every member."""
        for wire in self._members.values():
            wire.send(message)

    def close(self) -> None:
        """The gang's end: the other nodes end their parts."""
        self.tell({"bye": "the first node ended"})
        for wire in self._members.values():
            wire.close()
        self._listener.close()


class Member:
    """Another node's side, joined."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def files(self) -> Sequence[Any]:
        """For select."""
        return [self._wire]

    def pump(self) -> list[Message]:
        """What the head said; {"lost": why} when it is gone."""
        said = [message for message in self._wire.receive() if message]
        self._wire.keep(time.monotonic())
        if self._wire.lost and not any("bye" in message for message in said):
            said.append({"lost": self._wire.lost})
        return said

    def say(self, message: Mapping[str, Any]) -> None:
        """Something to the head."""
        self._wire.send(message)

    def close(self) -> None:
        """Leave."""
        self._wire.close()


def join(
    file: Path, token: str, address: str, about: Message, until: float, going: Callable[[], bool]
) -> tuple[Member, str]:
    """Connect to the head, once it says where it is; the connection, and our address.

    Args:
        address: Ours; empty: that of our side of the connection.
        about: What we say of ourselves, beside the address.
        until: When we give up, on the monotonic clock.
        going: Asked again and again; False: give up now.

    Raises:
        LinkError: The head is not there in time, refuses us, or does not know the token.
    """
    why, at = f"{file} did not appear", {"host": "", "port": 0}
    while time.monotonic() < until and going():
        try:
            # Listing the folder makes a network filesystem look again; a file that was not there stays away from its
            # cache for a minute otherwise.
            os.listdir(file.parent)  # noqa: PTH208
            at = json.loads(file.read_text())
            return _shake_hands(at["host"], int(at["port"]), token, address, about)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError) as error:
            why = f"{file} names {at['host']}:{at['port']}, and: {error}"
        time.sleep(0.1)
    raise LinkError(f"the first node could not be reached: {why}")


def _shake_hands(host: str, port: int, token: str, address: str, about: Message) -> tuple[Member, str]:
    """Raises OSError where it is worth trying again, LinkError where it is not."""
    source = (address, 0) if address else None
    connection = socket.create_connection((host, port), timeout=HANDSHAKE_S, source_address=source)
    address = address or str(connection.getsockname()[0])
    said = json.dumps({**about, "address": address})
    wire, own = Wire(connection), secrets.token_hex(16)
    try:
        challenge = str(wire.next(HANDSHAKE_S).get("challenge"))
        wire.send({"about": said, "challenge": own, "proof": proof(token, "node", challenge, own, said)})
        answer = wire.next(HANDSHAKE_S)
        if "refused" in answer:
            who = f"the first node ({host}:{port}) sent us away"
            raise LinkError(f"{who}: our token is not the gang's, or our rank has joined already")
        if not hmac.compare_digest(str(answer.get("proof")), proof(token, "head", own)):
            raise LinkError(f"who answers at {host}:{port} does not know the gang's token")
    except BaseException:
        wire.close()
        raise
    return Member(wire), address
