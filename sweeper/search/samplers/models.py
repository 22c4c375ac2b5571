"""The models that propose: Optuna's samplers, each asked as a function of the memory.

Guarantees: a new Optuna sampler with a seed of its own for every ask, so that no random state outlives one; torch is
imported by `gp` alone, in its first proposal after the start-up. No setting of a user's logging is changed: only
Optuna's storages and Gaussian process are made to keep quiet.

How each takes in what happened (tests/search/test_samplers.py):

| | finished | pruned | not finite | failed | running | refused | repeated |
|---|---|---|---|---|---|---|---|
| tpe | value | below all finished, the later and better first | worst | nothing | bad (constant liar) | bad | bad |
| gp | value | its last score, at best the worst finished | worst | nothing | pending (qLogEI) | constraint | nothing |
| nsga2 | value | likewise | worst | nothing | nothing | nothing | nothing |

`random` and `qmc` do not learn. With several objectives a pruned candidate is the worst in each: it was cheap because
it was ended. TPE takes a refused point as one that is pending for ever: bad, and neither a start-up point nor one more
in the count that the share of good ones is taken of.
"""

# ruff: noqa: ARG002 (methods that Optuna calls with more than these need)
from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeper.search.samplers.memory import Entry, Memory, Model, derived
from sweeper.search.samplers.space import Axis, Codes, Space
from sweeper.search.stats import mean

if TYPE_CHECKING:
    from optuna.study import Study

PATIENCE = 50
GP_PATIENCE = 10
"""A Gaussian process needs a tenth of a second and more for a proposal."""
GP_REFUSED = 64
"""So many refused points, the newest, are in the constraint's model: fitting is cubic in their number."""

logging.getLogger("optuna.storages").setLevel(logging.WARNING)  # they announce every study
logging.getLogger("optuna._gp").setLevel(logging.ERROR)  # it recommends another package for speed


def make(kind: str, space: Space, seed: int, modes: Sequence[str], options: Mapping[str, Any]) -> Model:
    """The model of a kind. Raises ValueError for what Optuna refuses as a range or an option."""
    ranges = {name: distribution(axis) for name, axis in space.axes.items()}
    startup, population = int(options.get("startup", 10)), int(options.get("population", 20))
    if startup < 0 or population < 2:
        raise ValueError(f"startup is 0 or more and population 2 or more, not {startup} and {population}")
    match kind:
        case "random":
            return Independent(ranges, seed, modes)
        case "qmc":
            return QuasiRandom(ranges, seed, modes)
        case "tpe":
            return Parzen(ranges, seed, modes, startup)
        case "gp":
            return Process(ranges, seed, modes, startup)
        case "nsga2":
            return Genetic(ranges, seed, modes, population)
    raise ValueError(f"Optuna has no sampler {kind!r} here")


def distribution(axis: Axis) -> BaseDistribution:
    """What a model knows of an axis: ranked values are whole numbers, unordered ones categories."""
    dim = axis.dim
    if axis.choices is not None:
        n = len(axis.choices)
        return IntDistribution(0, n - 1) if axis.ranked else CategoricalDistribution(range(n))
    if dim.integer:
        return IntDistribution(math.ceil(dim.low), math.floor(dim.high), log=dim.log)
    return FloatDistribution(dim.low, dim.high, log=dim.log)


class _Base:
    """A throw-away study for an ask; nothing is learned."""

    patience: int | None = PATIENCE

    def __init__(self, ranges: Mapping[str, BaseDistribution], seed: int, modes: Sequence[str]) -> None:
        self._ranges, self._seed = dict(ranges), seed
        self._directions = [StudyDirection.MAXIMIZE if m == "max" else StudyDirection.MINIMIZE for m in modes]
        self._searched = {name: r for name, r in self._ranges.items() if not r.single()}
        """A range of one value is never the model's to choose."""

    def added(self, entry: Entry) -> None:
        """Nothing is kept."""

    def decided(self, entry: Entry) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Nothing is kept."""

    def _study(self) -> Study:
        return optuna.create_study(storage=InMemoryStorage(), study_name="arm", directions=self._directions)

    def _asked(self, study: Study, sampler: optuna.samplers.BaseSampler) -> Codes:
        study.sampler = sampler
        return study.ask(self._ranges).params

    def _trial(self, entry: Entry, state: TrialState, **more: Any) -> FrozenTrial:
        seen = {name: entry.codes[name] for name in self._ranges}
        trial = create_trial(state=state, params=seen, distributions=self._ranges, **more)
        trial.number = entry.number
        return trial

    @property
    def _worst(self) -> list[float]:
        return [-math.inf if d == StudyDirection.MAXIMIZE else math.inf for d in self._directions]

    def _results(self, memory: Memory) -> dict[int, list[float]]:
        """Number -> values, all finite, of what is decided and says something; a function of the set alone.

        The worst of an objective is the worst that a finished candidate had.
        """
        finished = [e.values for e in memory if e.state == "finished" and not e.broken]
        maxima = [d == StudyDirection.MAXIMIZE for d in self._directions]
        worst = [(min if up else max)((values[i] for values in finished), default=0.0) for i, up in enumerate(maxima)]
        out: dict[int, list[float]] = {}
        for entry in memory:
            if entry.state == "finished":
                out[entry.number] = worst if entry.broken else list(entry.values)
            elif entry.state == "pruned":
                last = entry.last
                if len(worst) > 1 or last is None or not math.isfinite(last[1]):
                    out[entry.number] = worst
                elif finished:
                    out[entry.number] = [(min if maxima[0] else max)(last[1], worst[0])]
                else:
                    out[entry.number] = [last[1]]
        return out


class Independent(_Base):
    """Every dim drawn on its own, on its scale."""

    def propose(self, memory: Memory) -> Codes:
        """A function of the seed and the number."""
        return self._asked(self._study(), RandomSampler(seed=derived(self._seed, len(memory))))


class _Sobol(QMCSampler):
    def __init__(self, searched: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False)
        self._ours = dict(searched)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._ours)


class QuasiRandom(_Base):
    """A scrambled Sobol sequence: number n of the study is point n of the sequence."""

    def __init__(self, ranges: Mapping[str, BaseDistribution], seed: int, modes: Sequence[str]) -> None:
        super().__init__(ranges, seed, modes)
        with warnings.catch_warnings():  # QMCSampler says that it is experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._sobol = _Sobol(self._searched, derived(seed, "sobol"))
        # Optuna keeps the place in the sequence as the one attribute of the study; its name has a hash of the space.
        storage = InMemoryStorage()
        study = storage.create_new_study(self._directions, "arm")
        self._asked(optuna.load_study(study_name="arm", storage=storage), self._sobol)
        self._place = next(iter(storage.get_study_system_attrs(study)), None)

    def propose(self, memory: Memory) -> Codes:
        """A function of the seed and the number."""
        storage = InMemoryStorage()
        study = storage.create_new_study(self._directions, "arm")
        if self._place is not None:
            storage.set_study_system_attr(study, self._place, len(memory) - 1)  # the last place that was taken
        return self._asked(optuna.load_study(study_name="arm", storage=storage), self._sobol)


class _Tpe(TPESampler):
    def __init__(self, searched: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._ours = dict(searched)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # Optuna's default: all dims together with one objective, each on its own with several. The space is known, so
        # that it need not be looked for in every trial.
        return dict(self._ours) if len(study.directions) == 1 else {}


class Parzen(_Base):
    """TPE, multivariate, with the constant liar: many candidates are out at a time."""

    def __init__(self, ranges: Mapping[str, BaseDistribution], seed: int, modes: Sequence[str], startup: int) -> None:
        super().__init__(ranges, seed, modes)
        self._startup = startup
        self.reset()

    def reset(self) -> None:
        self._storage = InMemoryStorage()
        self._id = self._storage.create_new_study(self._directions, "arm")
        self._kept = optuna.load_study(study_name="arm", storage=self._storage)
        self._count = 0

    def propose(self, memory: Memory) -> Codes:
        """Leaves the proposal in the study, running, as `added` would."""
        self._count += 1
        sampler = _Tpe(
            self._searched, seed=derived(self._seed, len(memory)), n_startup_trials=self._startup, constant_liar=True
        )
        return self._asked(self._kept, sampler)

    def added(self, entry: Entry) -> None:
        if entry.number >= self._count:
            self._count += 1
            state, more = self._end(entry)
            self._storage.create_new_trial(self._id, self._trial(entry, state, **more))

    def decided(self, entry: Entry) -> None:
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, entry.number)
        state, more = self._end(entry)
        for step, score in more.get("intermediate_values", {}).items():
            self._storage.set_trial_intermediate_value(trial, step, score)
        self._storage.set_trial_state_values(trial, state, more.get("values"))

    def _end(self, entry: Entry) -> tuple[TrialState, dict[str, Any]]:
        several = len(self._directions) > 1
        match entry.state:
            case "finished" if not entry.broken:
                return TrialState.COMPLETE, {"values": list(entry.values)}
            case "finished" if not several:
                return TrialState.COMPLETE, {"values": self._worst}
            case "finished":
                return TrialState.PRUNED, {}  # below every finished one; an infinite volume is no volume
            case "pruned":
                last = None if several else entry.last  # Optuna has intermediate values for one objective only
                return TrialState.PRUNED, {"intermediate_values": dict([last])} if last else {}
            case "failed":
                return TrialState.FAIL, {}
        return TrialState.RUNNING, {}


class _Gp(GPSampler):
    def __init__(self, searched: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._ours = dict(searched)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._ours)


class Process(_Base):
    """A Gaussian process. Its study is made anew for every ask: next to fitting, that is nothing."""

    patience: int | None = GP_PATIENCE

    def __init__(self, ranges: Mapping[str, BaseDistribution], seed: int, modes: Sequence[str], startup: int) -> None:
        super().__init__(ranges, seed, modes)
        self._startup = max(1, startup)

    def propose(self, memory: Memory) -> Codes:
        """A function of the seed and the memory."""
        results = self._results(memory)
        refused = [e.number for e in memory if e.state == "refused"][-GP_REFUSED:]
        study, startup = self._study(), self._startup
        constrained = bool(refused) and len(results) >= startup
        if constrained:
            # A refused point has no values: it says nothing about the objectives (their mean) and all about the
            # constraint.
            middle = [mean(column) for column in zip(*results.values(), strict=True)]
            results |= dict.fromkeys(refused, middle)
        for entry in memory:
            values = results.get(entry.number)
            if values is not None:
                constraints = {"can run": 1.0 if entry.state == "refused" else -1.0} if constrained else None
                trial = self._trial(entry, TrialState.COMPLETE, values=values, constraints=constraints)
                study.add_trial(trial)
            elif entry.state == "running":
                study.add_trial(self._trial(entry, TrialState.RUNNING))
        if len(results) >= startup:
            import torch

            # The matrices are small: more threads cost more than they bring, and would compete with the trials.
            torch.set_num_threads(1)
        seed = derived(self._seed, len(memory))
        startup += len(refused) if constrained else 0
        sampler = _Gp(self._searched, seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        return self._asked(study, sampler)


class _Nsga2(NSGAIISampler):
    """NSGA-II with the generations as a function of what is decided, not of when each ask came.

    Optuna writes into a trial at its ask which generation it is of, and into the study who the parents are. Here a
    generation is `population` decided candidates in the order of their numbers, and its parents are selected from the
    one before and its parents, by Optuna.
    """

    def __init__(self, searched: Mapping[str, BaseDistribution], population: int, seed: int) -> None:
        super().__init__(population_size=population, seed=seed)
        self._ours = dict(searched)
        self.generations: list[list[FrozenTrial]] = []
        self.parents: list[list[FrozenTrial]] = [[]]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._ours)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return len(self.generations)

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return self.generations[generation]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return self.parents[generation]


class Genetic(_Base):
    """NSGA-II."""

    def __init__(
        self, ranges: Mapping[str, BaseDistribution], seed: int, modes: Sequence[str], population: int
    ) -> None:
        super().__init__(ranges, seed, modes)
        self._population = population
        self._known: list[tuple[list[tuple[int, tuple[float, ...]]], list[FrozenTrial], list[FrozenTrial]]] = []
        """Of each generation: what it is made of, its trials, the parents of the next. A memo, never a memory."""

    def propose(self, memory: Memory) -> Codes:
        """A function of the seed and the memory."""
        decided = [(number, tuple(values)) for number, values in self._results(memory).items()]
        whole = len(decided) // self._population
        made_of = [decided[i * self._population : (i + 1) * self._population] for i in range(whole)]
        same = 0
        while same < min(whole, len(self._known)) and self._known[same][0] == made_of[same]:
            same += 1
        del self._known[same:]
        study = self._study()
        sampler = _Nsga2(self._searched, self._population, derived(self._seed, len(memory)))
        for i in range(whole):
            if i == len(self._known):
                trials = [self._trial(memory[n], TrialState.COMPLETE, values=list(v)) for n, v in made_of[i]]
                sampler.generations.append(trials)
                self._known.append((made_of[i], trials, sampler.select_parent(study, i + 1)))
            else:
                sampler.generations.append(self._known[i][1])
            sampler.parents.append(self._known[i][2])
        return self._asked(study, sampler)

    def reset(self) -> None:
        self._known.clear()
