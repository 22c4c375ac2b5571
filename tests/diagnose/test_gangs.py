"""What `sweeper diagnose` says of gangs that did not come together or broke, and of what their other nodes wrote.

Every sentence of ours comes from the function that writes it when a gang fails, so that one that is worded otherwise
breaks a test here and not a diagnosis. What Ray, Python and the system write is copied from them.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sweeper.cli.main import main
from sweeper.clusters import gangs
from sweeper.clusters.base import Exit
from sweeper.clusters.gang import agent, await_ray, devices, guard, link, node
from sweeper.clusters.slurm import states
from sweeper.diagnose import Case, Finding, cases, diagnose
from sweeper.diagnose.causes import CAUSES
from sweeper.diagnose.signs import OURS, SIGNS

PYTHON = "/shared/venv/bin/python"
DIED = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/verl/trainer/ppo/ray_trainer.py", line 1300, in fit
    actor_output = self.actor_rollout_wg.update_actor(batch)
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
"""
"""What a trainer says whose worker is gone, wherever that was."""
RAY_TAIL = "\n".join([f"Ray said line {n}" for n in range(14)] + ["Some Ray subprocesses exited unexpectedly:"])


def failed(
    folder: Path,
    ended: tuple[str, str],
    *,
    code: int | None = None,
    files: dict[str, str] | None = None,
    parts: dict[int, tuple[str, str]] | None = None,
) -> Case:
    """An attempt of two nodes, n0 and n1, that ended so (reason, detail)."""
    nodes = [{"name": f"n{rank}", "address": f"127.0.0.{rank + 2}"} for rank in range(2)]
    records = {f"gang/{rank}.exit.json": part for rank, part in (parts or {}).items()} | {"exit.json": ended}
    written = {
        name: json.dumps({"code": code, "reason": reason, "detail": detail, "ended": 1.0})
        for name, (reason, detail) in records.items()
    }
    gang = {"gang/gang.json": json.dumps({"nodes": nodes}), "log.txt": ""}
    for name, text in {**gang, **written, **(files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return cases.read(folder)


def places(found: Finding) -> list[str]:
    return [line.place for line in found.evidence]


# --- what the other nodes wrote ---

WROTE = {
    "gang/1.log": ("OSError: [Errno 28] No space left on device", "disk-full"),
    "gang/1.ray.log": (
        "(raylet) 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed",
        "host-memory",
    ),
    "gang/10.ray.log": ("bind failed: [Errno 98] Address already in use", "port-clash"),
    "slurm.log": ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks", "host-memory"),
}


@pytest.mark.parametrize("file", WROTE)
def test_what_another_node_wrote_explains_a_lost_worker(file: str, tmp_path: Path) -> None:
    line, cause = WROTE[file]
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files={"log.txt": DIED, file: f"{line}\n"}))
    assert found.cause == cause
    assert places(found) == [f"{file}:1"]
    assert found.change


def test_the_node_is_named_as_people_know_it(tmp_path: Path) -> None:
    files = {"log.txt": DIED, "gang/1.log": WROTE["gang/1.log"][0], "gang/7.log": WROTE["gang/1.log"][0]}
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files=files))
    assert found.what.endswith("reached, on n1, node 7")


def test_the_exception_of_another_node_is_found_at_its_line(tmp_path: Path) -> None:
    own = (
        'Traceback (most recent call last):\n  File "/home/user/task/tool.py", line 8, in call\n'
        "ValueError: no such tool\n"
    )
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files={"log.txt": DIED, "gang/1.log": f"up\n{own}"}))
    assert found.cause == "bug"
    assert "no such tool, at /home/user/task/tool.py:8" in found.what
    assert places(found)[0] == "gang/1.log:4"


def test_the_trainers_own_end_counts_more_than_what_another_node_wrote(tmp_path: Path) -> None:
    own = (
        'Traceback (most recent call last):\n  File "/home/user/task/reward.py", line 8, in compute_score\n'
        "ValueError: no rule for the answer\n"
    )
    files = {"log.txt": own, "gang/1.ray.log": "bind failed: [Errno 98] Address already in use\n"}
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files=files))
    assert found.cause == "reward-raises"


def test_a_line_that_the_verdict_went_by_is_shown_where_it_is(tmp_path: Path) -> None:
    """The machine's memory outweighs an exception that names nothing: so the controller judged it."""
    own = (
        'Traceback (most recent call last):\n  File "/x/site-packages/verl/a.py", line 7, in step\nRuntimeError: gone\n'
    )
    files = {"log.txt": own, "gang/1.ray.log": f"up\n{WROTE['gang/1.ray.log'][0]}\n"}
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files=files))
    assert found.cause == "host-memory"
    assert places(found) == ["gang/1.ray.log:2"]


RAY_CAME_UP = """\
bind failed: [Errno 98] Address already in use
2026-11-29 20:53:47,114\tSUCC scripts.py:1084 -- --------------------
2026-11-29 20:53:47,114\tSUCC scripts.py:1085 -- \x1b[32mRay runtime started.\x1b[39m
2026-11-29 20:53:47,114\tSUCC scripts.py:1086 -- --------------------
"""
"""The last three as Ray 2.60 writes them into a file."""


@pytest.mark.parametrize("file", ["ray.log", "gang/1.ray.log"])
def test_a_port_that_was_lost_and_replaced_is_not_told(file: str, tmp_path: Path) -> None:
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, files={"log.txt": DIED, file: RAY_CAME_UP}))
    assert found.cause == "worker-lost"


def test_where_a_gang_hung_is_told_with_the_node(tmp_path: Path) -> None:
    stacks = (
        "sweeper: stacks of process {} (ray::WorkerDict):\nCurrent thread 0x00007f (most recent call first):\n"
        '  File "/venv/lib/python3.11/site-packages/verl/workers/engine_workers.py", line {} in {}\n'
    )
    files = {"log.txt": stacks.format(12, 7, "update_actor"), "gang/1.log": stacks.format(13, 9, "sync_weights")}
    status = {"state": "failed", "failure": "stalled", "root_cause": ["no step for 900 s; the limit is 600 s"]}
    files["status.json"] = json.dumps(status)
    (found,) = diagnose(failed(tmp_path, ("stopped", ""), code=-9, files=files))
    assert {line.place: line.text.rpartition(" ")[2] for line in found.evidence[1:]} == {
        "log.txt": "update_actor",
        "gang/1.log": "sync_weights",
    }


def test_the_logs_of_many_nodes_are_read_from_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "TAIL_BYTES", 4000)
    monkeypatch.setattr(cases, "LEAST_BYTES", 200)
    long = "".join(f"line {n}\n" for n in range(1000))
    files = {f"gang/{rank}.log": long for rank in range(1, 40)}
    files |= {"log.txt": DIED, "gang/39.log": f"{long}{WROTE['gang/1.log'][0]}\n"}
    case = failed(tmp_path, ("exit", ""), code=1, files=files)
    assert sum(len(log.text) for log in case.others) <= 39 * 200
    (found,) = diagnose(case)
    assert places(found) == ["gang/39.log:1001"]


def test_the_engine_reads_what_the_controller_gave_it(tmp_path: Path) -> None:
    case = failed(
        tmp_path, ("exit", ""), code=1, files={"log.txt": "c\nd\n", "gang/1.log": "a\n", "gang/1.ray.log": "b\n"}
    )
    assert case.text.splitlines() == ["a", "b", "c", "d"]
    assert [line.place for n in (1, 2, 4) if (line := case.at(n))] == ["gang/1.log:1", "gang/1.ray.log:1", "log.txt:2"]
    assert case.at(5) is None


def test_a_damaged_gang_is_no_crash(tmp_path: Path) -> None:
    files = dict.fromkeys(("gang/gang.json", "gang/1.exit.json", "gang/x.exit.json", "gang/2.exit.json"), "{torn")
    files |= {"gang/2.exit.json": "[]", "gang/1.log": "\x00", "log.txt": DIED}
    assert [f.cause for f in diagnose(failed(tmp_path, ("exit", ""), code=1, files=files))] == ["worker-lost"]


# --- what our nodes say ---


def of(folder: Path, rank: int = 0, **changes: Any) -> agent.Agent:
    """One of two nodes, n0 and n1, without what an agent takes of its process (signals, the environment)."""
    (folder / "gang").mkdir(parents=True, exist_ok=True)
    made = agent.Agent.__new__(agent.Agent)
    made.job = {"join_s": 300, "ranks": 8, "device": "cuda", "version": gangs.VERSION, "preload": [], **changes}
    made.nodes = [{"name": f"n{n}", "address": f"127.0.0.{n + 2}"} for n in range(2)]
    made.folder, made.rank, made.python, made.several, made.env = folder, rank, PYTHON, True, {}
    made.name, made.address, made.token = f"n{rank}", f"127.0.0.{rank + 2}", "t" * 64
    made.ray, made.terminated, made.link = {"gpus": 8}, False, None
    made.ray_log = "ray.log" if rank == 0 else f"gang/{rank}.ray.log"
    return made


def head(folder: Path) -> agent.Agent:
    """The first node, which listens."""
    made = of(folder)
    made.link = link.Head(made.address, made.token, 2, folder / "gang" / "link.json")
    return made


def said(what: Callable[[], object], *errors: type[Exception]) -> str:
    """What it cannot do."""
    with pytest.raises(errors or (agent.LaunchError,)) as caught:
        what()
    return str(caught.value)


def joins(first: agent.Agent, token: str) -> list[Any]:
    """A second node tries to join: what came of it (the member, or its error)."""
    assert isinstance(first.link, link.Head)
    found: list[Any] = []

    def other() -> None:
        try:
            about = {"rank": 1, "name": "n1"}
            made, _ = link.join(first.folder / "gang" / "link.json", token, "127.0.0.3", about, 1e12, lambda: True)
            found.append(made)
        except link.LinkError as error:
            found.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    while thread.is_alive():
        first.link.pump()
        thread.join(0.01)
    return found


def about(made: agent.Agent, out: str, err: str = "") -> Callable[[], object]:
    """What the node says of itself when its interpreter says so."""
    answer = SimpleNamespace(communicate=lambda timeout: (out.encode(), err.encode()))
    return lambda: made.about(answer)  # type: ignore[arg-type]


VERSIONS = json.dumps({"python": "3.11.7", "ray": "2.60.0"})
Scene = Callable[[Path, pytest.MonkeyPatch], Case]


def another_ray(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    assert isinstance(first.link, link.Head)
    own = {"python": "3.11.7", "ray": "2.60.0", "devices": 8, "version": 1}
    first.link.about[1] = {**own, "name": "n1", "address": "127.0.0.3", "ray": "2.50.0"}
    return failed(folder, ("launch", said(lambda: first.compare(own, 1))))


def another_python(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    assert isinstance(first.link, link.Head)
    own = {"python": "3.11.7", "ray": None, "devices": None, "version": 1}
    first.link.about[1] = {**own, "name": "n1", "address": "127.0.0.3", "python": "3.10.1"}
    return failed(folder, ("launch", said(lambda: first.compare(own, 1))))


def other_gpus(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    assert isinstance(first.link, link.Head)
    own = {"python": "3.11.7", "ray": "2.60.0", "devices": 8, "version": 1}
    first.link.about[1] = {**own, "name": "n1", "address": "127.0.0.3", "devices": 7}
    return failed(folder, ("launch", said(lambda: first.compare(own, 1))))


def fewer_gpus(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    """On the second node, which is gone before it could say so to the first."""
    patch.setattr(devices, "accelerators", lambda: [None] * 7)
    own = said(about(of(folder, 1), VERSIONS))
    (folder / "gang" / "1.json").write_text("{}")
    return failed(folder, ("launch", head(folder).who_is_missing()), parts={1: ("launch", own)})


def fewer_gpus_on_kubernetes(folder: Path, _: pytest.MonkeyPatch) -> Case:
    log = gave_up({"10.0.0.1": 8.0, "10.0.0.2": 7.0})
    return failed(folder, ("exit", ""), code=await_ray.GAVE_UP, files={"log.txt": log})


def a_pod_is_missing(folder: Path, _: pytest.MonkeyPatch) -> Case:
    log = gave_up({"10.0.0.1": 8.0})
    return failed(folder, ("exit", ""), code=await_ray.GAVE_UP, files={"log.txt": log})


def gave_up(there: dict[str, float]) -> str:
    """What await_ray.py says when only those are there in the end."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as lines:
        patch.setitem(sys.modules, "ray", ModuleType("ray"))
        patch.setattr(await_ray, "look", lambda nodes, gpus: await_ray.missing(there, nodes, gpus))
        patch.setattr(sys, "argv", ["await_ray.py", "2", "8", "-1", "--", "true"])
        assert await_ray.main() == await_ray.GAVE_UP
    return lines.getvalue()


def never_started(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", head(folder).who_is_missing()))


def without_a_word(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    (folder / "gang" / "1.json").write_text("{}")
    (folder / "gang" / "1.log").write_text("")
    return failed(folder, ("launch", first.who_is_missing()))


def first_never_came(folder: Path, _: pytest.MonkeyPatch) -> Case:
    why = said(
        lambda: link.join(of(folder).folder / "gang" / "link.json", "t", "", {}, 0, lambda: True), link.LinkError
    )
    return no_word_of_the_first(folder, Exit(None, "launch", f"n1: {why}"))


def first_is_lost(folder: Path, _: pytest.MonkeyPatch) -> Case:
    member = SimpleNamespace(pump=lambda: [{"lost": "it was silent for 10 s"}])
    return no_word_of_the_first(folder, Exit(**of(folder, 1).serve(member)))  # type: ignore[arg-type]


def no_word_of_the_first(folder: Path, other: Exit) -> Case:
    failed(folder, ("", ""))
    (folder / "exit.json").unlink()
    attempt = gangs.GangAttempt(folder, SimpleNamespace())
    attempt._last_words[1] = other
    ended = attempt._why()
    return failed(folder, (ended.reason, ended.detail), parts={1: (other.reason, other.detail)})


def refused(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    (error,) = joins(first, "f" * 64)
    (folder / "gang" / "1.json").write_text("{}")
    return failed(folder, ("launch", first.who_is_missing()), parts={1: ("launch", f"n1: {error}")})


def somebody_else_answers(folder: Path, _: pytest.MonkeyPatch) -> Case:
    """At the first node's address there is one of another gang, or none of ours."""
    file = of(folder, 1).folder / "gang" / "link.json"
    listener = socket.create_server(("127.0.0.2", 0))
    file.write_text(json.dumps({"host": "127.0.0.2", "port": listener.getsockname()[1]}))

    def other() -> None:
        wire = link.Wire(listener.accept()[0])
        wire.send({"challenge": "c"})
        wire.next(20)
        wire.send({"proof": "another gang's"})
        wire.close()

    thread = threading.Thread(target=other)
    thread.start()
    why = said(lambda: link.join(file, "t", "127.0.0.3", {}, 1e12, lambda: True), link.LinkError)
    thread.join()
    listener.close()
    return no_word_of_the_first(folder, Exit(None, "launch", f"n1: {why}"))


def lost_in_the_middle(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    (member,) = joins(first, first.token)
    member.close()
    while not (ended := first.said_by_members()):
        pass
    return failed(folder, (ended["reason"], ended["detail"]), files={"log.txt": "sweeper: 2 nodes are ready\nstep:1\n"})


def lost_before_the_start(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", while_it_starts(folder, {"lost": "the connection ended"})))


def ray_of_a_node_does_not_start(folder: Path, _: pytest.MonkeyPatch) -> Case:
    why = of(folder, 1)
    (folder / why.ray_log).write_text(RAY_TAIL)
    return failed(folder, ("launch", while_it_starts(folder, {"failed": why.ray_ended(ended_with(1))})))


def ray_ends(folder: Path, _: pytest.MonkeyPatch) -> Case:
    first = of(folder)
    (folder / first.ray_log).write_text(RAY_TAIL)
    trainer = SimpleNamespace(poll=lambda: None)
    ended = first.follow(trainer, ended_with(1))  # type: ignore[arg-type]
    return failed(folder, (ended["reason"], ended["detail"]))


def ray_of_a_node_ends(folder: Path, _: pytest.MonkeyPatch) -> Case:
    """And the trainer ends of it before the first node hears of it."""
    other = of(folder, 1)
    (folder / other.ray_log).write_text(RAY_TAIL)
    part = ("lost", other.ray_ended(ended_with(1)))
    return failed(folder, ("exit", ""), code=1, parts={1: part}, files={"log.txt": DIED})


def ended_with(code: int) -> Any:
    return SimpleNamespace(returncode=code, poll=lambda: code)


def while_it_starts(folder: Path, message: dict[str, str]) -> str:
    """What the first node says of a message that comes before the trainer is started."""
    first = head(folder)
    assert isinstance(first.link, link.Head)
    first.link.about[1] = {"name": "n1", "address": "127.0.0.3"}
    first.link.pump = lambda: [(1, message)]  # type: ignore[method-assign]
    return said(first.members)


def ray_does_not_start(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    """The other node gives up in its turn, for nobody listens any more."""
    first = head(folder)
    dead = SimpleNamespace(kill=lambda: None, wait=lambda: None)
    for name, answer in {"start_ray": (dead, ""), "while_it_lives": False}.items():
        patch.setattr(first, name, lambda *_, answer=answer: answer)
    (folder / first.ray_log).write_text(RAY_TAIL)
    why = said(lambda: first.bring_ray_up({}))
    other = "n1: the first node could not be reached: link.json names 127.0.0.2:4711, and: Connection refused"
    return failed(folder, ("launch", why), parts={1: ("launch", other)})


def not_what_was_reserved(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    first = head(folder)
    for name, answer in {"start_ray": (None, ""), "while_it_lives": True, "gather": None}.items():
        patch.setattr(first, name, lambda *_, answer=answer: answer)
    patch.setattr(first, "start_probe", lambda at: ended_with(1))
    both = "[('127.0.0.2', 8), ('127.0.0.3', 8)]"
    (folder / agent.READY_LOG).write_text(
        f"sweeper: {both} (address, ranks) were to be there within 120 s, and there is [('127.0.0.2', 8)]\n"
    )
    return failed(folder, ("launch", said(lambda: first.bring_ray_up({}))))


def no_ray(folder: Path, _: pytest.MonkeyPatch) -> Case:
    versions = json.dumps({"python": "3.11.7", "ray": None})
    return failed(folder, ("launch", said(about(of(folder), versions))))


def no_interpreter(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", said(of(folder).ask_versions)))


def no_program(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", said(lambda: of(folder).spawn([PYTHON, "-m", "verl"], "log.txt", {}))))


def a_broken_interpreter(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", said(about(of(folder), "", "Fatal Python error: init_fs_encoding"))))


def not_its_address(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    first = of(folder)
    first.address = "203.0.113.1"  # for documentation (RFC 5737)
    patch.setattr(first, "ask_versions", lambda: None)
    patch.setattr(first, "about", lambda versions: {})
    return failed(folder, ("launch", said(first.run_head)))


def no_shared_store(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return failed(folder, ("launch", f"host n1: {said(lambda: node.read(folder / 'elsewhere'), node.NodeError)}"))


def the_agent_is_killed(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    made, written = guard.Guard.__new__(guard.Guard), list[Any]()
    made.told, made.bound = 0.0, False
    made.agent_code = -9
    answers: dict[str, Any] = {"wait_for_end": ("exit", 0.0), "end_all": None, "said": {}, "leave": None}
    for name, answer in answers.items():
        patch.setattr(made, name, lambda *_, answer=answer: answer)
    patch.setattr(made, "write", written.append)
    made.run()
    return failed(folder, (written[0]["reason"], written[0]["detail"]))


def slurm_lost_a_node(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return by_slurm(folder, states.State("NODE_FAIL", nodes="n1"), begun=True)


def slurm_says_no_more(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return by_slurm(folder, states.State("FAILED", "NonZeroExitCode"), begun=True)


def slurm_could_not_begin(folder: Path, _: pytest.MonkeyPatch) -> Case:
    return by_slurm(folder, states.State("FAILED", "NonZeroExitCode"), begun=False)


def slurm_has_no_python(folder: Path, _: pytest.MonkeyPatch) -> Case:
    log = "/var/spool/slurm_script: line 23: /nope/python: No such file or directory"
    return by_slurm(folder, states.State("FAILED", "NonZeroExitCode"), begun=False, log=log)


def by_slurm(folder: Path, state: states.State, *, begun: bool, log: str = "") -> Case:
    ended = states.exit_of("7", state, None, asked=False, time_up=False, begun=begun, now=1.0, log=log)
    return failed(folder, (ended.reason, ended.detail), files={"log.txt": "step:1\n" * begun})


GANGS: dict[Scene, tuple[str, str, str, str]] = {
    another_ray: (
        "nodes-differ",
        "node n1 (127.0.0.3) has Ray 2.50.0, and node n0 (127.0.0.2) has 2.60.0",
        "exit.json",
        "sweeper doctor cluster=... model=...   the versions on every node",
    ),
    another_python: (
        "nodes-differ",
        "node n1 (127.0.0.3) has Python 3.10.1, and node n0 (127.0.0.2) has 3.11.7",
        "exit.json",
        "engine.python=...   an interpreter that is the same environment on all nodes",
    ),
    other_gpus: ("gpus-missing", "has visible GPUs 7, and node n0 (127.0.0.2) has 8", "exit.json", "nvidia-smi -L"),
    fewer_gpus: ("gpus-missing", "n1 shows 7 GPUs, and 8 were reserved there", "gang/1.exit.json", "nvidia-smi -L"),
    fewer_gpus_on_kubernetes: (
        "gpus-missing",
        "each node must have 8 GPUs (10.0.0.1 with 8, 10.0.0.2 with 7)",
        "log.txt:1",
        "cluster.gpus_per_node=",
    ),
    a_pod_is_missing: ("node-missing", "1 of 2 nodes are there", "log.txt:1", "cluster.join_s="),
    never_started: ("node-missing", "node n1 (127.0.0.3) did not join within 300 s", "exit.json", "cluster.join_s="),
    without_a_word: ("node-missing", "node n1 (127.0.0.3) did not join", "exit.json", "tail gang/1.log   in the"),
    first_never_came: ("node-missing", "the first node could not be reached", "exit.json", "tail log.txt   in the"),
    first_is_lost: ("node-lost", "left no record of its end; n1: the first node", "exit.json", "sweeper resume NAME"),
    refused: ("gang-token", "did not know the gang's token: 127.0.0.3", "exit.json", "SWEEPER_GANG_TOKEN"),
    somebody_else_answers: ("gang-token", "does not know the gang's token", "exit.json", "pgrep -af guard.py"),
    lost_in_the_middle: (
        "node-lost",
        "node n1 (127.0.0.3) was lost: the connection ended",
        "exit.json",
        "sweeper resume NAME",
    ),
    lost_before_the_start: ("node-lost", "was lost before the trainer started", "exit.json", "sweeper doctor"),
    ray_of_a_node_does_not_start: ("ray-start", "Ray cluster ended on n1 with code 1", "exit.json", "sweeper doctor"),
    ray_ends: ("node-lost", "the attempt's Ray cluster ended on n0 with code 1", "exit.json", "sweeper resume NAME"),
    ray_of_a_node_ends: ("node-lost", "Ray cluster ended on n1 with code 1", "gang/1.exit.json", "sweeper doctor"),
    ray_does_not_start: ("ray-start", "Ray did not start on n0 (127.0.0.2)", "exit.json", "sweeper doctor"),
    not_what_was_reserved: ("ray-start", "is not what was reserved", "exit.json", "sweeper doctor"),
    no_ray: ("package-missing", "n0: /shared/venv/bin/python has no Ray", "exit.json", "engine.python="),
    no_interpreter: (
        "interpreter",
        f"n0: cannot start {PYTHON}: No such file or directory",
        "exit.json",
        "engine.python=",
    ),
    no_program: ("interpreter", f"n0: cannot start {PYTHON}: No such file or directory", "exit.json", "engine.python="),
    a_broken_interpreter: ("interpreter", "does not work: Fatal Python error", "exit.json", "sweeper doctor"),
    not_its_address: ("network", "n0 cannot listen on its address 203.0.113.1", "exit.json", "sweeper doctor"),
    no_shared_store: ("store-unshared", "gang.json: [Errno 2] No such file", "exit.json", "store=..."),
    the_agent_is_killed: ("node-lost", "the agent ended with code -9", "exit.json", "sweeper doctor"),
    slurm_says_no_more: ("node-lost", "Slurm job 7 left no record: it ended as FAILED", "exit.json", "sweeper doctor"),
    slurm_could_not_begin: ("store-unshared", "its node may not see the sweep's folder", "exit.json", "store=..."),
    slurm_has_no_python: ("interpreter", "/nope/python: No such file or directory", "exit.json", "cluster.python="),
    slurm_lost_a_node: ("node-lost", "Slurm job 7 lost a node (n1)", "exit.json", "sweeper doctor"),
}
"""How a gang fails -> the cause, what is said of it, where that stands, and a part of what to change."""


@pytest.mark.parametrize("scene", GANGS, ids=lambda scene: scene.__name__)
def test_a_gang_that_failed_is_told_with_what_helps(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause, what, where, change = GANGS[scene]
    (found,) = diagnose(scene(tmp_path / "attempt-1", monkeypatch))
    assert found.cause == cause
    assert what in found.what
    assert places(found)[0] == where
    assert any(change in line for line in found.change), found.change
    assert found.change != ("sweeper resume NAME",), "it would fail again"


def test_every_sentence_of_a_gang_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for scene in GANGS:
        case = scene(tmp_path / scene.__name__, monkeypatch)
        records = [str(json.loads(f.read_text())["detail"]) for f in case.folder.rglob("*exit.json")]
        told += [line for text in (*records, case.log.text) for line in text.splitlines()]
    not_tried = [
        sign.pattern.pattern for sign in SIGNS if sign.ours and not any(sign.pattern.search(line) for line in told)
    ]
    assert not_tried == []


def test_what_follows_a_colon_is_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = diagnose(not_what_was_reserved(tmp_path, monkeypatch))
    assert found.evidence[1].text.endswith("and there is [('127.0.0.2', 8)]")
    (found,) = diagnose(ray_of_a_node_does_not_start(tmp_path / "b", monkeypatch))
    assert found.evidence[1].text == "Some Ray subprocesses exited unexpectedly:"


def test_a_sentence_of_ours_that_somebody_else_writes_is_none(tmp_path: Path) -> None:
    log = "node n1 (10.0.0.2) was lost: it was silent for 10 s\nn1 shows 7 GPUs, and 8 were reserved there\n"
    (found,) = diagnose(failed(tmp_path / "a", ("exit", ""), code=3, files={"log.txt": log}))
    assert found.cause == "bug"
    ours = "".join(f"{OURS}{line}\n" for line in log.splitlines())
    (found,) = diagnose(failed(tmp_path / "b", ("exit", ""), code=3, files={"log.txt": ours}))
    assert found.cause == "gpus-missing"


def test_why_a_node_did_not_come_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_word(tmp_path, monkeypatch)
    (tmp_path / "gang/1.log").write_text("OSError: [Errno 28] No space left on device\n")
    full, missing = diagnose(cases.read(tmp_path))
    assert (full.cause, places(full)[0]) == ("disk-full", "gang/1.log:1")
    assert missing.cause == "node-missing"


def test_a_loss_is_told_beside_what_may_have_been_caught_long_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_in_the_middle(tmp_path, monkeypatch)
    caught = 'Traceback (most recent call last):\n  File "/x/a.py", line 1, in f\nOSError: [Errno 98] Address in use\n'
    (tmp_path / "log.txt").write_text(f"{caught}step:1\n")
    assert [f.cause for f in diagnose(cases.read(tmp_path))] == ["port-clash", "node-lost"]


def test_a_node_that_lost_the_first_one_says_nothing_of_a_trainer_that_ended_by_itself(tmp_path: Path) -> None:
    part = ("lost", "n1: the first node was lost: the connection ended")
    (found,) = diagnose(failed(tmp_path, ("exit", ""), code=1, parts={1: part}, files={"log.txt": DIED}))
    assert found.cause == "worker-lost"


def test_doctor_is_advised_for_the_request_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["algorithm=grpo,ppo", "cluster=ssh", "cluster.ssh.hosts=[n1,n2]", "name=one", "detach=true", "store=there"]
    store = tmp_path / "runs"
    never_started(store / "one/trials/000/attempt-1", monkeypatch)
    (store / "one/sweep.json").write_text(json.dumps({"overrides": typed}))
    request = "sweeper doctor algorithm=grpo,ppo cluster=ssh 'cluster.ssh.hosts=[n1,n2]'"
    assert main(["diagnose", "one/000", "--store", str(store)]) == 1
    assert f"try   {request} store={store}   whether each node answers" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)  # where `runs` is what commands look into
    assert main(["diagnose", "one/000"]) == 1
    assert f"try   {request}   whether each node answers" in capsys.readouterr().out


def test_advice_has_no_gaps() -> None:
    for cause in CAUSES.values():
        for line in cause.change:
            assert "{" not in line.format(sweep="s", doctor="d", log="l")
