"""A run rebuilt from its record, up to where it would be trained: a real repository with changed and untracked files, a
real record made by its code. Its metrics are written by hand: nothing is trained (tests/real/test_verify.py does)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from records_fake import fake_parent, fake_run

from sweeper import cache
from sweeper.checkpoints import manifest
from sweeper.cli.main import main
from sweeper.errors import RequestError
from sweeper.lineage import diff, forks, inputs, reproduce, tree, verify
from sweeper.lineage.document import UntrueError
from sweeper.lineage.find import Found, find, load
from sweeper.lineage.hashes import Hashes

ROOT = Path(__file__).resolve().parents[2]
REWARD = "def score(data_source, solution_str, ground_truth, extra_info=None, **kw):\n    return 1.0\n"
MAKE = Path(__file__).with_name("make_fake_run.py")


def git(at: Path, *arguments: str) -> str:
    named = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(at), *named, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def rows(file: Path, word: str) -> None:
    row = {"data_source": "mine", "reward_model": {"ground_truth": "1"}}
    lines = [json.dumps({**row, "prompt": [{"role": "user", "content": f"{word} {i}"}]}) for i in range(64)]
    file.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Run:
    """A recorded run and what it was made of."""

    folder: Path
    """Where it was typed: it holds `source` (the checkout), `data` and `runs`."""
    commit: str

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def record(self) -> Path:
        return self.folder / "runs/s/trials/000/attempt-1/lineage.json"

    def found(self) -> Found:
        return find("s/000", self.folder / "runs")

    def snapshot(self) -> dict[str, Any]:
        """All that a reproduction must leave as it is."""
        files = {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and ".git/objects" not in str(p)}
        return {str(p): content for p, content in files.items() if "__pycache__" not in str(p)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A checkout of this code with a commit, a change, an untracked and a binary file, and a run of it."""
    folder = tmp_path_factory.mktemp("reproduce")
    source = folder / "source"
    # The tracked files as they lie here, so that what is not committed yet is tested too.
    which = ["--cached", "--others", "--exclude-standard", "sweep.py", "sweeper", "conf", "hydra_plugins"]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *which], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "sweep.py").write_bytes(MAKE.read_bytes())  # a fake: what is reproduced is not trained
    (source / ".gitignore").write_text("__pycache__/\n")
    git(source.parent, "init", "-q", str(source))
    git(source, "add", "-A")
    git(source, "commit", "-q", "-m", "all")
    commit = git(source, "rev-parse", "HEAD")
    with (source / "conf/algorithm/grpo.yaml").open("a") as file:
        file.write("# changed and not committed\n")
    (source / "sweeper/untracked.py").write_text("X = 1\n")
    (source / "weights.bin").write_bytes(bytes(range(256)))
    data = folder / "data"
    data.mkdir()
    rows(data / "train.jsonl", "train")
    rows(data / "val.jsonl", "val")
    (source / "reward.py").write_text(REWARD)
    typed = ["environment=custom", "environment.train=data/train.jsonl", f"environment.val={data}/val.jsonl"]
    typed += [f"environment.reward={source}/reward.py:score", "responses_per_step=128", "cluster.device=cpu"]
    typed += ["data.max_prompt_length=64", "data.max_response_length=8", "lr=1e-4", "name=s", "max_concurrent=1"]
    done = subprocess.run(
        [sys.executable, "-P", str(source / "sweep.py"), f"store={folder}/runs", *typed],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # As after days of work: the change is gone from the tree, and so is what was untracked but for the reward.
    git(source, "checkout", "-q", "--", ".")
    git(source, "clean", "-q", "-f", "--exclude=reward.py")
    (source / "conf/config.yaml").write_text("nothing: here\n")
    return Run(folder, commit)


@pytest.fixture
def run(made: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """The run, from the folder where it was typed, with a cache that has what is built; untouched afterwards."""
    built = cache.root()
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for row in json.loads(made.record.read_text())["inputs"]:
        if row["built"]:
            name = Path(row["path"]).relative_to(built).parts[0]
            (tmp_path / "cache" / name).symlink_to(built / name)
    monkeypatch.chdir(made.folder)
    before = made.snapshot()
    yield made
    assert made.snapshot() == before, "nothing of the user's is changed"
    assert not list((tmp_path / "cache").glob("reproduce/*")), "no checkout is left behind"


def refusal(found: Found, **options: Any) -> str:
    with pytest.raises(RequestError) as caught, reproduce.planned(found, **options):
        pass
    assert caught.value.exit_code == 2
    return str(caught.value)


def altered(run: Run, tmp_path: Path, change: Any) -> Found:
    """The run's record with a change, in a folder of its own."""
    document = json.loads(run.record.read_text())
    change(document)
    folder = tmp_path / "altered"
    folder.mkdir()
    (folder / "lineage.json").write_text(json.dumps(document))
    (folder / "code.patch").write_bytes((run.record.parent / "code.patch").read_bytes())
    return find(str(folder / "lineage.json"), tmp_path)


class TestAPlan:
    def test_has_the_recorded_code_and_config_where_the_checkout_has_moved_on(self, run: Run) -> None:
        found = run.found()
        with reproduce.planned(found) as plan:
            assert git(plan.code, "rev-parse", "HEAD") == run.commit
            assert "changed and not committed" in (plan.code / "conf/algorithm/grpo.yaml").read_text()
            assert (plan.code / "sweeper/untracked.py").read_text() == "X = 1\n"
            assert (plan.code / "weights.bin").read_bytes() == bytes(range(256))
            assert not plan.environment
            assert not any(line.startswith(("name=", "max_concurrent=")) for line in plan.overrides)
            assert not plan.repointed and not plan.notes

    def test_finds_in_the_recorded_code_what_is_gone_from_the_checkout(self, run: Run) -> None:
        reward = run.source / "reward.py"
        reward.unlink()
        try:
            with reproduce.planned(run.found()) as plan:
                assert (plan.code / "reward.py").read_text() == REWARD
        finally:
            reward.write_text(REWARD)
        assert any("reward.py is read from" in note for note in plan.notes)
        assert plan.repointed == ("environment.reward", "reward.custom_reward_function.path")

    def test_verifies_the_config_without_running_anything(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)  # where a relative path of the record means something else
        assert main(["verify", str(run.record), "--tier", "config", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["verdict"] == "pass" and report["repointed"] == ["environment.train"]
        assert not (tmp_path / "runs").exists()

    def test_is_run_under_a_new_name_with_the_recorded_code(self, run: Run, tmp_path: Path) -> None:
        with reproduce.planned(run.found()) as plan:
            # A fake sweep.py, which says how it was called and what it would import.
            (plan.code / "sweep.py").write_text(
                "import sys, json, sweeper\nfrom pathlib import Path\n"
                f"Path({str(tmp_path / 'called.json')!r}).write_text(json.dumps([sys.argv[1:], sweeper.__file__]))\n"
            )
            sweep = reproduce.named(plan.found, None, tmp_path / "runs")
            code, again = reproduce.run(plan, sweep, store=tmp_path / "runs")
            assert (code, again) == (0, [])
            called, package = json.loads((tmp_path / "called.json").read_text())
            assert package == str(plan.code / "sweeper/__init__.py"), "not what is installed"
        assert "name=again-s-000" in called
        assert f"lineage.reproduces='{run.record}'" in called

    @pytest.mark.parametrize("command", ["reproduce", "verify"])
    def test_a_name_that_is_taken_or_is_a_path_is_refused_before_anything_else(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reproduce, "planned", None)
        fake_run(tmp_path, "s/000")
        (tmp_path / "taken").mkdir()
        for name, said in (("taken", "--name taken-2"), ("../x", "--name=../x cannot name a folder")):
            assert main([command, "s/000", "--name", name, "--store", str(tmp_path)]) == 2
            assert said in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "taken"]


@dataclass(frozen=True)
class Tracked:
    """A repository with data that real DVC tracks, pushed to a remote beside it, and gone from the tree."""

    folder: Path
    commit: str
    rows: dict[str, dict[str, Any]]
    """What a record has of each input, by its path in the repository."""

    @property
    def repository(self) -> Path:
        return self.folder / "tracked"

    def given(self, what: str, row: str = "") -> dict[str, Any]:
        known = self.rows[row or what]
        kept = {**known["dvc"], "path": str(self.repository / known["dvc"]["path"])}
        return {**known, "path": str(self.repository / what), "dvc": kept}

    def target(self, what: str) -> Path:
        return self.folder / "brought" / Path(what).name

    def snapshot(self) -> dict[str, bytes]:
        files = [p for at in ("tracked", "remote") for p in (self.folder / at).rglob("*") if p.is_file()]
        return {str(p): p.read_bytes() for p in files if ".dvc/tmp" not in str(p)}


def flipped(folder: Path) -> None:
    """A byte of every file below, but for DVC's own notes."""
    for path in [p for p in folder.rglob("*") if p.is_file() and "files" in p.parts]:
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """The original of `Tracked`; its records are made by our own code while the data is there."""
    folder = tmp_path_factory.mktemp("dvc")
    repository = folder / "tracked"
    for name in ("data/train.jsonl", "data/sub/a.jsonl", "data/sub/b.jsonl", "out/sub/x.json", "model/w", "model/c"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        rows(repository / name, name)
    rows(repository / "val.jsonl", "val")
    (repository / "dvc.yaml").write_text("stages: {made: {cmd: 'true', outs: [out: {persist: true}]}}\n")

    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments, "-q"]
        subprocess.run(command, cwd=repository, check=True, capture_output=True)

    def row(name: str, *, once_more: str = "") -> None:
        config = {"data": {"train_files": str(repository / name)}}
        (made,) = inputs.of(config, Hashes(folder / "hashes.db"), fresh=True)
        made["dvc"]["path"] = str(Path(made["dvc"]["path"]).relative_to(repository))
        found[once_more or name] = made

    found: dict[str, dict[str, Any]] = {}
    git(folder, "init", "-q", str(repository))
    dvc("init")
    (repository / ".dvc/config").write_text(
        "[core]\n    analytics = false\n    remote = here\n['remote \"here\"']\n    url = ../../remote\n"
    )
    dvc("add", "val.jsonl", "data", "model")
    dvc("repro")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "data")
    for name in ("val.jsonl", "data/train.jsonl", "data/sub", "data", "model", "out/sub/x.json"):
        row(name)
    dvc("push")
    rows(repository / "val.jsonl", "changed")
    dvc("add", "val.jsonl")
    dvc("push")
    row("val.jsonl", once_more="val.jsonl.changed")
    git(repository, "checkout", "-q", "--", "val.jsonl.dvc")
    for name in ("data", "out", "model"):
        shutil.rmtree(repository / name)
    (repository / "val.jsonl").unlink()
    return Tracked(folder, git(repository, "rev-parse", "HEAD"), found)


@pytest.fixture
def tracked(pushed: Tracked, tmp_path: Path) -> Tracked:
    folder = tmp_path / "of-dvc"
    for name in ("tracked", "remote"):
        shutil.copytree(pushed.folder / name, folder / name, symlinks=True)
    return replace(pushed, folder=folder)


class TestData:
    def test_a_flipped_byte_is_refused_with_both_hashes(self, run: Run) -> None:
        file = run.folder / "data/train.jsonl"
        content, times = file.read_bytes(), file.stat()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # nothing but its content tells
        try:
            said = refusal(run.found())
        finally:
            file.write_bytes(content)
        recorded = run.found().document["inputs"][0]["sha256"]
        assert str(file) in said and recorded in said and said.count("sha256") == 2

    def test_every_missing_file_is_named(self, run: Run) -> None:
        gone = [run.folder / "data/train.jsonl", run.folder / "data/val.jsonl"]
        kept = [p.read_bytes() for p in gone]
        for path in gone:
            path.unlink()
        try:
            said = refusal(run.found())
        finally:
            for path, content in zip(gone, kept, strict=True):
                path.write_bytes(content)
        assert all(f"{p} is not there" in said for p in gone)

    def test_a_file_that_is_gone_comes_from_the_cache_of_dvc(self, run: Run, tmp_path: Path) -> None:
        """A cache laid out as DVC's, with a file whose name is its MD5."""
        source = (run.folder / "data/val.jsonl").read_bytes()
        md5 = hashlib.md5(source).hexdigest()
        repository = tmp_path / "tracked"
        cached = repository / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True)
        cached.write_bytes(source)

        def moved(document: dict[str, Any]) -> None:
            row = next(r for r in document["inputs"] if r["role"] == "val")
            row["path"] = str(repository / "val.jsonl")
            row["dvc"] = {"path": str(repository / "val.jsonl.dvc"), "md5": md5}
            for at, key in ((document["config"]["environment"], "val"), (document["config"]["data"], "val_files")):
                at[key] = row["path"]

        with reproduce.planned(altered(run, tmp_path, moved)) as plan:
            line = next(line for line in plan.overrides if line.startswith("++environment.val="))
            assert Path(line.partition("=")[2].strip("'")).read_bytes() == source

    @pytest.mark.parametrize("place", ["cache", "remote"])
    @pytest.mark.parametrize("what", ["val.jsonl", "data/train.jsonl", "data/sub", "data", "model", "out/sub/x.json"])
    def test_what_is_gone_comes_from_dvc_by_its_hash(self, tracked: Tracked, what: str, place: str) -> None:
        """A file, one in a tracked folder, a folder in one, a tracked folder, one that a dvc.lock names."""
        given = tracked.given(what)
        if place == "remote":
            shutil.rmtree(tracked.repository / ".dvc/cache")
        before = tracked.snapshot()
        target = tracked.target(what)
        assert reproduce._from_dvc(given, tracked.repository, tracked.commit, target) == "DVC has another one"
        assert reproduce.content(target) == given["sha256"]
        assert tracked.snapshot() == before, "repository, cache and remote are only read"
        assert [p.name for p in target.parent.iterdir()] == [target.name], "nothing else is left there"

    def test_it_is_what_was_read_and_not_what_was_committed(self, tracked: Tracked) -> None:
        """A run from a tree whose .dvc was changed and pushed, and never committed."""
        given = tracked.given("val.jsonl", "val.jsonl.changed")
        shutil.rmtree(tracked.repository / ".dvc/cache")
        target = tracked.target("val.jsonl")
        reproduce._from_dvc(given, tracked.repository, tracked.commit, target)
        assert reproduce.content(target) == given["sha256"]

    def test_the_data_is_in_another_repository_than_the_code(self, tracked: Tracked, tmp_path: Path) -> None:
        given, target = tracked.given("val.jsonl"), tracked.target("val.jsonl")
        shutil.rmtree(tracked.repository / ".dvc/cache")
        reproduce._from_dvc(given, tmp_path, "c" * 40, target)
        assert reproduce.content(target) == given["sha256"]
        # In another place, where the repository is gone: by that of the recorded code.
        (tmp_path / "moved").mkdir()
        moved = tracked.repository.rename(tmp_path / "moved" / "tracked")
        (tracked.folder / "remote").rename(tmp_path / "moved" / "remote")
        target.unlink()
        reproduce._from_dvc(given, tmp_path, "c" * 40, target, (tmp_path / "none", moved))
        assert reproduce.content(target) == given["sha256"]

    @pytest.mark.parametrize("what", ["val.jsonl", "data"])
    def test_a_damaged_cache_gives_way_to_the_remote(self, tracked: Tracked, what: str) -> None:
        given, target = tracked.given(what), tracked.target(what)
        flipped(tracked.repository / ".dvc/cache")
        reproduce._from_dvc(given, tracked.repository, tracked.commit, target)
        assert reproduce.content(target) == given["sha256"]
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        flipped(tracked.folder / "remote")
        why = reproduce._from_dvc(given, tracked.repository, tracked.commit, target)
        assert "what the cache has is not sound; what the remote here has is not sound" in why
        assert reproduce.content(target) != given["sha256"], "what plain DVC took from there all the same"

    def test_what_dvc_has_not_is_said_with_where_it_was_looked_for(self, tracked: Tracked) -> None:
        given, target = tracked.given("val.jsonl"), tracked.target("val.jsonl")
        shutil.rmtree(tracked.repository / ".dvc/cache")
        shutil.rmtree(tracked.folder / "remote/files")
        why = reproduce._from_dvc(given, tracked.repository, tracked.commit, target)
        assert f"the object {given['dvc']['md5']} is not in the cache, the remote here" in why
        assert "by its path: " in why and "No storage files available" in why, "in DVC's own words"
        fix = f"dvc --cd {tracked.repository} pull val.jsonl.dvc"
        assert fix in reproduce._altered(given, why).fix

    def test_what_is_built_is_compared_too(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            next(r for r in document["inputs"] if r["role"] == "model")["sha256"] = "1" * 64

        said = refusal(altered(run, tmp_path, other))
        assert "model" in said and "1" * 64 in said and "rm -r" in said


class TestCode:
    def test_a_commit_that_is_gone_says_where_to_get_it(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["code"] |= {"commit": "d" * 40, "remote": "https://example.org/x.git"}

        said = refusal(altered(run, tmp_path, other))
        assert "d" * 40 in said and f"fetch https://example.org/x.git {'d' * 40}" in said

    def test_a_patch_that_does_not_apply(self, run: Run, tmp_path: Path) -> None:
        found = altered(run, tmp_path, lambda document: None)
        patch = found.path.with_name("code.patch")
        patch.write_text("--- a/sweep.py\n+++ b/sweep.py\n@@ -1,2 +1,2 @@\n-not there\n+new\n at all\n")
        document = json.loads(found.path.read_text())
        document["code"]["patch"]["sha256"] = hashlib.sha256(patch.read_bytes()).hexdigest()
        found.path.write_text(json.dumps(document))
        said = refusal(find(str(found.path), tmp_path))
        assert "does not apply" in said and "git apply --check" in said

    @pytest.mark.parametrize("gone", [True, False])
    def test_a_patch_that_is_missing_or_altered(self, run: Run, tmp_path: Path, gone: bool) -> None:
        found = altered(run, tmp_path, lambda document: None)
        patch = found.path.with_name("code.patch")
        if gone:
            patch.unlink()
        else:
            patch.write_bytes(patch.read_bytes().replace(b"X = 1", b"X = 2"))
        said = refusal(found)
        assert str(patch) in said and found.document["code"]["patch"]["sha256"] in said

    def test_other_sources_than_those_that_ran_are_refused(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["code"]["package_sha256"] = "1" * 64

        assert "another hash" in refusal(altered(run, tmp_path, other))

    def test_without_git(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert "git is not installed" in refusal(run.found())

    def test_a_run_from_a_folder_without_git(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["code"] |= {"commit": None, "patch": None}

        assert "without git" in refusal(altered(run, tmp_path, other))

    def test_what_a_killed_one_left_is_removed_by_the_next(self, run: Run) -> None:
        left = cache.root() / "reproduce/run-killed"
        (left / "code").mkdir(parents=True)
        left.with_suffix(".lock").touch()
        with reproduce.planned(run.found()):
            assert not left.exists()


def verified(
    capsys: pytest.CaptureFixture[str], record: Path, tmp_path: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    """The exit code of `sweeper verify` and its report, with a store for what it runs."""
    capsys.readouterr()
    code = main(["verify", str(record), "--json", "--store", str(tmp_path / "again"), *options])
    return code, json.loads(capsys.readouterr().out)


class TestTheCommands:
    """All of a reproduction; the recorded code's sweep.py is a fake (make_fake_run.py), so that nothing is trained."""

    def test_reproduce_runs_the_recorded_code_and_says_how_to_compare(
        self, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        store = tmp_path / "again"
        assert main(["reproduce", str(run.record), "--store", str(store), "--name", "twice"]) == 0
        made = store / "twice/trials/000/attempt-1/lineage.json"
        assert f"compare  sweeper diff {run.record} {made}" in capfd.readouterr().out
        again, first = json.loads(made.read_text()), json.loads(run.record.read_text())
        assert again["fingerprint"] == first["fingerprint"]
        assert [(p["relation"], p["lineage"]) for p in again["parents"]] == [("reproduces", str(run.record))]
        assert again["code"]["patch"] == first["code"]["patch"] is not None
        main(["diff", str(run.record), str(made), "--json"])
        differs = json.loads(capfd.readouterr().out)["differs"]
        assert differs == ["placement"], "nothing is probed again, and a reward that lies where it lay is the same"

    def test_reproduce_ends_as_its_sweep_does(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAKE_EXIT", "1")
        assert main(["reproduce", str(run.record), "--store", str(tmp_path / "again")]) == 1
        assert (tmp_path / "again/again-s-000/trials/000/attempt-1/lineage.json").is_file()

    def test_verify_passes_what_comes_out_the_same_and_keeps_its_report(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, report = verified(capsys, run.record, tmp_path)
        assert (code, report["verdict"], report["tier"], report["steps"]) == (0, "pass", "exact", 1)
        kept = tmp_path / "again/again-s-000/verify.json"
        assert json.loads(kept.read_text())["verdict"] == "pass"
        # The same pair again, without running anything: the report at another tier stays.
        made = report["lineage"]
        assert verified(capsys, run.record, tmp_path, "--against", made, "--tier", "config")[0] == 0
        assert json.loads(kept.read_text())["tier"] == "exact"
        kept.unlink()
        assert verified(capsys, run.record, tmp_path, "--against", made, "--tier", "config")[0] == 0
        assert json.loads(kept.read_text())["tier"] == "config"

    def test_verify_fails_what_comes_out_otherwise(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_LOSS", "0.25")
        code, report = verified(capsys, run.record, tmp_path)
        assert (code, report["verdict"]) == (1, "fail")
        assert report["first"] == {"step": 1, "metric": "actor/loss", "a": 0.5, "b": 0.25}

    def test_verify_judges_a_score_by_runs_of_other_seeds(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, report = verified(capsys, run.record, tmp_path, "--tier", "statistical", "--seeds", "3")
        assert (code, report["verdict"], len(report["scores"])) == (0, "pass", 3)

    def test_another_environment_is_judged_only_where_that_is_asked_for(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            document["environment"]["packages"] |= {"torch": "1.0.0", "numpy": "1.0.0"}

        record = altered(run, tmp_path, other).path
        (record.parent / "metrics.jsonl").write_bytes((run.record.parent / "metrics.jsonl").read_bytes())
        code, report = verified(capsys, record, tmp_path)
        assert (code, report["verdict"]) == (2, "unjudged")
        assert (
            report["why"].startswith("environment.packages.torch: ") and "--allow-env" in report["problems"][0]["fix"]
        )
        assert not (tmp_path / "again").exists(), "nothing was run"
        code, report = verified(capsys, record, tmp_path, "--allow-env")
        assert (code, report["verdict"]) == (0, "pass")
        command = f"{sys.executable} -m pip install numpy==1.0.0 torch==1.0.0"
        assert any(command in line for line in report["notes"]), "how the recorded versions come back"
        assert any("environment.packages.numpy" in line for line in report["notes"])

    def test_with_the_code_of_this_checkout_what_differs_is_named(
        self,
        run: Run,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ours = tmp_path / "ours"
        shutil.copytree(run.source, ours, ignore=shutil.ignore_patterns("__pycache__"))
        (ours / "conf/config.yaml").write_text(git(run.source, "show", f"{run.commit}:conf/config.yaml") + "\n")
        with (ours / "sweeper/cache.py").open("a") as file:
            file.write("# one more byte\n")
        monkeypatch.setattr(tree, "OURS", ours)
        expected = ["M conf/algorithm/grpo.yaml", "M sweeper/cache.py", "D sweeper/untracked.py"]
        for tier in ("config", "exact"):
            code, report = verified(capfd, run.record, tmp_path, "--here", "--tier", tier)
            assert (code, report["verdict"], report["code"]) == (0, "pass", expected)
            assert report["why"].startswith(f"by other code than was recorded ({', '.join(expected)}): ")
        made = json.loads(Path(report["lineage"]).read_text())
        assert made["code"]["root"] == str(ours), "it was run by it"
        assert main(["reproduce", str(run.record), "--here", "--store", str(tmp_path / "third")]) == 0
        assert f"code: {ours} is not the recorded one: {', '.join(expected)}" in capfd.readouterr().out


class TestAVerdictWithoutARun:
    """What shows that a record is untrue fails; what cannot be looked at does not."""

    def verdict(
        self, capsys: pytest.CaptureFixture[str], record: Path, tmp_path: Path, *options: str
    ) -> tuple[int, str, str]:
        """Exit code, verdict and the field of the first problem; the message begins with it, in JSON and in text."""
        code, report = verified(capsys, record, tmp_path, *options)
        problem = report["problems"][0]
        assert report["why"] == problem["what"] and problem["fix"], "every one has a next command"
        assert problem["what"].startswith((f"{problem['key']}: ", str(record))), problem
        assert main(["verify", str(record), "--store", str(tmp_path / "again"), *options]) == code
        assert capsys.readouterr().out.startswith(f"{report['verdict'].upper()}  s/000/1 at tier {report['tier']}: ")
        assert not (tmp_path / "again").exists(), "nothing was run"
        return code, report["verdict"], problem["key"]

    @pytest.mark.parametrize("tier", ["config", "exact"])
    def test_an_altered_config_fails(
        self, run: Run, tmp_path: Path, tier: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            document["overrides"] = ["lr=2e-4" if line == "lr=1e-4" else line for line in document["overrides"]]

        record = altered(run, tmp_path, other).path
        said = self.verdict(capsys, record, tmp_path, "--tier", tier)
        assert said == (1, "fail", "identity.actor_rollout_ref.actor.optim.lr")

    def test_where_another_engine_may_compose_it_otherwise_it_is_unjudged(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            document["overrides"] = ["lr=2e-4" if line == "lr=1e-4" else line for line in document["overrides"]]
            document["environment"]["engine"]["version"] = "0.0.1"

        code, report = verified(capsys, altered(run, tmp_path, other).path, tmp_path, "--tier", "config")
        assert (code, report["verdict"]) == (2, "unjudged") and "by another engine version" in report["why"]

    def test_a_record_that_contradicts_itself_fails(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = altered(run, tmp_path, lambda document: document["seeds"].update({"data.seed": 7})).path
        assert self.verdict(capsys, record, tmp_path, "--tier", "config") == (1, "fail", "seeds.data.seed")

    def test_altered_data_fails_and_data_that_is_gone_does_not(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = run.folder / "data/train.jsonl"
        content = file.read_bytes()
        try:
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert self.verdict(capsys, run.record, tmp_path, "--tier", "config") == (1, "fail", "inputs.train")
            file.unlink()
            assert self.verdict(capsys, run.record, tmp_path, "--tier", "exact") == (2, "unjudged", "inputs.train")
        finally:
            file.write_bytes(content)

    def test_data_that_dvc_may_still_have_is_not_called_altered(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            row = next(r for r in document["inputs"] if r["role"] == "val")
            row |= {"sha256": "1" * 64, "dvc": {"path": f"{row['path']}.dvc", "md5": "1" * 32}}

        record = altered(run, tmp_path, other).path
        assert self.verdict(capsys, record, tmp_path, "--tier", "config") == (2, "unjudged", "inputs.val")

    def test_an_input_without_a_hash_is_no_pass(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            next(r for r in document["inputs"] if r["role"] == "train")["sha256"] = None

        code, report = verified(capsys, altered(run, tmp_path, other).path, tmp_path, "--tier", "config")
        assert (code, report["verdict"]) == (2, "unjudged")
        assert f"1 of 4 inputs cannot be compared: inputs.train: {run.folder}/data/train.jsonl" in report["why"]

    def test_altered_code_fails_and_its_files_are_named(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record has another patch than the one that ran, which a checkout still has."""
        with reproduce.planned(run.found()) as plan:
            ours = shutil.copytree(plan.code, tmp_path / "ours", ignore=shutil.ignore_patterns(".git", "__pycache__"))
        record = altered(run, tmp_path, lambda document: None).path
        patch = record.with_name("code.patch")
        patch.write_bytes(patch.read_bytes().replace(b"+X = 1", b"+X = 2"))
        said = self.verdict(capsys, record, tmp_path, "--tier", "config")
        assert said == (1, "fail", "code.patch")
        document = json.loads(record.read_text())
        document["code"]["patch"]["sha256"] = hashlib.sha256(patch.read_bytes()).hexdigest()
        record.write_text(json.dumps(document))
        assert self.verdict(capsys, record, tmp_path, "--tier", "config") == (1, "fail", "code.package_sha256")
        monkeypatch.setattr(tree, "OURS", ours)
        _, report = verified(capsys, record, tmp_path, "--tier", "config")
        assert "other files: M sweeper/untracked.py" in report["why"]

    def test_where_the_record_lacks_sources_other_ones_are_unjudged(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def other(document: dict[str, Any]) -> None:
            document["code"]["package_sha256"] = "1" * 64
            document["code"]["left_out"] = [{"path": "sweeper/secrets.yaml", "bytes": 9, "why": "secret"}]

        record = altered(run, tmp_path, other).path
        assert self.verdict(capsys, record, tmp_path, "--tier", "config") == (2, "unjudged", "code.package_sha256")

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_patch_that_is_gone_is_unjudged_and_says_where_another_is(
        self, run: Run, tmp_path: Path, kept: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = str(run.record.parent) if kept else "/nowhere/s/trials/000/attempt-1"
        record = altered(run, tmp_path, lambda document: document["run"].update(folder=place)).path
        record.with_name("code.patch").unlink()
        assert self.verdict(capsys, record, tmp_path, "--tier", "config") == (2, "unjudged", "code.patch")
        _, report = verified(capsys, record, tmp_path, "--tier", "config")
        fix = report["problems"][0]["fix"]
        if kept:
            copy = Path(fix.split()[1])
            assert fix == f"cp {copy} {record.parent}/code.patch" and copy.parent == run.record.parents[3] / "patches"
        else:
            assert "MLflow run id" in fix and "sweeper sync s" in fix and "--here" in fix

    def test_a_commit_that_is_gone_is_unjudged(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = altered(run, tmp_path, lambda document: document["code"].update(commit="d" * 40)).path
        assert self.verdict(capsys, record, tmp_path) == (2, "unjudged", "code.commit")

    def test_an_attempt_that_never_trained_costs_no_run(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = altered(run, tmp_path, lambda document: None).path
        record.with_name("metrics.jsonl").unlink(missing_ok=True)
        assert main(["verify", str(record), "--store", str(tmp_path / "again"), "--tier", "exact"]) == 2
        said = capsys.readouterr().out
        assert "UNJUDGED  s/000/1 at tier exact: s/000/1 has no metrics" in said and "sweeper verify s/000 " in said
        assert not (tmp_path / "again").exists()


def test_a_diff_of_code_names_the_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = altered(run, tmp_path, lambda document: document["code"].update(patch=None)).path
    capsys.readouterr()
    assert main(["diff", str(bare), str(run.record), "--json"]) == 1
    code = {c["what"]: (c["a"], c["b"]) for c in json.loads(capsys.readouterr().out)["code"]}
    assert {"patch", "conf/algorithm/grpo.yaml", "sweeper/untracked.py", "weights.bin", "reward.py"} == code.keys()
    assert code["sweeper/untracked.py"][0] is None and None not in code["conf/algorithm/grpo.yaml"]
    main(["verify", str(bare), "--against", str(run.record), "--tier", "config"])
    said = capsys.readouterr().out
    assert said.startswith("PASS") and "A sweeper/untracked.py" in said and "by other code than was recorded" in said


class TestImage:
    """`engine.image`; the container program is a fake that knows one image."""

    NAME = "registry.example/verl:1"

    def record(self, tmp_path: Path, name: str, digest: str, **changes: Any) -> Found:
        program = tmp_path / "docker"
        config = {
            "engine": {"name": "verl", "python": "python3", "env": {}, "image": self.NAME},
            "cluster": {"kind": "local", "docker": {"program": str(program)}},
            **changes,
        }
        image = f"{self.NAME}@sha256:{digest * 64}" if digest else self.NAME
        return load(fake_run(tmp_path, name, config=config, environment={"image": image}))

    def here(self, tmp_path: Path, digest: str) -> None:
        """This machine has the image with that digest."""
        says = f'sha256:{"e" * 64} ["registry.example/verl@sha256:{digest * 64}"]'
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n[ \"$5\" = {self.NAME} ] && echo '{says}'\n")
        program.chmod(0o755)

    def differs(self, found: Found, tmp_path: Path) -> list[tuple[Any, Any]]:
        made = reproduce._environment(found, "python3", tmp_path)
        return [(c.a, c.b) for c in diff.environment(found.document["environment"], made) if c.what == "image"]

    def test_a_tag_that_was_pulled_anew_is_seen_before_the_run(self, tmp_path: Path) -> None:
        found = self.record(tmp_path, "s/000", "a")
        assert not self.differs(found, tmp_path), "without the program it is known once it ran"
        self.here(tmp_path, "a")
        assert not self.differs(found, tmp_path)
        self.here(tmp_path, "b")
        ((was, now),) = self.differs(found, tmp_path)
        assert (was, now) == (f"{self.NAME}@sha256:{'a' * 64}", f"{self.NAME}@sha256:{'b' * 64}")
        remote = self.record(tmp_path, "t/000", "a", cluster={"kind": "ssh"})
        assert not self.differs(remote, tmp_path), "other hosts have images of their own"

    def test_it_is_refused_in_the_exact_tier_with_the_command_that_brings_it_back(
        self, run: Run, tmp_path: Path
    ) -> None:
        self.here(tmp_path, "b")

        def other(document: dict[str, Any]) -> None:
            document["config"]["engine"]["image"] = self.NAME
            document["config"]["cluster"]["docker"] = {"program": str(tmp_path / "docker")}
            document["environment"]["image"] = f"{self.NAME}@sha256:{'a' * 64}"

        said = refusal(altered(run, tmp_path, other), strict=True)
        assert "environment.image: image was" in said
        assert f"docker pull {self.NAME}@sha256:{'a' * 64} && docker tag" in said

    def test_another_one_than_recorded_is_no_pass_after_the_run(self, tmp_path: Path) -> None:
        found = self.record(tmp_path, "s/000", "a")
        assert verify.against(found, self.record(tmp_path, "same/000", "a"), "exact").verdict == "pass"
        for name, digest in (("other/000", "b"), ("unknown/000", "")):
            report = verify.against(found, self.record(tmp_path, name, digest), "exact")
            assert (report.verdict, report.code) == ("unjudged", 2)
            assert report.why.startswith(f"environment.image: {self.NAME}@sha256:{'a' * 64} was recorded, and {name}/1")
            assert "same to the last bit" in report.why, "what came out is said all the same"
        before = self.record(tmp_path, "before/000", "")
        assert not reproduce.other_image(before, found), "without a recorded digest there is nothing to tell by"

    @pytest.mark.parametrize(("options", "code"), [([], 2), (["--allow-env"], 0)])
    def test_it_is_compared_once_the_run_has_ended(
        self, tmp_path: Path, options: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """With the plan and the run left out: neither needs an image."""
        found, again = self.record(tmp_path, "s/000", "a"), self.record(tmp_path, "again/000", "b")
        plan = reproduce.Plan(found, tmp_path, (), -1, (), (), ())
        monkeypatch.setattr(reproduce, "planned", lambda *_, **__: contextlib.nullcontext(plan))
        monkeypatch.setattr(reproduce, "run", lambda *_, **__: (0, [again]))
        assert main(["verify", str(found.path), "--tier", "exact", "--store", str(tmp_path / "x"), *options]) == code
        assert "again/000/1 ran in registry.example/verl:1@sha256:bbb" in capsys.readouterr().out
        assert main(["reproduce", str(found.path), "--store", str(tmp_path / "x")]) == 0
        assert "again/000/1 ran in registry.example/verl:1@sha256:bbb" in capsys.readouterr().out


class TestRefused:
    def test_another_torch_in_the_exact_tier_alone(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["environment"]["packages"]["torch"] = "1.0.0"

        found = altered(run, tmp_path, other)
        said = refusal(found, strict=True)
        assert "package torch was 1.0.0" in said and "--allow-env" in said and "torch==1.0.0" in said
        with reproduce.planned(found) as plan:
            assert [c.what for c in plan.environment] == ["package torch"]

    def test_a_config_that_is_another_one_names_the_leaves(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["overrides"] = ["lr=2e-4" if line == "lr=1e-4" else line for line in document["overrides"]]

        said = refusal(altered(run, tmp_path, other))
        assert "optim.lr: 0.0001 -> 0.0002" in said

    def test_a_record_that_contradicts_itself_names_the_leaf(self, run: Run, tmp_path: Path) -> None:
        def other(document: dict[str, Any]) -> None:
            document["identity"]["actor_rollout_ref.actor.optim.lr"] = 0.0002

        said = refusal(altered(run, tmp_path, other))
        assert "contradicts itself" in said and "optim.lr: 0.0002 -> 0.0001" in said

    @pytest.mark.parametrize(
        ("section", "change", "said"),
        [
            ("seeds", {"data.seed": 7}, "seeds.data.seed is 7, and by its identity and placement it is 1"),
            ("environment", {"engine": {"name": "other", "version": "1", "commit": None}}, "environment.engine.name"),
        ],
    )
    def test_what_a_record_says_twice_it_says_alike(
        self, run: Run, tmp_path: Path, section: str, change: dict[str, Any], said: str
    ) -> None:
        found = altered(run, tmp_path, lambda document: document[section].update(change))
        said_by = refusal(found)
        assert said in said_by and "contradicts itself" in said_by and "MLflow" in said_by

    def test_overrides_that_do_not_compose_any_more(self, run: Run, tmp_path: Path) -> None:
        said = refusal(altered(run, tmp_path, lambda document: document["overrides"].append("trainer.nnode=1")))
        assert "trainer.nnode" in said


class TestAFork:
    """What went on from another trial's checkpoint begins there again. Checkpoints are fakes with real manifests."""

    def donors(self, tmp_path: Path) -> tuple[Path, str]:
        """The donor's checkpoint and its digest."""
        folder = tmp_path / "s/trials/004/checkpoints"
        weights = folder / "global_step_4/actor/model_world_size_1_rank_0.pt"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"weights")
        written = manifest.write(folder, 4, trial="004", attempt=1)
        assert written is not None
        return folder / "global_step_4", written.digest

    def parent(self, tmp_path: Path, digest: str | None) -> dict[str, Any]:
        record = tmp_path / "s/trials/004/attempt-1/lineage.json"
        return fake_parent("forked-from", trial="004", checkpoint=digest, lineage=str(record))

    def test_it_begins_at_the_recorded_checkpoint(self, run: Run, tmp_path: Path) -> None:
        checkpoint, digest = self.donors(tmp_path)

        def forked(document: dict[str, Any]) -> None:
            document["parents"] = [self.parent(tmp_path, digest)]
            document["overrides"] += ["trainer.resume_mode=auto"]

        with reproduce.planned(altered(run, tmp_path, forked)) as plan:
            resumed = [line for line in plan.overrides if line.startswith("trainer.resume")]
            assert resumed == ["trainer.resume_mode=resume_path", f"trainer.resume_from_path='{checkpoint}'"]
            assert f"forked from s/004 at step 4: {checkpoint}" in "\n".join(plan.notes)
            assert reproduce.ask(plan.code, plan.overrides, build=False)["trials"] == 1

    def test_the_copy_that_it_made_will_do(self, run: Run, tmp_path: Path) -> None:
        checkpoint, digest = self.donors(tmp_path)
        copy = tmp_path / "checkpoints"  # beside the attempt's folder
        shutil.copytree(checkpoint.parent, copy)
        shutil.rmtree(checkpoint)
        found = altered(run, tmp_path, lambda d: d.update(parents=[self.parent(tmp_path, digest)]))
        with reproduce.planned(found) as plan:
            assert f"trainer.resume_from_path='{copy / checkpoint.name}'" in plan.overrides

    def test_one_that_is_gone_altered_or_another_is_named(self, tmp_path: Path) -> None:
        checkpoint, digest = self.donors(tmp_path)
        fake_run(tmp_path, "s/001", parents=[self.parent(tmp_path, "0" * 64)])
        assert f"{checkpoint} has digest {digest}" in refusal(find("s/001", tmp_path))
        fake_run(tmp_path, "s/002", parents=[self.parent(tmp_path, None)])
        assert "was not recorded" in refusal(find("s/002", tmp_path))
        fake_run(tmp_path, "s/003", parents=[self.parent(tmp_path, digest)])
        (checkpoint / "actor/model_world_size_1_rank_0.pt").write_bytes(b"weightt")
        with pytest.raises(UntrueError) as caught, reproduce.planned(find("s/003", tmp_path)):
            pass
        assert "actor/model_world_size_1_rank_0.pt has other content" in str(caught.value)
        shutil.rmtree(checkpoint)
        said = refusal(find("s/003", tmp_path))
        assert f"{checkpoint} is not there" in said and "sweeper reproduce" in said and digest in said

    def test_an_attempt_after_it_has_the_same_beginning(self, tmp_path: Path) -> None:
        checkpoint, digest = self.donors(tmp_path)
        fake_run(tmp_path, "s/001", fingerprint="e" * 64)
        fake_run(tmp_path, "s/001", attempt=2, parents=[self.parent(tmp_path, digest)])
        fake_run(tmp_path, "s/001", attempt=3, parents=[fake_parent("previous-attempt", trial="001", step=6)])
        assert forks.of(find("s/001/1", tmp_path)) is None
        for named in ("s/001/2", "s/001/3"):
            found = find(named, tmp_path)
            fork = forks.of(found)
            assert fork is not None and fork.step == 4 and forks.checkpoint(found, fork) == checkpoint
            assert forks.since(found).metrics == found.metrics[1:]

    def test_new_values_on_its_own_weights_are_a_fork_of_itself(self, tmp_path: Path) -> None:
        fake_run(tmp_path, "s/001", fingerprint="e" * 64)
        fake_run(tmp_path, "s/001", attempt=2, parents=[fake_parent("previous-attempt", trial="001", step=4)])
        fork = forks.of(find("s/001", tmp_path))
        assert fork is not None and fork.donor == "s/001 at step 4"
        fake_run(tmp_path, "s/002")
        fake_run(tmp_path, "s/002", attempt=2, parents=[fake_parent("previous-attempt", trial="002", step=4)])
        assert forks.of(find("s/002", tmp_path)) is None, "the same values: a resume"


def test_a_probed_placement_is_run_again(run: Run, tmp_path: Path) -> None:
    key, value = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", 4096

    def other(document: dict[str, Any]) -> None:
        assert document["placement"][key] != value
        document["placement"][key] = value

    with reproduce.planned(altered(run, tmp_path, other)) as plan:
        assert f"++{key}={value}" in plan.overrides


def test_other_seeds_are_asked_for_in_one_sweep(run: Run) -> None:
    with reproduce.planned(run.found(), seeds=[7, 8]) as plan:
        assert [line for line in plan.overrides if line.startswith("seed=")] == ["seed=7,8"]
        assert reproduce.ask(plan.code, plan.overrides, build=False)["trials"] == 2


def test_a_searched_trial_is_run_without_its_search() -> None:
    document = {
        "overrides": [
            "search=tpe",
            "search.trials=9",
            "lr=0.1",
            "+a.b=1",
            "hydra/launcher=basic",
            "lineage.strict=true",
        ]
    }
    assert reproduce._own(document) == ["lr=0.1", "+a.b=1"]
