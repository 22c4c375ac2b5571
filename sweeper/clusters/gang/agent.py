"""Starts what an attempt consists of on one node, side by side, and reports how the trainer ended.

    python -I -S agent.py FOLDER RANK TEMP_DIR      (under guard.py, which ends whatever this leaves)

One node: the attempt's own Ray cluster (if the job wants one), the fork server (if the job preloads modules) and the
trainer start at the same moment: while the trainer still imports, Ray comes up, and `ray.init` waits for it. Several:
the nodes find each other (link.py) while the fork servers import; the first node compares them, brings Ray up on
exactly those and starts the trainer once they are there with all their ranks; a node that is lost ends the attempt.

Guarantees: the Ray cluster is reachable only with the gang's token, which exists in the environment of the attempt's
processes alone; its ports are its own, and a port lost to somebody else between choice and use is replaced by another
(the trainer, which can have done nothing without Ray, is started anew); a gang that does not come together within
`join_s`, or whose nodes differ, is a failed launch that names the node. Prints one line of JSON: {"code", "reason",
"detail"}.

Only the standard library: importing Ray here would cost what the start-up is to save.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if TYPE_CHECKING or __package__:
    from sweeper.clusters.gang import devices, link
else:  # a script, with its neighbours
    sys.path.insert(0, str(HERE))
    import devices
    import link

TEMP_DIR = "SWEEPER_TEMP_DIR"
"""Variable of the attempt's processes on a node of several: that node's private temp-dir."""
LOOPBACK = "127.0.0.2"
"""Where the Ray cluster of one node listens. Ray replaces 127.0.0.1 by the machine's address, which other hosts reach
and which a change of network takes away; other loopback addresses are kept."""
RAY_TRIES = 3
READY_LOG = "gang/ready.log"
RAY_READY_S = 120.0
"""For a Ray cluster to be up. Takes 2-8 s on an idle machine; Ray itself gives up after 30 s for a node."""
RAY_UP = "ray_current_cluster"
"""In a temp-dir: the file into which `ray start` writes the head's address once its node is up."""
POLL_S = 0.02
PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral ports (32768 up), so that no outgoing connection takes one of ours."""
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child calls before exec so that the kernel kills it with its parent, of which `parent` is the pid."""
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


def accepts(at: str) -> bool:
    """Whether somebody listens at that host:port."""
    host, _, port = at.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class LaunchError(Exception):
    """The attempt could not be started; the message says why."""


class Ended(Exception):  # noqa: N818  (no error)
    """The node's part is over before the trainer started; `report` is what to say."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report


class Agent:
    """One attempt on one node; see the module. `job` is what gangs.py writes."""

    def __init__(self, job: dict[str, Any], folder: Path, rank: int, temp_dir: Path) -> None:
        self.job, self.rank = job, rank
        self.folder, self.temp_dir = folder, temp_dir
        self.python: str = job["python"]
        self.ray: dict[str, Any] | None = job["ray"]
        self.nodes: list[dict[str, str]] = job["nodes"]
        self.several = len(self.nodes) > 1
        self.token = os.environ.pop("SWEEPER_GANG_TOKEN", "") or secrets.token_hex(32)
        self.name = os.environ.pop("SWEEPER_NODE", "") or self.nodes[rank]["name"] or socket.gethostname()
        self.address = self.nodes[rank]["address"] or ("" if self.several else LOOPBACK)
        self.log = "log.txt" if rank == 0 else f"gang/{rank}.log"
        self.ray_log = "ray.log" if rank == 0 else f"gang/{rank}.ray.log"
        # What the controller let through (an allow-list and the inherited secrets) is in our environment already.
        self.env: dict[str, str] = {**os.environ, **job["env"]}
        if self.ray:
            self.env.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token})
            # Workers started in advance would not come from the fork server, and nobody waits for them.
            self.env.setdefault("RAY_enable_worker_prestart", "false")
            self.env.setdefault("RAY_prestart_worker_first_driver", "false")
        if self.several:
            self.env[TEMP_DIR] = str(temp_dir)
        self.link: link.Head | link.Member | None = None
        self.terminated = False
        # Every signal writes into a pipe: one select() waits for children and for the link.
        self.signals, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The guard sends SIGTERM to everybody. If we died of it, the kernel would kill the trainer with us, but it is
        # to have its grace: we end when it does. (A handler, because an ignored signal would stay so in the trainer.)
        signal.signal(signal.SIGTERM, self.on_term)

    def on_term(self, *_: object) -> None:
        """The guard ends the node's part."""
        self.terminated = True

    def wait(self, timeout_s: float | None) -> None:
        """Until a child ends, the link says something or must be served, or the time is over."""
        files = [self.signals, *(self.link.files() if self.link else [])]
        if self.link:
            timeout_s = link.BEAT_S if timeout_s is None else min(timeout_s, link.BEAT_S)
        ready, _, _ = select.select(files, [], [], timeout_s)
        if self.signals in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.signals, 4096)

    def spawn(self, command: list[str], log: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process of the attempt, in a session of its own."""
        with (self.folder / log).open("ab", buffering=0) as out:
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=self.folder,
                    start_new_session=True,
                    preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509  (there is no other thread)
                )
            except OSError as error:
                raise LaunchError(f"{self.name}: cannot start {command[0]}: {error.strerror}") from error

    def start_fork_server(self) -> str | None:
        """Start it if the job preloads modules. Returns the executable that stands for the interpreter."""
        if not self.job["preload"]:
            return None
        path = self.temp_dir / "fork"
        self.spawn(
            [self.python, "-u", str(HERE / "forkserver.py"), str(path), *self.job["preload"]], self.log, self.env
        )
        # One word, because Ray pastes it into a shell command and Hydra into an override.
        client = self.temp_dir / "python"
        command = shlex.join([self.python, "-I", "-S", str(HERE / "forkclient.py"), str(path), self.python])
        client.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        client.chmod(0o700)
        if not os.access(client, os.X_OK):  # a temp-dir mounted noexec
            self.say(f"{self.temp_dir} does not allow programs; going on without the fork server")
            return None
        return self.shared_client() if self.several else str(client)

    def shared_client(self) -> str | None:
        """One path that is good on every node, since Ray starts its workers with it everywhere; each node's own
        client, where it has one, is behind it."""
        path = self.folder / "gang" / "python"
        if not re.fullmatch(r"[\w./-]+", str(path)):  # it is to be one word for a shell and for Hydra
            return None
        if self.rank == 0:
            own = f'"${TEMP_DIR}/python"'
            plain = shlex.quote(self.python)
            path.write_text(f'#!/bin/sh\nif [ -x {own} ]; then exec {own} "$@"; else exec {plain} "$@"; fi\n')
            path.chmod(0o755)
        return str(path) if os.access(path, os.X_OK) else None

    def say(self, line: str) -> None:
        """A line of ours in the attempt's log."""
        with (self.folder / self.log).open("a") as log:
            log.write(f"sweeper: {line}\n")

    def start_ray(self, head: str = "") -> tuple[subprocess.Popen[bytes], str]:
        """Start this node's part of the attempt's Ray cluster, the head unless that is given. Returns it and the
        address of the head's control store."""
        assert self.ray is not None
        host = self.address
        ports = [free_port(host) for _ in range(3)]
        command = [self.python, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={host}"]
        command += [f"--temp-dir={self.temp_dir}", f"--num-cpus={self.ray['cpus']}", f"--num-gpus={self.ray['gpus']}"]
        command += [f"--object-store-memory={self.ray['object_store_bytes']}", "--disable-usage-stats"]
        # Ray's defaults for these are fixed numbers, on which two attempts of one machine would meet.
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={ports[0]}"]
        if head:
            command += [f"--address={head}"]
        else:
            command += ["--head", f"--port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
            command += ["--include-dashboard=false", "--no-monitor"]
        return self.spawn(command, self.ray_log, self.env), head or f"{host}:{ports[1]}"

    def start_trainer(self, client: str | None, ray: str) -> subprocess.Popen[bytes]:
        """Start the trainer."""
        command = list(self.job["argv"])
        if client:
            command += [a.replace("{python}", client) for a in self.job["fork_argv"]]
            if command[0] == self.python:
                command[0] = client
        return self.spawn(command, "log.txt", {**self.env, "RAY_ADDRESS": ray} if ray else self.env)

    def run(self) -> dict[str, Any]:
        """From the start to the end of the node's part; what to report."""
        if self.job.get("listen"):  # to what the controller asks for when it cannot reach this node
            own = [sys.executable, "-I", "-S", str(HERE / "listen.py"), str(self.folder), str(self.rank)]
            self.spawn(own, self.log, dict(os.environ))
        if self.rank > 0:
            return self.run_member()
        return self.run_head() if self.several else self.run_alone()

    # --- a gang of one node: the trainer imports while Ray comes up ---

    def run_alone(self) -> dict[str, Any]:
        """From the start to the trainer's end."""
        client = self.start_fork_server()
        if not self.ray:
            return self.follow(self.start_trainer(client, ""), None)
        for _ in range(RAY_TRIES):
            ray, at = self.start_ray()
            trainer = self.start_trainer(client, at)
            if self.ray_is_up(ray, at, trainer):
                return self.follow(trainer, ray)
            if self.terminated:
                return {"code": None, "reason": "stopped", "detail": ""}
            for process in (trainer, ray):
                process.kill()
                process.wait()
        raise LaunchError(self.no_ray(self.address))

    def ray_is_up(self, ray: subprocess.Popen[bytes], at: str, trainer: subprocess.Popen[bytes]) -> bool:
        """Wait until Ray is up (True), or ended or takes too long (False). True as well once the trainer ended.

        That its head accepts connections is not enough: on a busy machine it may still give up its own node.
        """
        deadline = time.monotonic() + RAY_READY_S
        while time.monotonic() < deadline and not self.terminated:
            if ray.poll() is not None:
                return False
            if trainer.poll() is not None or self.ray_says_up(at):
                return True
            time.sleep(POLL_S)
        return accepts(at) and not self.terminated

    def ray_says_up(self, at: str) -> bool:
        """Whether Ray's own record says that the node of that head is up."""
        with contextlib.suppress(OSError):
            return (self.temp_dir / RAY_UP).read_text().strip() == at
        return False

    def no_ray(self, where: str) -> str:
        """What to say when Ray did not start in all tries."""
        said = tail(self.folder / self.ray_log)
        return f"Ray did not start on {where} in {RAY_TRIES} tries; is the machine too busy?\n{said}"

    def follow(self, trainer: subprocess.Popen[bytes], ray: subprocess.Popen[bytes] | None) -> dict[str, Any]:
        """Wait for the trainer to end, or for Ray or a node to be lost."""
        while (code := trainer.poll()) is None:
            if ray is not None and ray.poll() is not None:
                # A trainer whose Ray died hangs or fails with noise: the loss is the cause worth reporting.
                return {"code": None, "reason": "lost", "detail": self.ray_ended(ray)}
            if ended := self.said_by_members():
                return ended
            self.wait(None)
            self.reap_others(trainer, ray)
        return {"code": code, "reason": "exit", "detail": ""}

    def ray_ended(self, ray: subprocess.Popen[bytes]) -> str:
        """What to say when Ray did."""
        on = f" on {self.name}" if self.several else ""
        said = tail(self.folder / self.ray_log)
        return f"the attempt's Ray cluster ended{on} with code {ray.returncode}:\n{said}"

    @staticmethod
    def reap_others(*ours: subprocess.Popen[bytes] | None) -> None:
        """Reap children that are none of those (a fork server that gave up)."""
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended and ended.si_pid not in {process.pid for process in ours if process}:
                os.waitpid(ended.si_pid, 0)

    # --- the first node of several ---

    def run_head(self) -> dict[str, Any]:
        """Gather the nodes, bring the Ray cluster up on exactly those, then train."""
        client = self.start_fork_server()
        self.address = self.address or link.own_address()
        own = self.about(self.ask_versions())  # before anybody hears us: it may take longer than we may be silent
        try:
            self.link = link.Head(self.address, self.token, len(self.nodes), self.folder / "gang" / "link.json")
        except OSError as error:
            raise LaunchError(self.not_its_address(error)) from error
        try:
            ray, at = self.bring_ray_up(own) if self.ray else (None, "")
            if ray is None:
                self.gather(own)
            self.say(f"{len(self.nodes)} nodes are ready")
            self.link.tell({"training": True})
            return self.follow(self.start_trainer(client, at), ray)
        except Ended as end:
            return end.report
        finally:
            self.link.close()

    def bring_ray_up(self, own: dict[str, Any]) -> tuple[subprocess.Popen[bytes], str]:
        """Ray on exactly the gang's nodes. Its head gives up where a machine is so busy that it is not up in 30 s, or a
        port was lost: then once more, on all nodes."""
        assert isinstance(self.link, link.Head)
        for _ in range(RAY_TRIES):
            ray, at = self.start_ray()
            if self.while_it_lives(ray, lambda at=at: accepts(at)):  # type: ignore[misc]
                self.gather(own)
                self.link.tell({"ray": at})
                probe = self.start_probe(at)
                if self.while_it_lives(ray, lambda probe=probe: probe.poll() is not None):  # type: ignore[misc]
                    if probe.returncode:
                        said = tail(self.folder / READY_LOG, 5)
                        raise LaunchError(f"the gang's Ray cluster is not what was reserved:\n{said}")
                    return ray, at
                probe.kill()
            ray.kill()
            ray.wait()
        raise LaunchError(self.no_ray(f"{self.name} ({self.address})"))

    def while_it_lives(self, ray: subprocess.Popen[bytes], done: Callable[[], bool]) -> bool:
        """Serve the link until it is done; False when Ray ended before, or it takes too long."""
        deadline = time.monotonic() + RAY_READY_S + 5.0  # the probe says why, if it can
        while ray.poll() is None and time.monotonic() < deadline:
            if done():
                return True
            self.members()
            self.wait(POLL_S)
        return False

    def members(self) -> None:
        """Serve the link while the gang is brought up: what goes wrong on a node is a failed launch, or the end."""
        assert isinstance(self.link, link.Head)
        for rank, message in self.link.pump():
            if why := message.get("failed"):
                raise LaunchError(f"{self.who(rank)}: {why}")
            if why := message.get("lost"):
                raise LaunchError(f"{self.who(rank)} was lost before the trainer started: {why}")
            if "bye" in message:
                raise Ended({"code": None, "reason": "stopped", "detail": f"{self.who(rank)} was told to stop"})
        if self.terminated:
            raise Ended({"code": None, "reason": "stopped", "detail": ""})

    def who(self, rank: int) -> str:
        """A node as people know it."""
        assert isinstance(self.link, link.Head)
        about = self.link.about.get(rank, {})
        named, address = self.nodes[rank]["name"], about.get("address") or self.nodes[rank]["address"]
        return f"node {about.get('name') or named or rank}" + (f" ({address})" if address else "")

    def gather(self, own: dict[str, Any]) -> None:
        """Wait for all nodes, each alike this one."""
        assert isinstance(self.link, link.Head)
        deadline = time.monotonic() + self.job["join_s"]
        checked: set[int] = set()
        while True:
            self.members()
            for rank in set(self.link.about) - checked:
                checked.add(rank)
                self.compare(own, rank)
            if not self.link.missing:
                return
            for rank in self.link.missing:
                if why := self.ended_early(rank):
                    raise LaunchError("\n".join([f"{self.who(rank)} ended before it joined: {why}", *self.sent_away()]))
            if time.monotonic() > deadline:
                raise LaunchError(self.who_is_missing())
            self.wait(0.2)

    def ended_early(self, rank: int) -> str:
        """Why a node's part has ended, by its record; empty while it has none."""
        try:
            names = os.listdir(self.folder / "gang")  # noqa: PTH208  (a network filesystem looks again)
            if f"{rank}.exit.json" not in names:
                return ""
            said = json.loads((self.folder / "gang" / f"{rank}.exit.json").read_text())
            return str(said["detail"] or said["reason"])
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def who_is_missing(self) -> str:
        """Who did not join, and what is known of it."""
        assert isinstance(self.link, link.Head)
        found = []
        for rank in self.link.missing:
            log = self.folder / "gang" / f"{rank}.log"
            begun = (self.folder / "gang" / f"{rank}.json").exists()
            said = tail(log, 3) or ("it was started and said nothing" if begun else "it was never started")
            found.append(f"{self.who(rank)} did not join within {self.job['join_s']:g} s (cluster.join_s): {said}")
        return "\n".join([*found, *self.sent_away()])

    def sent_away(self) -> list[str]:
        """Who wanted to join and was refused, in a sentence; nothing if nobody was."""
        assert isinstance(self.link, link.Head)
        who = ", ".join(sorted(set(self.link.refused)))
        return [f"sent away, for they did not know the gang's token: {who}"] if who else []

    def compare(self, own: dict[str, Any], rank: int) -> None:
        """LaunchError if the node differs from this one in what must be the same."""
        assert isinstance(self.link, link.Head)
        theirs = self.link.about[rank]
        for what, key in (("Python", "python"), ("Ray", "ray"), ("visible GPUs", "devices"), ("protocol", "version")):
            if theirs.get(key) != own[key]:
                raise LaunchError(
                    f"{self.who(rank)} has {what} {theirs.get(key)}, and node {self.name} ({self.address}) has "
                    f"{own[key]}: they must be the same on all nodes of a gang (engine.python={self.python})"
                )

    def ask_versions(self) -> subprocess.Popen[bytes]:
        """Ask the engine's interpreter which it is and which Ray it has, beside what else is done."""
        code = (
            "import json, platform\n"
            "from importlib.metadata import PackageNotFoundError, version\n"
            "try: ray = version('ray')\n"
            "except PackageNotFoundError: ray = None\n"
            "print(json.dumps({'python': platform.python_version(), 'ray': ray}))"
        )
        try:
            return subprocess.Popen(
                [self.python, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.env,
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509
            )
        except OSError as error:
            raise LaunchError(f"{self.name}: cannot start {self.python}: {error.strerror}") from error

    def about(self, versions: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What this node says of itself."""
        try:
            out, err = versions.communicate(timeout=60)
            found = json.loads(out)
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{self.name}: {self.python} did not say its version within 60 s") from None
        except ValueError:
            said = err.decode(errors="replace").strip().splitlines()[-1:]
            raise LaunchError(f"{self.name}: {self.python} does not work: {''.join(said)}") from None
        if self.ray and not found["ray"]:
            raise LaunchError(f"{self.name}: {self.python} has no Ray; engine.python names the trainer's interpreter")
        count = None
        if self.job["device"] == "cuda":
            count = len(devices.accelerators())
            if count != self.job["ranks"]:
                raise LaunchError(f"{self.name} shows {count} GPUs, and {self.job['ranks']} were reserved there")
        node = {"rank": self.rank, "name": self.name, "devices": count}
        return {**found, **node, "version": self.job["version"]}

    def start_probe(self, at: str) -> subprocess.Popen[bytes]:
        """It ends when exactly the gang's nodes, with exactly their ranks, are in its Ray cluster."""
        assert self.ray is not None and isinstance(self.link, link.Head)
        addresses = [self.address, *(self.link.about[rank]["address"] for rank in range(1, len(self.nodes)))]
        expected = json.dumps([[address, self.ray["gpus"]] for address in addresses])
        command = [self.python, str(HERE / "probe.py"), at, expected, str(RAY_READY_S)]
        return self.spawn(command, READY_LOG, self.env)

    def said_by_members(self) -> dict[str, Any] | None:
        """Serve the link while the trainer runs; the attempt's end, if a node is the reason for one."""
        if not isinstance(self.link, link.Head):
            return None
        for rank, message in self.link.pump():
            if why := message.get("lost") or message.get("failed"):
                return {"code": None, "reason": "lost", "detail": f"{self.who(rank)} was lost: {why}"}
            if "bye" in message:
                return {"code": None, "reason": "stopped", "detail": f"{self.who(rank)} was told to stop"}
        return None

    def not_its_address(self, error: OSError) -> str:
        """What is said where the system does not let us have our address."""
        why = os.strerror(error.errno) if error.errno else str(error)
        return f"{self.name} cannot listen on its address {self.address}: {why} (ip -brief address shows those it has)"

    # --- the other nodes ---

    def run_member(self) -> dict[str, Any]:
        """Join the head and be its Ray cluster's node, until it ends."""
        if self.address:
            try:  # asked before: to who joins it would look as if the head could not be reached, until the time is over
                socket.create_server((self.address, 0)).close()
            except OSError as error:
                raise LaunchError(self.not_its_address(error)) from error
        self.start_fork_server()
        until = time.monotonic() + self.job["join_s"]
        own = self.about(self.ask_versions())
        file = self.folder / "gang" / "link.json"
        try:
            self.link, self.address = link.join(
                file, self.token, self.address, own, until, lambda: not (self.terminated or self.ended_early(0))
            )
        except link.LinkError as error:
            why = self.ended_early(0)
            raise LaunchError(f"{self.name}: {f'the first node has ended: {why}' if why else error}") from error
        try:
            return self.serve(self.link)
        except LaunchError as error:
            self.link.say({"failed": str(error)})
            raise
        finally:
            self.link.close()

    def serve(self, head: link.Member) -> dict[str, Any]:
        """Until the head ends, or is lost."""
        ray: subprocess.Popen[bytes] | None = None
        at, tries, training = "", 0, False
        while True:
            for message in head.pump():
                if "bye" in message:
                    return {"code": None, "reason": "exit", "detail": ""}
                if why := message.get("lost"):
                    first = self.nodes[0]["name"]
                    which = f"the first node, {first}, was lost" if first else "the first node was lost"
                    return {"code": None, "reason": "lost", "detail": f"{self.name}: {which}: {why}"}
                training = training or "training" in message
                if message.get("ray", at) != at:
                    at, tries = message["ray"], 0
                    if ray is not None:  # of a head that did not come up
                        ray.kill()
                        ray.wait()
                        ray = None
            if self.terminated:
                head.say({"bye": "told to stop"})
                return {"code": None, "reason": "stopped", "detail": ""}
            if at and (ray is None or ray.poll() is not None):
                # A port that was free when it was chosen may be taken by now; later its end is the node's.
                if tries == RAY_TRIES or training:
                    why = self.ray_ended(ray) if ray else ""
                    head.say({"failed": why})
                    return {"code": None, "reason": "lost", "detail": why}
                tries += 1
                ray, _ = self.start_ray(at)
            self.wait(None)
            self.reap_others(ray)


def main() -> None:
    """Run the job and report."""
    folder, rank, temp_dir = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    try:
        job = json.loads((folder / "gang" / "gang.json").read_text())
        named = os.environ.pop("SWEEPER_GANG_NODES", "")
        if named:
            pairs = [pair.partition("=") for pair in named.split(",")]
            job["nodes"] = [{"name": name, "address": address} for name, _, address in pairs]
        report = Agent(job, folder, rank, temp_dir).run()
    except (LaunchError, OSError, ValueError) as error:
        report = {"code": None, "reason": "launch", "detail": str(error)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
