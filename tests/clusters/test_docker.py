"""The command lines of containers, word for word, and what is wrong with a request for one; what starts one, with a
stand-in that runs the command on this machine; and, where there can be one, containers of a real Docker daemon with
fake trainers in them (the contract is tried there as well, and real verl in tests/real/test_docker.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker_daemon
import psutil
import pytest

from sweeper import clusters
from sweeper.clusters import docker, gangs
from sweeper.clusters.gang import contain, janitor
from sweeper.doctor import probe
from sweeper.engines.base import Gang, Job, Shape
from sweeper.errors import RequestError

GOLDEN = Path(__file__).parents[1] / "golden" / "clusters" / "docker"
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    # Seed 002's head and worker, without `--privileged`, a fixed port and `tail -f /dev/null`.
    "areal": {"ipc": "private", "shm_size": "700g", "mounts": ["/storage"]},
    "some_gpus": {"gpus": "device=0,1", "env": ["NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"], "user": "root"},
    "podman": {"program": "podman", "gpus": None, "options": ["--device", "nvidia.com/gpu=all"]},
    "cpu": {"mounts": ["/data:/data:ro", "/shared"]},
}


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "argv": ("python3", "-m", "verl.trainer.main_ppo"),
        "env": {"PYTHONPATH": "/shared/code", "TOKEN_FILE": "not shown"},
        "inherit": ("HF_TOKEN",),
        "files": {},
        "gang": Gang(2, 8),
        "python": "python3",
        "metrics": "metrics.jsonl",
        "total_steps": 1,
        "image": "ghcr.io/inclusionai/areal-runtime:v0.3.0",
    }
    return Job(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "runs" / "s" / "trials" / "000" / "attempt-1"
    where.mkdir(parents=True)
    yield where


def line(case: str, folder: Path) -> str:
    """The golden form: a word of the command or an option with its value a line, what depends on the machine named."""
    words = docker.argv(
        CASES[case], job(), folder, 1, user=(1000, 1001), node="gpu2", device="cpu" if case == "cpu" else "cuda"
    )
    sweep = str(folder.parents[2])
    scripts = next(w for w in words if w.endswith("node.py"))
    said = []
    for word in words:
        shown = word.replace(scripts, "SWEEP/gang/node.py").replace(sweep, "SWEEP")
        said.append(shown.replace(docker.name(folder, 1), "sweeper-NAME-1"))
    return "\n".join(said) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_word_for_word(case: str, folder: Path) -> None:
    assert docker.problems(CASES[case]) == []
    golden = GOLDEN / f"{case}.txt"
    made = line(case, folder)
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(made)
    assert made == golden.read_text()
    assert "--privileged" not in made
    assert "not shown" not in made, "the job's variables come by the store"
    assert "HF_TOKEN" not in made, "and the inherited ones by stdin"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gpus": "8xH100"}, "device=0,1"),
        ({"gpus": True}, "device=0,1"),
        ({"gpus": "0"}, "device=0,1"),
        ({"shm_size": "700"}, "such as 700g"),
        ({"shm_size": "700g"}, "ipc=private"),
        ({"ipc": "shareable"}, "host, private"),
        ({"mounts": ["data:/data"]}, "absolute"),
        ({"mounts": "/data"}, "a list"),
        ({"env": ["HF_TOKEN=hf_123"]}, "a list of names"),
        ({"user": "a b"}, "UID:GID"),
        ({"options": "--device x"}, "a list"),
        ({"gpu": "all"}, "try:   cluster.docker.gpus"),
        ({"program": ""}, "podman"),
        ("areal", "a mapping"),
    ],
)
def test_bad_input_says_what_is_valid(given: Any, says: str) -> None:
    found = docker.problems(given)
    assert len(found) == 1
    text = "\n".join(found[0].lines())
    assert says in text
    assert "hf_123" not in text, "what may be a secret is not shown"


# -- the start, with stand-ins for the container program


def starts(folder: Path, code: str) -> dict[str, Any]:
    (folder / "gang").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-S", contain.__file__, str(folder), "0", "--", sys.executable, "-c", code],
        input='{"token": "t0k3n", "env": {}}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if "temp_dir" in answer else 75 if "busy" in answer else 1)
    for path in folder.rglob("*"):
        assert path.is_dir() or "t0k3n" not in path.read_text(), path
    return answer


RECORD = "{'temp_dir': '/tmp/swp-1', 'ranks': ['gpu-1']}"


def test_a_container_that_runs_is_left_alone_and_has_the_secret(folder: Path) -> None:
    code = (
        "import json, pathlib, sys, time; given = json.loads(sys.stdin.readline()); assert given['token'] == 't0k3n'; "
        f"pathlib.Path({str(folder / 'gang' / '0.json')!r}).write_text(json.dumps({RECORD})); "
        f"time.sleep(0.5); pathlib.Path({str(folder / 'on')!r}).touch()"
    )
    assert starts(folder, code) == {"temp_dir": "/tmp/swp-1", "ranks": ["gpu-1"]}
    deadline = 200
    while not (folder / "on").exists() and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.1"], check=True)
    assert (folder / "on").exists(), "it went on when its starter had gone"


def test_ranks_that_are_held_are_not_an_error(folder: Path) -> None:
    assert "busy" in starts(folder, "print('1 of 8 ranks are free'); raise SystemExit(75)")


def test_a_program_that_fails_says_why(folder: Path) -> None:
    said = starts(folder, "print('Unable to find image x:latest locally'); raise SystemExit(125)")["error"]
    assert "code 125" in said
    assert "Unable to find image x:latest locally" in said


def test_a_program_that_is_not_there(folder: Path) -> None:
    (folder / "gang").mkdir()
    log, own = folder / "gang" / "0.container.log", folder / "gang" / "0.json"
    assert "cannot run /no/docker" in contain.start(["/no/docker", "run"], b"\n", log, own)["error"]


# -- cluster=local with an image


FAKE_DOCKER = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
assert words[0] == "run" and "--interactive" in words
at = words.index({image!r})
env = dict(w.split("=", 1) for before, w in zip(words, words[1:]) if before == "--env" and "=" in w)
os.environ.update(env, INSIDE="yes")
sys.exit(subprocess.run([{python!r}, *words[at + 2:]]).returncode)  # the container is not this program
"""
"""A fake: takes docker's words and runs the command on this machine, as if the image were this machine's system."""


def test_a_trial_in_a_container_on_this_machine(tmp_path: Path) -> None:
    program, image = tmp_path / "docker", "img:1"
    program.write_text(FAKE_DOCKER.format(python=sys.executable, image=image))
    program.chmod(0o755)
    shape = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)
    group = {"kind": "local", "name": "local", "join_s": 60, "docker": {"program": str(program)}}
    cluster = clusters.get(group, shape)
    folder = tmp_path / "a"
    folder.mkdir()
    code = "print('in the image'); raise SystemExit(3)"
    what = job(argv=("python3", "-c", code), env={}, inherit=(), gang=Gang(1, 1), image=image, ray=False)
    attempt = cluster.start(what, folder, (0,))
    assert attempt is not None
    deadline = time.monotonic() + 120
    while (ended := attempt.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (ended.code, ended.reason) == (3, "exit"), ended
    assert "in the image" in (folder / "log.txt").read_text()
    again = clusters.attach(folder)
    assert again is not None and again.poll() == ended
    assert cluster.free() == (2,)
    cluster.close()


def test_a_malformed_request_for_containers_is_found_by_the_plan() -> None:
    with pytest.raises(RequestError, match=r"cluster\.docker\.gpus=8xH100"):
        clusters.shape({"kind": "local", "docker": {"gpus": "8xH100"}})


def test_what_we_made_is_mounted_where_the_trainer_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", "/elsewhere/cache")
    given = {**docker.DEFAULT, "mounts": ["/data/"]}
    assert not [m for m in docker.mounts(given, job(), folder) if "cache" in m]
    reads = job(files={"trainer.yaml": "train_files: [/elsewhere/cache/arithmetic-00/train.parquet]"})
    assert "/elsewhere/cache:/elsewhere/cache:ro" in docker.mounts(given, reads, folder)
    given["mounts"] = ["/data/", "/fast:/elsewhere/cache/"]
    assert "/elsewhere/cache:/elsewhere/cache:ro" not in docker.mounts(given, reads, folder), "the user's word counts"


# -- a real daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[docker_daemon.Daemon]:
    if why := docker_daemon.why_not():
        pytest.skip(why)
    with docker_daemon.running() as running:
        yield running


@pytest.fixture
def store() -> Iterator[Path]:
    """A folder that other users may enter and write to, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="store-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)


def containers(daemon: docker_daemon.Daemon, **settings: Any) -> Any:
    given = {"program": daemon.program, "mounts": docker_daemon.mounts(), **settings}
    return clusters.get({"kind": "local", "name": "local", "join_s": 60, "docker": given}, SHAPE)


def contained(code: str, **changes: Any) -> Job:
    how = {"argv": ("python3", "-c", code), "env": {}, "inherit": (), "gang": Gang(1, 1), "ray": False}
    return job(**{**how, "image": docker_daemon.IMAGE, **changes})


def ended(attempt: Any) -> Any:
    deadline = time.monotonic() + 60
    while (found := attempt.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def attempt_in(store: Path, name: str) -> Path:
    where = store / name
    where.mkdir(mode=0o777)
    where.chmod(0o777)
    return where


SEES = """
import json, os, pathlib, time
def written(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as error:
        return error.strerror
pathlib.Path("seen").write_text(json.dumps({
    "image": pathlib.Path("/etc/in-the-image").exists(),
    "pids": os.readlink("/proc/self/ns/pid"),
    "mounts": os.readlink("/proc/self/ns/mnt"),
    "home": os.environ["HOME"],
    "usr": written("/usr/x"),
    "etc": os.listdir("/etc"),
    "token": os.environ["HF_TOKEN"],
}))
time.sleep(300)
"""


def test_a_trial_is_in_namespaces_of_its_own_without_privileges_and_nothing_shows_its_secret(
    daemon: docker_daemon.Daemon, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-0451")
    cluster = containers(daemon)
    where = attempt_in(store, "a")
    attempt = cluster.start(contained(SEES, inherit=("HF_TOKEN",)), where, (0,))
    for _ in range(600):
        if (where / "seen").exists() and (where / "seen").read_text():
            break
        time.sleep(0.1)
    seen = json.loads((where / "seen").read_text())
    assert seen["image"]
    assert seen["pids"] != str(Path("/proc/self/ns/pid").readlink())
    assert seen["mounts"] != str(Path("/proc/self/ns/mnt").readlink())
    assert (seen["home"], seen["usr"], seen["token"]) == ("/tmp", "Read-only file system", "s3cr3t-0451")
    assert "apt" not in seen["etc"], "it is not this machine's"
    (container,) = daemon.containers()
    assert "s3cr3t" not in json.dumps(container)
    assert container["Name"] == f"/{docker.name(where, 0)}"
    how = container["HostConfig"]
    assert (how["Privileged"], how["CapAdd"], how["AutoRemove"]) == (False, None, True)
    assert container["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert json.loads((where / "gang/0.image.json").read_text()) == {"id": daemon.digest(), "digests": []}
    attempt.stop()
    assert ended(attempt).reason == "stopped"
    assert daemon.emptied()
    cluster.close()


def test_a_guard_that_is_killed_takes_its_container_with_it(daemon: docker_daemon.Daemon, store: Path) -> None:
    cluster = containers(daemon)
    where = attempt_in(store, "a")
    hidden = "import subprocess, time; subprocess.Popen(['tail', '-f', '/dev/null'], env={}, start_new_session=True)"
    attempt = cluster.start(contained(f"{hidden}; print('up', flush=True); time.sleep(300)"), where, (0,))
    for _ in range(600):
        if "up" in (where / "log.txt").read_text():
            break
        time.sleep(0.1)
    words = [str(where), "guard.py"]
    guards = [p.pid for p in psutil.process_iter(["cmdline"]) if is_guard(p.info["cmdline"] or [], words)]
    assert len(guards) == 1
    os.kill(guards[0], signal.SIGKILL)
    assert ended(attempt).reason == "lost"
    assert daemon.emptied()
    assert cluster.free() == (2,)
    cluster.close()


def is_guard(words: list[str], named: list[str]) -> bool:
    return "python" in "".join(words[:1]) and all(any(name in word for word in words) for name in named)


@pytest.mark.real  # run alone: any attempt that starts on this host meanwhile would clear what the guard left
def test_what_a_killed_guard_left_on_the_host_is_ended_though_a_container_comes_next(
    daemon: docker_daemon.Daemon, store: Path
) -> None:
    """In a container it cannot be seen, so that its temp-dir must not be taken for one without processes there."""
    cluster, plain = containers(daemon), attempt_in(store, "plain")
    code = "import subprocess; subprocess.Popen(['tail', '-f', '/dev/null', '--', 'left'], start_new_session=True)"
    code += "; print('up', flush=True); import time; time.sleep(300)"
    cluster.start(contained(code, image=None, argv=(sys.executable, "-c", code)), plain, (0,))
    den = Path(json.loads((plain / "attempt.json").read_text())["temp_dir"])
    for _ in range(600):
        if "up" in (plain / "log.txt").read_text():
            break
        time.sleep(0.1)
    marker = den.name.removeprefix(janitor.PREFIX)
    tails = [p for p in janitor.marked(marker) if Path(f"/proc/{p}/comm").read_text() == "tail\n"]
    assert len(tails) == 1
    guard = next(p for p in janitor.marked(marker) if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes())
    os.kill(guard, signal.SIGKILL)
    given, what = {"program": daemon.program, "mounts": docker_daemon.mounts()}, contained("print('next')")
    for number in (1, 2):
        where = attempt_in(store, f"next-{number}")
        gangs.prepare(what, where, [gangs.Node("here", "127.0.0.2")], shape=SHAPE, leases=True, join_s=60)
        words = docker.argv(given, what, where, 0, user=(os.getuid(), os.getgid()), node="here", device="cpu")
        line = gangs.stdin(what, gangs.new_token())
        if number == 1:  # without contain.py, which looks from outside
            daemon.docker(*words[1:], stdin=line.encode())
            assert den.exists()
            assert janitor.marked(marker) == tails
        else:
            command = docker.contained(where, 0, words, python=sys.executable)
            subprocess.run(command, input=line, text=True, capture_output=True, timeout=60, check=True)
            assert not den.exists()
            assert janitor.marked(marker) == []
    assert daemon.emptied()
    cluster.close()


def test_a_user_whom_the_image_does_not_know_has_a_name(daemon: docker_daemon.Daemon, store: Path) -> None:
    """torch asks for it, and raises where there is none."""
    given = {"program": daemon.program, "mounts": docker_daemon.mounts()}
    where, what = attempt_in(store, "a"), contained("")
    words = docker.argv(given, what, where, 0, user=(12345, 12345), node="here", device="cpu")
    upto = words[1 : words.index(docker_daemon.IMAGE) + 1]
    said = daemon.docker(*upto, "python3", "-c", "import getpass, os; print(getpass.getuser(), os.getuid())", stdin=b"")
    assert said == "12345 12345\n"
    assert daemon.emptied()


def test_the_doctor_knows_a_daemon_that_answers_from_one_that_does_not(
    daemon: docker_daemon.Daemon, tmp_path: Path
) -> None:
    assert probe.containers(daemon.program) == {}
    down = tmp_path / "docker"
    down.write_text(f'#!/bin/sh\nDOCKER_HOST=unix://{tmp_path}/no.sock exec docker "$@"\n')
    down.chmod(0o755)
    assert "Cannot connect to the Docker daemon" in probe.containers(str(down))["error"]


def test_an_image_that_is_not_there_is_a_failed_launch_with_dockers_words(
    daemon: docker_daemon.Daemon, store: Path
) -> None:
    cluster = containers(daemon, options=["--pull=never"])
    found = ended(cluster.start(contained("", image="sweeper-nowhere:1"), attempt_in(store, "a"), (0,)))
    assert found.reason == "launch"
    assert "sweeper-nowhere:1" in found.detail
    assert daemon.containers() == []
    cluster.close()


def test_a_folder_that_the_containers_user_cannot_write_is_a_failed_launch(
    daemon: docker_daemon.Daemon, store: Path
) -> None:
    cluster = containers(daemon, user="12345:12345")
    (where := store / "a").mkdir(mode=0o755)
    found = ended(cluster.start(contained(""), where, (0,)))
    assert found.reason == "launch"
    assert "Permission denied" in found.detail
    assert daemon.emptied()
    assert cluster.free() == (2,)
    cluster.close()
