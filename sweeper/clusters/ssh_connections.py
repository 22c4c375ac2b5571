"""One connection a host, shared by all that is asked of it.

Guarantees: a host is let in only with a key of `known_hosts`, whatever SSH's own configuration says; nothing is asked
at a terminal; a connection that broke is made again when it is next needed; every failure becomes an answer that names
the host, the cause and the command to run; commands of several hosts run side by side. All of it lives in one
background thread, so that a host that hangs never holds up the caller longer than the time it gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import asyncssh

from sweeper.clusters.base import Answer
from sweeper.clusters.ssh_hosts import Host, Settings
from sweeper.errors import Problem

KEEPALIVE_S, KEEPALIVES = 3, 3
"""A connection whose other end says nothing for so many of so many seconds is lost."""
SESSIONS = 8
"""Commands of one host at once; sshd allows ten a connection unless told otherwise."""
LATE_S = 2.0
"""What a command's own time limit may be passed by until we do not wait for its end either."""


class UnreachableError(Exception):
    """A host cannot be reached or does not let us in."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__("\n".join(problem.lines()))


class Connections:
    """To all hosts of `settings`; a place is a host's index there. Safe to use from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = tuple(host.name for host in settings.hosts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ssh", daemon=True)
        self._thread.start()
        self._lines = [_Line(host, settings) for host in settings.hosts]

    def submit(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> Future[dict[int, Answer]]:
        """Run a command on each of those places, side by side; returns at once. The future never fails."""
        return self._call(self._gather(commands, stdin, timeout_s))

    def run(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> dict[int, Answer]:
        """The same, and wait for the answers: `timeout_s` for a command, besides what connecting takes."""
        return self.submit(commands, stdin, timeout_s).result()

    def addresses(self) -> list[str | Problem]:
        """Connect to all hosts: where each is reached by the others, or why it cannot be reached by us."""

        async def all_of_them() -> list[str | Problem]:
            return await asyncio.gather(*(line.address() for line in self._lines))

        found: list[str | Problem] = self._call(all_of_them()).result()
        return found

    def close(self) -> None:
        """Close the connections. What runs on the hosts goes on."""
        if self._thread.is_alive():

            async def all_of_them() -> None:
                await asyncio.gather(*(line.close() for line in self._lines))

            with contextlib.suppress(TimeoutError):
                self._call(all_of_them()).result(LATE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LATE_S)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _gather(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> dict[int, Answer]:
        answers = await asyncio.gather(
            *(self._lines[place].run(argv, stdin.get(place, ""), timeout_s) for place, argv in commands.items())
        )
        return dict(zip(commands, answers, strict=True))


class _Line:
    """The connection of one host. Lives in the loop's thread."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host, self.settings = host, settings
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._sessions = asyncio.Semaphore(SESSIONS)

    async def connection(self) -> asyncssh.SSHClientConnection:
        """The connection, made if needed. UnreachableError if it cannot be."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        pinned = [str(path) for path in self.settings.known_hosts if path.exists()]
        # Without a file no key is trusted, and it is still tried: a host that is not there is not one that is unknown.
        # The empty list itself would mean ~/.ssh/known_hosts to asyncssh.
        trusted = pinned or asyncssh.import_known_hosts("")
        options: dict[str, Any] = {"known_hosts": trusted, "config": None}
        if self.settings.config:
            options["config"] = [str(self.settings.config)]
        if self.host.port:
            options["port"] = self.host.port
        if self.host.user:
            options["username"] = self.host.user
        if self.host.key:
            options["client_keys"] = [self.host.key]
        try:
            return await asyncio.wait_for(
                asyncssh.connect(
                    self.host.host, keepalive_interval=KEEPALIVE_S, keepalive_count_max=KEEPALIVES, **options
                ),
                self.settings.connect_s,
            )
        except (OSError, asyncssh.Error, ValueError, TimeoutError) as error:
            raise UnreachableError(_explained(self.host, self.settings, error)) from error

    async def address(self) -> str | Problem:
        """Where the other hosts reach it, or why we do not."""
        try:
            found = (await self.connection()).get_extra_info("peername")[0]
        except UnreachableError as error:
            return error.problem
        if self.host.address:
            return self.host.address
        if found in ("127.0.0.1", "::1"):
            return Problem(
                f"host {self.host.name} is reached at {found}, where no other host reaches it",
                valid="an address of it that all hosts reach",
                fix=f"cluster.ssh.hosts=[{{host: {self.host.host}, address: <its address>}}, ...]",
                key="cluster.ssh.hosts",
            )
        return str(found)

    async def run(self, argv: Sequence[str], stdin: str, timeout_s: float) -> Answer:
        """What the command said; never raises."""
        name = self.host.name
        try:
            connection = await self.connection()
            async with self._sessions:
                # The channel is closed when it took too long; whether the command ends then is its own matter.
                done = await asyncio.wait_for(
                    connection.run(shlex.join(argv), input=stdin, encoding="utf-8", errors="replace"), timeout_s
                )
        except UnreachableError as error:
            return Answer(name, None, "", str(error))
        except TimeoutError:
            return Answer(name, None, "", f"host {name}: no end within {timeout_s:g} s: {shlex.join(argv)[:200]}")
        except (OSError, asyncssh.Error) as error:
            return Answer(name, None, "", f"host {name}: the connection was lost ({error})")
        return Answer(name, done.returncode, str(done.stdout or ""), str(done.stderr or ""))

    async def close(self) -> None:
        """Close it, if it is open."""
        if self._connection is not None:
            self._connection.close()
            with contextlib.suppress(Exception):
                await self._connection.wait_closed()


def _explained(host: Host, settings: Settings, error: Exception) -> Problem:
    """What a failure to connect means, and what to do."""
    key = "cluster.ssh.hosts"
    if isinstance(error, asyncssh.HostKeyNotVerifiable | asyncssh.KeyExchangeFailed):
        return _unknown_key(host, settings, str(error))
    if isinstance(error, asyncssh.PermissionDenied):
        with_key = f" with {host.key}" if host.key else ""
        return Problem(
            f"host {host.name} refuses us{with_key}: {error}",
            valid="a key that stands in the authorized_keys of that user there",
            fix=f"ssh-copy-id {host.typed}",
            key=key,
        )
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return Problem(
            f"host {host.name}: the key {host.key} cannot be used: {error}",
            valid="a private key without a passphrase, or one that ssh-agent holds",
            fix=f"ssh-add {host.key}   (and cluster.ssh.key=null)",
            key="cluster.ssh.key",
        )
    if isinstance(error, FileNotFoundError | PermissionError) and host.key and not isinstance(error, ConnectionError):
        what = f"host {host.name}: the key {host.key} cannot be read: {error.strerror}"
        return Problem(
            what, valid="a private key's file", fix="cluster.ssh.key=~/.ssh/id_ed25519", key="cluster.ssh.key"
        )
    if isinstance(error, asyncssh.ConfigParseError):
        what = f"host {host.name}: {settings.config} cannot be used: {error}"
        return Problem(what, fix="cluster.ssh.config=null", key="cluster.ssh.config")
    if isinstance(error, TimeoutError):
        why = f"does not answer within {settings.connect_s:g} s"
    elif isinstance(error, ConnectionRefusedError):
        why = "refuses the connection: no SSH server listens there"
    elif isinstance(error, socket.gaierror):
        why = "is a name that cannot be resolved"
    else:
        why = f"cannot be reached: {error}"
    return Problem(f"host {host.name} {why}", fix=f"ssh {host.typed} true   (shows the cause)", key=key)


def _unknown_key(host: Host, settings: Settings, why: str = "") -> Problem:
    """No host key of it is known, or another one than it has."""
    file = settings.known_hosts[0]
    port = f"-p {host.port} " if host.port else ""
    if _known(host, settings):
        listed = f"[{host.host}]:{host.port}" if host.port and host.port != 22 else host.host
        return Problem(
            f"host {host.name} does not have the host key that {file} has of it: it was installed anew, or somebody "
            f"stands in between ({why})",
            valid="the key that is known, or the new one once it was compared on the host itself",
            fix=f"ssh-keygen -R '{listed}' -f {file} && ssh-keyscan {port}{host.host} >> {file}",
            key="cluster.ssh.known_hosts",
        )
    return Problem(
        f"host {host.name} is not known: {file} has no host key of it",
        valid="a host key that was compared with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
        fix=f"ssh-keyscan {port}{host.host} >> {file}",
        key="cluster.ssh.known_hosts",
    )


def _known(host: Host, settings: Settings) -> bool:
    """Whether any file has a key of that host."""
    files = [str(path) for path in settings.known_hosts if Path(path).exists()]
    if not files:
        return False
    try:
        found = asyncssh.match_known_hosts(files, host.host, "", host.port or 22)
    except (OSError, ValueError):
        return False
    return bool(found[0])
