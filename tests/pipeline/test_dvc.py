"""The pipeline in DVC's hands as far as nothing is trained: staleness, altered files, remotes, wrong parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from checkout import Checkout

from sweeper.lineage import code

DATA = "pipeline/data/arithmetic-68a97ab4b7251b80"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the data is prepared."""
    place = tmp_path_factory.mktemp("dvc")
    made = Checkout.make(place / "checkout", place / "home")
    made.dvc("repro", "prepare")
    made.commit("prepared")
    return made


@pytest.fixture
def checkout(prepared: Checkout, tmp_path: Path) -> Checkout:
    """The same, to be altered."""
    shutil.copytree(prepared.path, tmp_path / "checkout", symlinks=True)
    return Checkout(tmp_path / "checkout", prepared.env)


def hashes(checkout: Checkout) -> dict[str, str]:
    """What dvc.lock says of the outs: path -> hash."""
    stages = yaml.safe_load((checkout.path / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_an_edit_of_conf_makes_stale_what_it_concerns_and_nothing_else(checkout: Checkout) -> None:
    def changed(name: str, before: str, after: str) -> set[str]:
        was = hashes(checkout)
        checkout.replace(name, before, after)
        said = checkout.dvc("repro", "prepare")
        assert "Running stage 'compose'" in said
        found = {Path(path).stem for path, value in hashes(checkout).items() if was[path] != value}
        assert ("Running stage 'prepare'" in said) == ("environment" in found)
        return found

    assert changed("conf/algorithm/grpo.yaml", "# GRPO:", "# GRPO, as published:") == set()
    assert changed("conf/algorithm/rloo.yaml", "kl_coef: 0.001", "kl_coef: 0.002") == set(), "not chosen"
    assert changed("conf/algorithm/grpo.yaml", "clip_ratio_high: 0.2", "clip_ratio_high: 0.28") == {"sweep"}
    # The model's warm-up takes its questions from the task's own training set.
    split = changed("conf/environment/arithmetic.yaml", "largest: 29", "largest: 28")
    assert split == {"environment", "model", "sweep", "data"}
    assert "didn't change" in checkout.dvc("repro", "prepare")


def test_a_committed_tree_stays_one_while_dvc_runs(checkout: Checkout) -> None:
    """Or `lineage.strict=true` would refuse every sweep of a pipeline: DVC writes dvc.lock before that stage."""
    checkout.replace("conf/algorithm/grpo.yaml", "clip_ratio_high: 0.2", "clip_ratio_high: 0.28")
    checkout.commit("other clipping")
    checkout.dvc("repro", "prepare")
    assert checkout.git("status", "--porcelain").split() == ["M", "dvc.lock"]
    assert not code.capture(checkout.path).dirty


def test_an_altered_data_file_is_noticed_and_made_good(checkout: Checkout) -> None:
    file = checkout.path / DATA / "test.parquet"
    before = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(before[:-1] + b"x")
    assert "modified" in checkout.dvc("status", "prepare")
    checkout.dvc("repro", "prepare")
    assert file.read_bytes() == before


def test_push_and_pull_by_a_folder(checkout: Checkout, tmp_path: Path) -> None:
    checkout.dvc("remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    assert "pushed" in checkout.dvc("push")
    shutil.rmtree(checkout.path / ".dvc" / "cache")
    shutil.rmtree(checkout.path / "pipeline" / "data")
    checkout.dvc("pull", "prepare")
    assert (checkout.path / DATA / "test.parquet").is_file()


def test_push_and_pull_by_s3(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dvc_s3", reason="dvc-s3 is of the development environment: make setup")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        import boto3

        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "by-the-environment-alone")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="a-bucket")
        checkout = Checkout(checkout.path, Checkout.environment(checkout.path.parent / "home"))
        checkout.dvc("remote", "add", "-d", "s3", "s3://a-bucket/sweeper")
        checkout.dvc("remote", "modify", "s3", "endpointurl", f"http://{host}:{port}")
        assert "pushed" in checkout.dvc("push")
        shutil.rmtree(checkout.path / ".dvc" / "cache")
        shutil.rmtree(checkout.path / "pipeline" / "data")
        checkout.dvc("pull", "prepare")
        assert (checkout.path / DATA / "test.parquet").is_file()
        written = [p for p in checkout.path.rglob("*") if p.is_file() and b"by-the-environment" in p.read_bytes()]
        assert not [p for p in written if p.name != "test_dvc.py" and ".git" not in p.parts], "a credential was written"
    finally:
        server.stop()


def test_a_remote_that_is_away_changes_nothing(checkout: Checkout, tmp_path: Path) -> None:
    file = tmp_path / "no-folder"
    file.write_text("")
    checkout.dvc("remote", "add", "--local", "-d", "away", str(file / "remote"))
    assert "ERROR" in checkout.dvc("push", code=None)
    shutil.rmtree(checkout.path / ".dvc" / "cache")
    shutil.rmtree(checkout.path / "pipeline" / "data")
    assert "ERROR" in checkout.dvc("pull", "prepare", code=None)
    checkout.dvc("repro", "prepare")  # made again
    assert (checkout.path / DATA / "test.parquet").is_file()


def test_a_tree_without_git(checkout: Checkout) -> None:
    """As from a release's archive."""
    shutil.rmtree(checkout.path / ".git")
    assert "is not a git repository" in checkout.dvc("repro", "prepare", code=None)
    checkout.dvc("config", "core.no_scm", "true")
    assert "up to date" in checkout.dvc("repro", "prepare")


def test_an_option_that_does_not_exist(checkout: Checkout) -> None:
    said = checkout.dvc("exp", "run", "-S", "algorithm=rlo", "prepare", code=None)
    assert "valid: dapo" in said and "algorithm=rloo" in said and "Traceback" not in said
    assert "foo" in checkout.dvc("exp", "run", "-S", "foo=1", code=None)


def test_params_diff(checkout: Checkout) -> None:
    checkout.replace("params.yaml", "algorithm: grpo", "algorithm: rloo")
    assert checkout.dvc("params", "diff").splitlines()[1].split() == ["params.yaml", "algorithm", "grpo", "rloo"]
    said = checkout.dvc("repro", "prepare")
    assert "algorithm=rloo (conf/pipeline: grpo)" in said and "python -m sweeper.pipeline params" in said
