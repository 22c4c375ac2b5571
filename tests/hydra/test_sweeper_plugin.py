"""Our sweeper as Hydra sees it, with the helpers that Hydra gives its plugins' authors where they apply.

They apply: discovery and instantiation through `Plugins`, the `hydra_sweep_runner` fixture, `run_python_script` (which
turns every warning into an error), and of `LauncherTestSuite` the test of a swept `hydra.*` key.

They do not apply, and what takes their place: the other tests of `LauncherTestSuite`, `BatchedSweeperTestSuite` and
`IntegrationTestSuite` assert on what a *launcher* returns for each batch of jobs of Hydra's own test app: its configs,
working directories, log files and `multirun.yaml`. Our sweeper has no batches, starts no Hydra jobs and ends the
process with the request's exit code, on purpose (see its module). `ConfigSourceTestSuite` wants a source that
serves a given tree of files; ours serves one group from the installed verl (tests/config/test_base.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from hydra.test_utils.test_utils import TSweepRunner, assert_regex_match, run_python_script
from hydra.types import HydraContext
from setuptools import find_namespace_packages

from sweeper import app
from sweeper.config import resolvers
from sweeper.config.grammar import parse
from sweeper.config.hydra_app import initialized
from sweeper.config.main import main
from sweeper.config.space import read
from sweeper.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """Plugins are imported once a process: before the first state that is restored after a test."""
    Plugins.instance()


def names(kind: type) -> list[str]:
    return [found.__name__ for found in Plugins.instance().discover(kind)]


class TestDiscovery:
    def test_hydra_finds_our_plugins(self) -> None:
        assert "SweeperPlugin" in names(Sweeper)
        assert "VerlConfigSource" in names(ConfigSource)
        assert "VerlSearchPath" in names(SearchPathPlugin)

    def test_they_live_in_the_namespace_that_all_plugins_share(self) -> None:
        assert not (ROOT / "hydra_plugins" / "__init__.py").exists()
        import hydra_plugins.hydra_ray_launcher  # another distribution's, found beside ours

        assert len(list(hydra_plugins.__path__)) >= 2

    def test_they_are_packaged(self) -> None:
        assert "hydra_plugins.sweeper_plugin" in find_namespace_packages(
            str(ROOT), include=["sweeper*", "hydra_plugins*"]
        )

    def test_hydra_starts_without_a_warning_and_shows_our_settings(self) -> None:
        out, _ = run_python_script([str(ROOT / "sweep.py"), "--cfg", "hydra", "--package", "hydra.sweeper"])
        expected = r"""# @package hydra.sweeper
_target_: hydra_plugins\.sweeper_plugin\.sweeper\.SweeperPlugin
params: \{\}"""
        assert_regex_match(expected, out)

    def test_hydra_makes_it_from_its_config(self) -> None:
        with initialized():
            loader = GlobalHydra.instance().config_loader()
            config = compose("config", return_hydra_config=True)
            config.hydra.runtime.choices["hydra/launcher"] = "basic"
            made = Plugins.instance().instantiate_sweeper(
                config=config,
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
                task_function=lambda _: None,
            )
        assert isinstance(made, Sweeper)
        assert type(made).__name__ == "SweeperPlugin"

    @pytest.mark.parametrize("experiment", EXPERIMENTS)
    def test_our_examples_compose_with_it(self, experiment: str) -> None:
        with initialized():
            config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
        assert config.hydra.sweeper._target_.endswith("SweeperPlugin")


class Refusal(Exception):
    """Raised by a task function that must not be called."""


def never(_: Any) -> None:
    raise Refusal


class TestMultirun:
    def run(self, runner: TSweepRunner, folder: Path, *overrides: str) -> int:
        resolvers.register()
        sweep = runner(
            calling_file=str(ROOT / "sweep.py"),
            calling_module=None,
            task_function=never,
            config_path="conf",
            config_name="config",
            overrides=list(overrides),
            temp_dir=folder,
        )
        with pytest.raises(SystemExit) as ended, sweep:
            pass
        return int(str(ended.value.code))

    def test_the_whole_request_arrives_at_once(
        self, hydra_sweep_runner: TSweepRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        overrides = ["algorithm=grpo,ppo", "lr=1e-6,1e-5", "cluster.device=cpu", "plan=true"]
        assert self.run(hydra_sweep_runner, tmp_path, *overrides) == 0
        shown = capsys.readouterr().out
        assert "4 trials" in shown
        assert shown.count("algorithm=ppo") == 2
        assert not list(tmp_path.iterdir()), "nothing of Hydra's is left behind"

    def test_a_wrong_request_is_explained_and_ends_with_2(
        self, hydra_sweep_runner: TSweepRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(hydra_sweep_runner, tmp_path, "tp=3", "cluster.device=cpu") == 2
        assert "tp: 1" in capsys.readouterr().err

    def test_a_launcher_is_refused_where_it_would_be_ignored(
        self, hydra_sweep_runner: TSweepRunner, tmp_path: Path
    ) -> None:
        resolvers.register()
        sweep = hydra_sweep_runner(
            calling_file=str(ROOT / "sweep.py"),
            calling_module=None,
            task_function=never,
            config_path="conf",
            config_name="config",
            overrides=["hydra/launcher=ray", "plan=true"],
            temp_dir=tmp_path,
        )
        with pytest.raises(RequestError, match="hydra/sweeper=basic hydra/launcher=ray"), sweep:
            pass

    def test_hydras_own_keys_cannot_be_swept(self, hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
        LauncherTestSuite().test_not_sweeping_hydra_overrides(
            hydra_sweep_runner, "basic", ["hydra/sweeper=sweeper"], tmp_path
        )


@pytest.mark.parametrize(
    "request_",
    [
        ["algorithm=grpo,ppo", "updates_per_step=1,2,4", "lr=1e-6"],
        ["lr=1e-6,1e-5", "+data.extra='a,b'", "algorithm=glob(r*)"],
        ["kl=0", "lr=1e-6,1e-5", "kl=0.1"],
    ],
)
def test_comma_lists_mean_what_they_mean_to_hydras_sweeper(request_: list[str]) -> None:
    with initialized():
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(request_)
        (theirs,) = BasicSweeper.split_arguments(parsed, None)
        both = [list(arm.overrides) for arm in read(request_).arms], theirs
        ours, hydras = [[[(o.get_key_element(), o.value()) for o in map(parse, job)] for job in jobs] for jobs in both]
    assert ours == hydras


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("algorithm=gr", {"algorithm=grpo"}),
        ("hydra/sweeper=sw", {"hydra/sweeper=sweeper"}),
        (
            "model_engine=",
            {"model_engine=dp", "model_engine=megatron", "model_engine=torchtitan", "model_engine=veomni"},
        ),
        ("actor_rollout_ref.actor.optim.lr_warmup_steps_r", {"actor_rollout_ref.actor.optim.lr_warmup_steps_ratio="}),
    ],
)
def test_the_shell_completes_our_groups_and_verls_keys(line: str, offered: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), "--shell-completion", "query=bash"],
        env={**os.environ, "COMP_LINE": f"sweep.py {line}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == offered


class TestHydrasOwnSweeper:
    """`hydra/sweeper=basic`: every Hydra job is a request of one trial. What a request does is replaced here."""

    def run(self, monkeypatch: pytest.MonkeyPatch, codes: list[int], *overrides: str) -> tuple[int, list[list[str]]]:
        asked: list[list[str]] = []

        def fake(request_: list[str]) -> int:
            asked.append(list(request_))
            return codes[len(asked) - 1]

        monkeypatch.setattr(app, "run", fake)
        return main(["sweep.py", "-m", "hydra/sweeper=basic", *overrides]), asked

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_each_job_is_a_sweep_with_a_name_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code, asked = self.run(monkeypatch, [0, 0], "algorithm=grpo,ppo", "name=mine")
        assert code == 0
        assert asked == [["algorithm=grpo", "name='mine-000'"], ["algorithm=ppo", "name='mine-001'"]]

    def test_jobs_without_a_name_share_a_stem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, first = self.run(monkeypatch, [0, 0], "seed=1,2")
        _, second = self.run(monkeypatch, [0], "seed=3")
        found = [lines[-1].removeprefix("name='").removesuffix("'").rsplit("-", 1) for lines in [*first, *second]]
        assert found[0][0] == found[1][0] != found[2][0]
        assert [number for _, number in found] == ["000", "001", "000"]

    @pytest.mark.parametrize("code", [1, 2])
    def test_the_exit_code_of_a_job_that_failed_is_that_of_the_request(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
    ) -> None:
        ended, asked = self.run(monkeypatch, [0, code, 0], "seed=1,2,3")
        said = capsys.readouterr().err
        assert ended == code
        assert len(asked) == 3, "the others go on"
        assert f"job 1 ended with exit code {code}: seed=2" in said
        assert "Traceback" not in said

    def test_what_an_experiment_brings_along_is_not_run_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, asked = self.run(monkeypatch, [0] * 9, "experiment=grpo_vs_ppo")
        with initialized():
            planned = read(["experiment=grpo_vs_ppo"]).arms
            for_each_job = [read(lines).arms for lines in asked]
        assert [len(found) for found in for_each_job] == [1] * len(planned)

    @pytest.mark.parametrize("line", ["lr=interval(1e-5,1e-3)", "lr=tag(log,interval(1e-5,1e-3))"])
    def test_an_interval_is_refused_with_what_to_type(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
    ) -> None:
        code, asked = self.run(monkeypatch, [], "algorithm=grpo,ppo", line, "kl=choice(0,0.1)")
        assert (code, asked) == (2, [])
        said = capsys.readouterr().err
        assert f"{line}: hydra/sweeper=basic searches no interval" in said
        assert f"try:   search=tpe '{line}', without hydra/sweeper=basic" in said
        assert "kl=" not in said and "Traceback" not in said

    def test_ctrl_c_shows_no_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(_: list[str]) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(app, "run", interrupted)
        assert main(["sweep.py", "hydra/sweeper=basic"]) == 1
        assert "Traceback" not in capsys.readouterr().err
