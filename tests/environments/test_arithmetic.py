"""The default task: disjoint sets, verl's schema, an exact reward."""

import importlib.util
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from sweeper.environments import arithmetic

SPEC = arithmetic.spec({})


def test_the_three_sets_share_no_question_and_leave_none_out():
    sets = {split: set(arithmetic.pairs(SPEC, split)) for split in ("train", "val", "test")}
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 30 * 30
    assert min(len(sets["val"]), len(sets["test"])) >= 128  # enough for a score that is not noise


def test_a_pair_stays_in_its_set_when_the_range_grows():
    small, large = arithmetic.spec({"largest": 9}), arithmetic.spec({"largest": 99})
    assert not set(arithmetic.pairs(small, "train")) & set(arithmetic.pairs(large, "val"))
    assert not set(arithmetic.pairs(small, "val")) & set(arithmetic.pairs(large, "train"))


def test_the_files_hold_verls_schema(tmp_path):
    folder = arithmetic.build(arithmetic.path(tmp_path, SPEC), SPEC)
    assert sorted(p.name for p in folder.iterdir()) == ["reward.py", "test.parquet", "train.parquet", "val.parquet"]
    for split, name in (("train", arithmetic.TRAIN), ("val", arithmetic.VAL), ("test", arithmetic.TEST)):
        rows = pq.read_table(folder / name).to_pylist()
        assert [row["extra_info"] for row in rows] == [{"split": split, "index": i} for i in range(len(rows))]
        for row in rows:
            (message,) = row["prompt"]
            a, b = message["content"].removeprefix("What is ").removesuffix("?").split("+")
            assert message["role"] == "user"
            assert row["reward_model"] == {"style": "rule", "ground_truth": str(int(a) + int(b))}
            assert row["data_source"] == arithmetic.DATA_SOURCE


@pytest.mark.parametrize(
    ("response", "score"),
    [("12", 1.0), (" 12\n", 1.0), ("=12", 0.0), ("1", 0.0), ("121", 0.0), ("", 0.0), ("12 or 13", 0.0)],
)
def test_the_reward_is_exact(tmp_path, response, score):
    folder = arithmetic.build(arithmetic.path(tmp_path, SPEC), SPEC)
    loaded = importlib.util.spec_from_file_location("reward", folder / arithmetic.REWARD)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    assert module.compute_score(arithmetic.DATA_SOURCE, response, "12", {"index": 1}, num_turns=2) == {
        "score": score,
        "acc": score,
    }


def test_the_folder_is_named_by_what_is_in_it(tmp_path):
    assert arithmetic.path(tmp_path, SPEC) == arithmetic.path(tmp_path, arithmetic.spec({"largest": 29}))
    assert arithmetic.path(tmp_path, SPEC) != arithmetic.path(tmp_path, arithmetic.spec({"largest": 28}))


def test_a_cache_of_before_stays_valid(tmp_path):
    assert arithmetic.path(tmp_path, SPEC).name == "arithmetic-68a97ab4b7251b80"


def test_builders_at_the_same_time_leave_one_whole_folder(tmp_path):
    folder = arithmetic.path(tmp_path, SPEC)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(arithmetic.build, [(folder, SPEC)] * 4)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [folder.name]
    assert len(list(folder.iterdir())) == 4


def test_builders_at_the_same_time_do_the_work_once(tmp_path, monkeypatch):
    made, write = [], arithmetic._write

    def slow(folder, built):
        made.append(folder)
        time.sleep(0.2)
        write(folder, built)

    monkeypatch.setattr(arithmetic, "_write", slow)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: arithmetic.build(arithmetic.path(tmp_path, SPEC), SPEC), range(3)))
    assert len(made) == 1 and len(list(folders[0].iterdir())) == 4


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"largest": 0}, "environment.largest"),
        ({"largest": "many"}, "environment.largest"),
        ({"held_out": 0.9}, "environment.held_out"),
        ({"seed": 1.5}, "environment.seed"),
        ({"langest": 9}, "environment.langest"),
    ],
)
def test_a_wrong_parameter_is_named(given, key):
    (problem,) = arithmetic.check({"name": "arithmetic", "kind": "arithmetic", **given})
    assert problem.key == key


def test_the_defaults_are_valid():
    assert arithmetic.check({"name": "arithmetic", "kind": "arithmetic"}) == []
