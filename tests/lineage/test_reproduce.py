"""A run rebuilt from its record, up to where it would be trained: a real repository with changed and untracked files, a
real record made by its code. Its metrics are written by hand: nothing is trained (tests/real/test_verify.py does)."""

from __future__ import annotations

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
from sweeper.cli.main import main
from sweeper.errors import RequestError
from sweeper.lineage import inputs, reproduce
from sweeper.lineage.find import Found, find
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
    typed += ["data.max_prompt_length=64", "data.max_response_length=8", "lr=1e-4", "name=first", "max_concurrent=1"]
    done = subprocess.run(
        [sys.executable, "-P", str(MAKE), str(folder / "runs"), *typed],
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

    def test_a_trial_that_was_forked_in_any_of_its_attempts(self, tmp_path: Path) -> None:
        fake_run(tmp_path, "s/001", parents=[fake_parent("forked-from", trial="004")])
        fake_run(tmp_path, "s/001", attempt=2, parents=[fake_parent("previous-attempt", trial="001")])
        for named in ("s/001/1", "s/001/2"):
            said = refusal(find(named, tmp_path))
            assert "s/004 at step 4" in said and "population based training" in said


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
