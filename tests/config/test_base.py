"""The base of every trial is verl's own config, leaf by leaf, and nothing of ours hides a key of it."""

from __future__ import annotations

import importlib.util

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from sweeper.config import tree
from sweeper.config.hydra_app import initialized
from sweeper.engines.verl import base_config
from sweeper.errors import RequestError
from sweeper.trial.identity import OURS


@pytest.mark.parametrize("model_engine", base_config.FILES)
def test_it_is_what_verl_composes(model_engine: str) -> None:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(base_config.config_dir()), version_base=None):
            verl = OmegaConf.to_container(compose("ppo_trainer", overrides=[f"model_engine={model_engine}"]))
    finally:
        GlobalHydra.instance().clear()
    assert base_config.load(model_engine) == verl


def test_no_name_of_ours_is_one_of_verls() -> None:
    theirs = {root for engine in base_config.FILES for root in base_config.load(engine)}
    assert not theirs & set(OURS)


@pytest.mark.parametrize("model_engine", base_config.FILES)
def test_a_trial_has_every_key_of_verl_and_a_closed_set_of_ours(model_engine: str) -> None:
    with initialized():
        trial = OmegaConf.to_container(compose("config", overrides=[f"model_engine={model_engine}"]))
    assert isinstance(trial, dict)
    absent = object()
    keys = [key for key, value in tree.leaves(base_config.load(model_engine)) if not key.rpartition(".")[2].isdigit()]
    assert len(keys) > 700
    assert not [key for key in keys if tree.get(trial, key, absent) is absent]
    assert set(trial) == set(OURS) | set(base_config.load(model_engine))


def test_without_verl_the_problem_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"not installed[\s\S]*pip install"):
        base_config.config_dir()


def test_another_release_of_verl_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(base_config, "config_dir", lambda: tmp_path)
    base_config.load.cache_clear()
    try:
        with pytest.raises(RequestError, match=r"verl==0\.9\.1"):
            base_config.load("dp")
    finally:
        base_config.load.cache_clear()
