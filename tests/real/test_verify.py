"""Real trials from a fresh clone, verified from another folder; one flipped value or byte is found and named."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trained import STEPS, Place

pytestmark = pytest.mark.real

TRIALS = {"000": "grpo", "001": "ppo"}


def attempt(place: Place, name: str) -> Path:
    """The first attempt of `SWEEP/TRIAL`."""
    sweep, _, trial = name.partition("/")
    return place.folder / "runs" / sweep / "trials" / trial / "attempt-1"


@pytest.fixture(scope="module")
def verified(place: Place) -> dict[str, tuple[bytes, subprocess.CompletedProcess[str]]]:
    """Trial -> its record and what `verify` said of it; both are run at once, as two people would."""

    def verify(trial: str) -> tuple[bytes, subprocess.CompletedProcess[str]]:
        record = attempt(place, f"first/{trial}") / "lineage.json"
        before = record.read_bytes()
        return before, place.sweeper("verify", str(record), "--json", "--name", f"again-{trial}")

    with ThreadPoolExecutor() as pool:
        return dict(zip(TRIALS, pool.map(verify, TRIALS), strict=True))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_trial_is_the_same_to_the_last_bit_when_it_is_rebuilt_from_its_record(
    place: Place, verified: dict[str, tuple[bytes, subprocess.CompletedProcess[str]]], trial: str
) -> None:
    before, done = verified[trial]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = attempt(place, f"first/{trial}") / "lineage.json"
    assert f"algorithm={TRIALS[trial]}" in json.loads(before)["overrides"]
    report = json.loads(done.stdout)
    assert (report["verdict"], report["tier"]) == ("pass", "exact")
    assert report["steps"] == STEPS + 1 and report["values"] > 200, "step 0, the validation before training, and four"
    assert record.read_bytes() == before
    again = json.loads(Path(report["lineage"]).read_text())
    first = json.loads(before)
    assert again["fingerprint"] == first["fingerprint"]
    assert [p["relation"] for p in again["parents"]] == ["reproduces"]
    assert again["code"]["commit"] == first["code"]["commit"] and again["code"]["root"] != first["code"]["root"]
    assert again["code"]["patch"] == first["code"]["patch"] is not None, "the very same difference, captured again"
    assert not Path(again["code"]["root"]).exists(), "the checkout is gone"
    compared = place.sweeper("diff", str(record), report["lineage"])
    assert "they differ in placement\n" in compared.stdout, "nothing is probed again, and nothing else differs"
    assert "are the same to the last bit" in compared.stdout


def test_one_flipped_value_fails_and_is_named(place: Place, tmp_path: Path) -> None:
    """Judged against the other run that is there, so that nothing is trained again."""
    forged = tmp_path / "forged"
    shutil.copytree(attempt(place, "first/000"), forged)
    lines = [json.loads(line) for line in (forged / "metrics.jsonl").read_text().splitlines()]
    at = next(line for line in lines if line["step"] == 2 and "actor/entropy" in line["data"])
    at["data"]["actor/entropy"] += 1e-12
    (forged / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = place.sweeper("verify", "first/000", "--against", str(forged / "lineage.json"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step 2, actor/entropy" in done.stdout


@pytest.mark.long
def test_the_statistical_tier_trains_other_seeds_and_judges_the_score_by_their_spread(place: Place) -> None:
    done = place.sweeper("verify", "first/000", "--tier", "statistical", "--seeds", "3", "--json", "--name", "spread")
    report = json.loads(done.stdout)
    scores = [float(score) for score in report["scores"].values()]
    mean = statistics.fmean(scores)
    half = 4.302652729911275 * statistics.stdev(scores) * math.sqrt(1 + 1 / 3)  # the t of two degrees, two-sided 95%
    assert report["interval"] == pytest.approx([mean - half, mean + half])
    within = mean - half <= report["score"] <= mean + half
    assert (report["verdict"], done.returncode) == (("pass", 0) if within else ("fail", 1))
    assert report["score"] == json.loads((attempt(place, "first/000") / "lineage.json").read_text())["result"]["score"]
    trials = [name.split("/")[1] for name in report["scores"]]
    records = [attempt(place, f"spread/{trial}") / "lineage.json" for trial in trials]
    seeds = {json.loads(path.read_text())["seeds"]["seed"] for path in records}
    assert len(seeds) == 3 and 1 not in seeds, "none is the recorded run's own"


def test_one_flipped_byte_in_a_checkpoint_fails_and_is_named(place: Place) -> None:
    weights = next((attempt(place, "first/000").parent / "checkpoints").glob("global_step_2/actor/model_*.pt"))
    content = weights.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    weights.write_bytes(flipped)
    done = place.sweeper("verify", "first/000")
    weights.write_bytes(content)
    assert done.returncode == 1 and weights.name in done.stdout, done.stdout + done.stderr


def test_one_flipped_byte_in_data_fails_before_anything_is_run(place: Place, tmp_path: Path) -> None:
    record = json.loads((attempt(place, "first/001") / "lineage.json").read_text())
    train = next(row for row in record["inputs"] if row["role"] == "train")
    built = Path(train["path"]).parent
    cache = tmp_path / "cache"
    cache.mkdir()
    for other in built.parent.iterdir():
        if other.is_dir() and other != built and not other.name.startswith("."):
            (cache / other.name).symlink_to(other)
    shutil.copytree(built, cache / built.name)
    content = bytearray((cache / built.name / "train.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (cache / built.name / "train.parquet").write_bytes(content)
    done = place.sweeper("verify", "first/001", "--name", "never", SWEEPER_CACHE=str(cache))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "exact: inputs.train: " in done.stdout and train["sha256"] in done.stdout
    assert not (place.folder / "runs/never").exists()
