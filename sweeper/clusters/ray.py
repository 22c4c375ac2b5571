"""An existing Ray cluster: a gang is a placement group, each node's part a process below an actor in its bundle.

Guarantees: a gang is reserved as a whole or not at all, on the nodes that were chosen, beside whoever else uses the
cluster; group and actors are detached, so that an attempt outlives its controller, and named after the attempt's
folder, in a namespace of the store, so that another controller finds them; they are given back only when no process of
the attempt is left; Ray's secrets do not reach the attempt, which has a Ray cluster of its own, of any version. The
nodes need Ray, a Python and the store, and not this package.

The driver's connection is Ray's: RAY_AUTH_MODE and RAY_AUTH_TOKEN (or its file) in the environment are its token.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sweeper import clusters
from sweeper.clusters import gangs
from sweeper.clusters.base import Answer, Attempt, Cluster, Ended, Exit
from sweeper.clusters.gang import janitor
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import RecordsError, cannot_write

RESERVE_S = 5.0
"""For a gang that fits: Ray takes milliseconds. Longer: somebody else was quicker."""
CONNECT_S = 5.0
CHECK_S = 60.0
"""For a node to say whether it sees the store: Ray starts a worker first."""
ASK_S = 0.5
"""Between two questions to an actor."""
SILENT_S = 10.0
"""Without an answer from a node's actor: it is said not to be heard from. Ray's own word comes after half a minute."""
FENCED_S = 5.0
"""After the first node of a gang has ended, until one whose actor is dead or silent has ended its part too."""
LOOK = (
    "import os, shutil, sys\n"
    "path, program = sys.argv[1:]\n"
    "seen = os.path.isdir(os.path.dirname(path)) and os.path.basename(path) in os.listdir(os.path.dirname(path))\n"
    "print(int(seen), int(not program or shutil.which(program) is not None))"
)
"""What a node is asked before its first part of a sweep: whether it sees a file of ours and has that program."""
DEAD_S = 15.0
"""After an actor died nothing of its node's part is left: the guard ends when its actor does (PR_SET_PDEATHSIG), and
when the gang's link is silent (10 s), and needs 2 s for that."""


# --- what runs on the nodes: by value, since this package is not there ---


@cache
def _remote() -> tuple[Any, Any]:
    """The class of the actors, and the function that answers for a node."""
    import ray

    class Node:
        """Holds a bundle; runs the node's part of an attempt below itself. The first node's gives the gang back once
        nothing of it is left anywhere, so that a gang whose controller is dead does not hold its nodes."""

        def __init__(self) -> None:
            self.process: Any = None
            self.look: list[str] = []

        def start(self, argv: list[str], line: str, look: list[str]) -> None:
            """Run node.py, give it its secrets."""
            import subprocess

            self.look = look
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
            try:
                self.process.stdin.write(line)
                self.process.stdin.close()
            except BrokenPipeError:  # it ended already, and its record says why
                pass

        def give_back(self, group: str, others: list[Any], dead_s: float) -> None:
            """Remove that placement group when our part and the others' have ended; returns at once."""
            import threading
            import time

            import ray
            from ray.util.placement_group import PlacementGroup, remove_placement_group

            def wait() -> None:
                self.process.wait()
                self.alive()
                for other in others:
                    try:
                        while ray.get(other.alive.remote()):
                            time.sleep(0.2)
                    except ray.exceptions.RayError:  # its node is gone, or it is
                        time.sleep(dead_s)
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))

            threading.Thread(target=wait, daemon=True).start()

        def alive(self) -> bool:
            """Whether anything of it is left; what a killed guard left is ended first."""
            import subprocess

            if self.process is None or self.process.poll() is None:
                return True
            if self.process.returncode != 0:
                subprocess.run(self.look, check=False, capture_output=True, timeout=60)
            return False

        def ask(self, argv: list[str]) -> None:
            """Ask the guard; before there is one, end what will become it."""
            import subprocess

            if self.process is not None and self.process.poll() is None:
                done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
                if '"asked": true' not in done.stdout:
                    self.process.terminate()

    def answer(argv: list[str], line: str, timeout_s: float) -> tuple[int | None, str, str]:
        """Run a command."""
        import subprocess

        try:
            done = subprocess.run(argv, input=line, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return None, "", f"no answer within {timeout_s:g} s"
        except OSError as error:
            return None, "", f"cannot start {argv[0]}: {error.strerror}"
        return done.returncode, done.stdout, done.stderr

    return ray.remote(Node), ray.remote(answer)


# --- the connection ---


def connect(address: str, namespace: str = "sweeper") -> None:
    """Be a driver of that cluster; once a process.

    Raises:
        RequestError: It is not there, or does not let us in.
    """
    import ray

    if ray.is_initialized():
        return
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _here()
    if ":" in address:  # RAY_ADDRESS may be of another form, which Ray knows
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise RequestError(
                Problem(
                    f"no Ray cluster answers at {address}: {error}",
                    valid="the address that `ray start --head` said: host:port; or auto",
                    fix=f"ray status --address {address}   (on a node of the cluster)",
                    key="cluster.ray.address",
                )
            ) from error
    try:
        with _silent():
            ray.init(
                address=address,
                namespace=namespace,
                log_to_driver=False,
                configure_logging=False,
                include_dashboard=False,
            )
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, its own and more
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        versions = any("Version mismatch" in line for line in lines)
        said = " ".join(lines) if versions else lines[0]
        token = any("AuthenticationError" in f"{type(e).__name__}: {e}" for e in _causes(error))
        raise RequestError(
            Problem(
                f"the Ray cluster at {address} does not let this program in: {said}",
                valid="the cluster's own token, and a machine that is one of its nodes"
                if token
                else "the cluster's own Ray and Python here (a trial's, engine.python, may be others)" * versions,
                fix=(
                    "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...   (as the cluster was started with)"
                    if token
                    else "pip install ray==VERSION   (the cluster's, under its Python)"
                    if versions
                    else f"ray start --address={address}   (on this machine: a sweep runs on a node of the cluster)"
                ),
                key="cluster.ray.address",
            )
        ) from error


def _here() -> str:
    """The cluster that this machine is a node of. What runs in a temp-dir of ours is a trial's own, or was started by
    `sweeper cluster up` and is used by its address."""
    others: set[str] = set()
    ours: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
            line = entry.read_bytes().decode(errors="replace")
            found = {word.partition("=")[2] for word in line.split("\0") if word.startswith("--gcs-address=")}
            (ours if f"/{janitor.PREFIX}" in line else others).update(found)
    with contextlib.suppress(OSError):
        latest = (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").read_text().strip()
        if latest in others:
            return latest
    if others - ours:
        return min(others - ours)
    raise RequestError(
        Problem(
            "cluster.ray.address=auto: this machine is a node of no Ray cluster",
            valid="a cluster that `ray start` joined this machine to; or host:port of its head",
            fix="cluster.ray.address=head:6379",
            key="cluster.ray.address",
        )
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches the terminal: Ray's client writes a line a second on the failure that we say ourselves."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: Ray says the reason first and then that it could not connect."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@dataclass(frozen=True, slots=True)
class Host:
    """A node of the cluster."""

    id: str
    name: str
    address: str
    ranks: int
    """GPUs, or CPUs where the cluster has no GPU that we use."""
    gpu: str
    memory_gib: float


def _hosts(device: str) -> tuple[str, list[Host]]:
    """The living nodes that have ranks, by address; and `cuda` or `cpu`."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if device == "auto":
        device = "cuda" if any(node["Resources"].get("GPU") for node in alive) else "cpu"
    found = []
    for node in alive:
        has = node["Resources"]
        ranks = int(has.get(_resource(device), 0))
        kinds = [key.partition(":")[2] for key in has if key.startswith("accelerator_type:")]
        gib = has.get("memory", 0) / 2**30 / max(1, ranks)
        if ranks:
            found.append(
                Host(
                    node["NodeID"],
                    node["NodeManagerHostname"],
                    node["NodeManagerAddress"],
                    ranks,
                    kinds[0].removeprefix("NVIDIA-") if kinds and device == "cuda" else "",
                    gib if device == "cpu" else 0.0,
                )
            )
    return device, sorted(found, key=lambda host: (host.address, host.id))


def _resource(device: str) -> str:
    return "GPU" if device == "cuda" else "CPU"


# --- the kind ---


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the group's keys."""
    own = config.get("ray")
    address = own.get("address") if isinstance(own, Mapping) else None
    _, colon, port = str(address).rpartition(":")
    found = []
    if address != "auto" and not (colon and port.isdigit()):
        valid = "host:port of the head, as `ray start --head` said; or auto"
        found.append(Problem(f"cluster.ray.address={address}", valid=valid, key="cluster.ray.address"))
    if config.get("nodes") is None:
        found.append(Problem("cluster.nodes is not given", valid="a whole number from 1", key="cluster.nodes"))
    return found


def shape(config: Mapping[str, Any]) -> Shape:
    """What the cluster has now."""
    address = config["ray"]["address"]
    connect(address)
    device, hosts = _hosts(config["device"])
    most = config["max_ranks"]
    ranks = [min(host.ranks, most or host.ranks) for host in hosts]
    asked = config["gpus_per_node"] or (max(ranks, default=0) if device == "cuda" else 1)
    fitting = sum(1 for n in ranks if n >= asked)
    if not ranks or fitting < config["nodes"]:
        what = "GPUs" if device == "cuda" else "CPU ranks"
        there = ", ".join(f"{host.name} ({host.address}) {n}" for host, n in zip(hosts, ranks, strict=True))
        raise RequestError(
            Problem(
                f"cluster.nodes={config['nodes']} with {asked or 'any'} {what} each: the Ray cluster at {address} has "
                + (f"{fitting} such node{'s' * (fitting != 1)} ({there})" if ranks else f"no node with {what}"),
                valid=f"cluster.nodes from 1 to {len(ranks)}, cluster.gpus_per_node from 1 to {max(ranks)}"
                if ranks
                else "cluster.device=cpu" * (device == "cuda"),
                fix="ray status",
                key="cluster.nodes",
            )
        )
    memory = config["gpu_memory_gib"] or min(host.memory_gib for host in hosts)
    return Shape(
        name=config["name"],
        device=device,
        nodes=len(hosts),
        gpus_per_node=max(ranks),
        gpu=config["gpu"] or hosts[0].gpu,
        gpu_memory_gib=round(memory, 1),
    )


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:
    """The cluster, to run on."""
    connect(config["ray"]["address"])
    return RayCluster(config, shape)


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """See `RayCluster.attach`."""
    if ended := Ended.of(folder):
        _release(str(started["group"]), str(started["namespace"]), int(started["nodes"]), quietly=True)
        return ended
    try:
        connect(str(started["address"]))
    except RequestError as error:
        raise SweeperError(f"whether the attempt in {folder} still runs is not known: {error}") from error
    return RayAttempt(folder, _Reach.found(started))


# --- attempts ---


@dataclass
class _Reach:
    """How one attempt's nodes are reached: a gang's actors (`gangs.Control`)."""

    group: str
    """Name of the placement group, and the actors' with `-RANK`."""
    namespace: str
    python: str
    actors: list[Any]
    """By rank; None for one that is gone."""
    ranks: int
    hosts: Sequence[str] = ()
    """By rank: the nodes' addresses."""
    asked: dict[int, Any] = field(default_factory=dict)
    """By rank: the question that is under way."""
    asked_at: dict[int, float] = field(default_factory=dict)
    """By rank, on the monotonic clock: when that was asked."""
    ask_at: dict[int, float] = field(default_factory=dict)
    gone: dict[int, float] = field(default_factory=dict)
    """Since when nothing of a rank is left, or its actor is dead: on the monotonic clock, when that is sure."""

    @classmethod
    def found(cls, started: Mapping[str, Any]) -> _Reach:
        """Of an attempt that another controller started."""
        import ray

        group, namespace, nodes = str(started["group"]), str(started["namespace"]), int(started["nodes"])
        actors: list[Any] = []
        for rank in range(nodes):
            try:
                actors.append(ray.get_actor(f"{group}-{rank}", namespace=namespace))
            except ValueError:
                actors.append(None)
        return cls(group, namespace, str(started["python"]), actors, nodes, [str(h) for h in started.get("hosts", ())])

    def ask(self, folder: Path, what: bytes) -> None:
        """Pass it to every node."""
        for rank, actor in enumerate(self.actors):
            if actor is not None:
                actor.ask.remote(gangs.ask_argv(folder, rank, what, python=self.python))

    def alive(self, folder: Path) -> bool | None:  # noqa: ARG002  (the protocol's)
        """From the answers that came."""
        import ray

        now = time.monotonic()
        for rank, actor in enumerate(self.actors):
            if rank in self.gone:
                continue
            if actor is None:  # its name is gone: it died before we came
                self.gone[rank] = now + self._dead_s()
            elif rank in self.asked:
                self._heard(rank, now)
            elif now >= self.ask_at.get(rank, 0.0):
                self.asked[rank], self.asked_at[rank] = actor.alive.remote(), now
        if not ray.is_initialized():
            return None
        return not all(now >= self.gone.get(rank, float("inf")) for rank in range(self.ranks))

    def _heard(self, rank: int, now: float) -> None:
        import ray

        ready, _ = ray.wait([self.asked[rank]], timeout=0)
        if ready:
            del self.asked[rank]
            self.ask_at[rank] = now + ASK_S
            try:
                if not ray.get(ready[0]):
                    self.gone[rank] = now
            except ray.exceptions.RayActorError:  # killed, or its node is
                self.gone[rank] = now + self._dead_s()
            except ray.exceptions.RayError:
                pass  # asked again

    def silent(self, now: float) -> list[int]:
        """The ranks whose node has not answered for a while, and of which nobody says that they are dead."""
        late = (rank for rank in self.asked if rank not in self.gone and now >= self.asked_at[rank] + SILENT_S)
        return sorted(late)

    def _dead_s(self) -> float:
        """How long something of a node whose actor is dead may live; not at all where the gang was given back."""
        return 0.0 if _given_back(self.group, self.namespace) else DEAD_S


class RayAttempt(gangs.GangAttempt):
    """A gang on the cluster; its end is reported when its ranks are free again."""

    def __init__(self, folder: Path, reach: _Reach) -> None:
        super().__init__(folder, reach)
        self.reach = reach
        self._given_back = False
        self._ended_at: float | None = None
        self.lost: set[int] = set()
        """Ranks that count as gone and whose node does not answer."""

    def poll(self) -> Exit | None:
        """How it ended."""
        ended = super().poll()
        if ended is not None and not self._given_back:
            lost = {self.reach.hosts[rank] for rank in self.lost}
            self._given_back = _release(self.reach.group, self.reach.namespace, self.reach.ranks, besides=lost)
        return ended if self._given_back else None

    def silent(self) -> str:
        """The nodes that the gang lost, and those that do not answer us."""
        if self._ended is not None or self._asked:
            return ""
        late = [f"node {self.reach.hosts[rank]} does not answer" for rank in self.reach.silent(time.monotonic())]
        return "; ".join(filter(None, [super().silent(), *late]))

    def _look(self, now: float) -> Exit | None:
        """As of any gang; once its first node has ended, one whose actor is dead or does not answer has ended too after
        a while: it is not waited for until Ray says so."""
        if 0 in self._last_words:
            self._ended_at = self._ended_at or now
            if now >= self._ended_at + FENCED_S:
                self.lost |= {*self.reach.silent(now)}
                self.reach.gone |= dict.fromkeys([*self.reach.gone, *self.lost], now)
        return super()._look(now)


def _release(group: str, namespace: str, nodes: int, *, quietly: bool = False, besides: Collection[str] = ()) -> bool:
    """Give a gang's actors and placement group back; whether they are.

    Args:
        quietly: No matter if the cluster is gone.
        besides: Addresses of nodes that are lost: theirs are free when Ray says so.
    """
    import ray
    from ray._private.state import available_resources_per_node
    from ray.util.placement_group import remove_placement_group

    if not ray.is_initialized():
        return quietly
    for rank in range(nodes):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(f"{group}-{rank}", namespace=namespace))
    held = _groups(group, namespace)
    for one in held:
        remove_placement_group(one)
    # The ranks are free when the nodes do not have the group's resources any more.
    names = [one.id.hex() for one in held]
    lost = {node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] in besides} if besides else set()
    there = available_resources_per_node().items()
    return not any(name in key for id_, has in there if id_ not in lost for key in has for name in names)


def _groups(name: str, namespace: str) -> list[Any]:
    """The placement groups of that name, removed or not."""
    import ray
    from ray.util.placement_group import PlacementGroup

    return [PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))) for id_ in _states(name, namespace)]


def _given_back(name: str, namespace: str) -> bool:
    """Whether a gang was removed, which is done when nothing of it is left."""
    states = _states(name, namespace).values()
    return bool(states) and set(states) == {"REMOVED"}


def _states(name: str, namespace: str) -> dict[str, str]:
    """Id -> state of the placement groups of that name."""
    from ray.util.placement_group import placement_group_table

    named = f"{namespace}.{name}"
    return {id_: str(about["state"]) for id_, about in placement_group_table().items() if about["name"] == named}


class RayCluster:
    """The cluster that `connect` connected us to. Its nodes are those that were there when it was opened, also those
    that go and come back."""

    def __init__(self, config: Mapping[str, Any], shape: Shape) -> None:
        self.shape = shape
        self._config = config
        self._most = config["max_ranks"]
        self.hosts = _hosts(shape.device)[1][: shape.nodes]
        self._running: list[RayAttempt] = []
        self._checked: set[tuple[str, str]] = set()

    def free(self) -> tuple[int, ...]:
        """Ranks that are free on each node now; none on one that is gone."""
        from ray._private.state import available_resources_per_node

        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        there = available_resources_per_node()
        if any(host.id not in there for host in self.hosts):
            self._find_again()
        key = _resource(self.shape.device)
        free = [int(there.get(host.id, {}).get(key, 0)) for host in self.hosts]
        # What is free by Ray's count may lie a moment behind what we hold; max_ranks is for all our trials together.
        return tuple(max(0, min(n, self._most or n, self.shape.gpus_per_node)) for n in free)

    def _find_again(self) -> None:
        """A node that was started anew has another id, at the address that it had."""
        there = _hosts(self.shape.device)[1]
        known, alive = {host.id for host in self.hosts}, {host.id for host in there}
        new = {host.address: host for host in there if host.id not in known}
        self.hosts = [host if host.id in alive else new.get(host.address, host) for host in self.hosts]

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Reserve those nodes and start the attempt there; None if they are not free any more.

        Raises:
            RequestError: One of them does not see the folder, or has no such interpreter.
        """
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        folder = folder.resolve()
        hosts = [self.hosts[node] for node in nodes]
        token = gangs.new_token()
        store = hashlib.sha256(str(gangs.home(folder).parent).encode()).hexdigest()[:12]
        name, namespace = "gang-" + hashlib.sha256(str(folder).encode()).hexdigest()[:16], f"sweeper-{store}"
        ranks = job.gang.gpus_per_node
        if any(self.free()[node] < ranks for node in nodes):
            return None
        self._check(job, folder, hosts)
        python = str(self._config["python"])
        about = {"address": self._config["ray"]["address"], "group": name, "namespace": namespace}
        addresses = [host.address for host in hosts]
        try:
            # First: a group that nobody knows of would hold its ranks for ever.
            gangs.started(folder, "ray", **about, nodes=len(hosts), python=python, hosts=addresses)
            bundle = {"CPU": float(ranks), **({"GPU": float(ranks)} if self.shape.device == "cuda" else {})}
            group = placement_group(
                [{**bundle, f"node:{host.address}": 0.001} for host in hosts],
                strategy="STRICT_SPREAD" if len(hosts) > 1 else "PACK",
                name=f"{namespace}.{name}",
                lifetime="detached",
            )
            if not group.wait(RESERVE_S):
                remove_placement_group(group)
                (folder / clusters.STARTED).unlink()
                return None
            alone = len(hosts) == 1  # nobody else has to reach its Ray
            where = [gangs.Node(host.name, "" if alone else host.address) for host in hosts]
            gangs.prepare(job, folder, where, shape=self.shape, leases=False, join_s=float(self._config["join_s"]))
        except (OSError, RecordsError) as error:
            _release(name, namespace, 0)
            return Ended(folder, gangs.not_launched(folder, str(error)))
        actors = []
        for rank in range(len(hosts)):
            actor = (
                _remote()[0]
                .options(
                    name=f"{name}-{rank}",
                    namespace=namespace,
                    lifetime="detached",
                    max_restarts=0,
                    num_cpus=ranks,
                    num_gpus=ranks if self.shape.device == "cuda" else 0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )
                .remote()
            )
            argv = gangs.argv(folder, rank, python=python, stdin=True)
            actor.start.remote(argv, gangs.stdin(job, token), gangs.look_argv([folder], python=python))
            actors.append(actor)
        actors[0].give_back.remote(group.id.hex(), actors[1:], DEAD_S)
        attempt = RayAttempt(folder, _Reach(name, namespace, python, actors, len(hosts), addresses))
        self._running.append(attempt)
        return attempt

    def _check(self, job: Job, folder: Path, hosts: Sequence[Host]) -> None:
        """Once a node and store; a node that gives no answer is left to the start, which says what is wrong with it."""
        home = gangs.home(folder)
        new = [host for host in hosts if (host.id, f"{home} {job.python}") not in self._checked]
        if not new:
            return
        try:
            with gangs.nonce(home) as path:
                argv = ["{python}", "-I", "-S", "-c", LOOK, str(path), job.python]
                answers = dict(zip(new, self._each(new, argv, "", CHECK_S), strict=True))
        except OSError as error:
            raise cannot_write(home, error) from error
        found: list[Problem] = []
        checked: set[tuple[str, str]] = set()
        for host, answer in answers.items():
            said = answer.out.split()
            if answer.code != 0 or len(said) != 2:
                continue
            node = f"node {host.name} ({host.address})"
            found += [] if said[0] == "1" else [gangs.unseen(node, home)]
            found += [] if said[1] == "1" else [gangs.without(node, job.python)]
            checked.add((host.id, f"{home} {job.python}"))
        if found:
            raise RequestError(found)
        self._checked |= checked

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; its actors and its group are found by their names."""
        return clusters.follow(folder, RayAttempt, self._running)

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command as a task on every node."""
        return self._each(self.hosts, argv, stdin, timeout_s)

    def _each(self, hosts: Sequence[Host], argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        command = [str(self._config["python"]) if word == "{python}" else word for word in argv]
        asked = [
            _remote()[1]
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(host.id, soft=False))
            .remote(command, stdin, timeout_s)
            for host in hosts
        ]
        deadline = time.monotonic() + timeout_s + 30.0  # Ray starts a worker first
        found: list[Answer] = []
        for host, ref in zip(hosts, asked, strict=True):
            try:
                code, out, err = ray.get(ref, timeout=max(0.1, deadline - time.monotonic()))
            except Exception as error:
                code, out, err = None, "", (str(error).strip().splitlines() or [type(error).__name__])[0]
            alike = sum(other.name == host.name for other in self.hosts) > 1  # raylets of one machine
            found.append(Answer(f"{host.name} ({host.address})" if alike else host.name, code, out, err))
        return found

    def close(self) -> None:
        """The connection ends with this program; attempts go on."""
