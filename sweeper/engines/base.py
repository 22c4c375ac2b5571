"""What an engine is: it turns a trial's config into a job, reads its progress and explains its failures.

Guarantees of every engine: it imports neither torch nor the trainer it stands for (those run in the attempt's own
processes), it names every problem of a config before anything is spent, and it never changes what a user set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper.errors import Problem

Config = dict[str, Any]
"""A fully resolved config: plain dicts, lists, strings, numbers, booleans and None."""


@dataclass(frozen=True, slots=True)
class Gang:
    """All that an attempt holds while it runs, reserved atomically and released as one."""

    nodes: int
    gpus_per_node: int
    """Ranks per node. On a CPU cluster a rank stands where a GPU would."""
    cpus_per_node: int = 1

    @property
    def gpus(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class Job:
    """What a cluster runs for one attempt. Holds no secret: those pass by name through `inherit`."""

    argv: tuple[str, ...]
    """The trainer's command; it runs once, on the first node, in the attempt's folder."""
    env: Mapping[str, str]
    """Set in every process of the attempt."""
    inherit: tuple[str, ...]
    """Names of variables that are passed on when they are set (tokens, proxies); never written anywhere."""
    files: Mapping[str, str]
    """Relative path -> text, written into the attempt's folder before the start."""
    gang: Gang
    python: str
    """The engine's interpreter."""
    metrics: str
    """Relative path of the JSONL file that the trainer appends metrics to."""
    total_steps: int
    ray: bool = True
    """Whether the attempt needs a Ray cluster of its own."""
    ray_cpus_per_node: int = 16
    """Logical CPUs that the attempt's Ray cluster offers (verl asks for many more actors than cores)."""
    object_store_bytes: int = 200_000_000
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports once, for the trainer and every Ray worker; empty: no fork server."""
    image: str | None = None
    """Container image that holds `python` and the trainer; all that the attempt consists of runs in it. None: on the
    node as it is."""
    fork_argv: tuple[str, ...] = ()
    """Appended to argv when the fork server is used; `{python}` stands for its client executable."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one line of a trainer's metrics says, in words shared by all engines."""

    step: int
    metrics: Mapping[str, float]
    """Every numeric value of the line under the trainer's own names."""
    reward: float | None = None
    """Mean training reward of the step."""
    score: float | None = None
    """Validation score, where this line has one."""
    tokens_per_s: float | None = None
    """Over all ranks."""
    step_s: float | None = None
    """Seconds the step took."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """What health rules read, under names shared by all engines, those that the line has: `loss`, `grad_norm`,
    `entropy` (nats a token), `kl` (to the policy before the update, a token), `kl_ref` (to the reference policy, nats a
    token, where a KL term is on), `reward_spread` (max - min over the responses of a step), `saturated` (share of them
    that are cut at the length limit), `mismatch` (mean absolute difference of the probabilities by rollout and
    trainer).
    What `sweeper diagnose` reads beside them: `rollout_s` (seconds of the step that went into responses),
    `response_tokens` (mean of the step), `straggler` (slowest response's time over the mean), `imbalance` (share of the
    ranks' time that is spent waiting for the one with the most tokens)."""


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """Where an attempt lives. All absolute."""

    folder: Path
    """The attempt's own folder."""
    checkpoints: Path
    """Shared by the attempts of one trial, so that a later one resumes from an earlier one's checkpoint."""


@dataclass(frozen=True, slots=True)
class Workload:
    """How much a trial computes: what a plan shows and a cost is estimated from."""

    steps: int
    """Training steps."""
    responses_per_step: int
    """Prompts times responses per prompt."""
    max_prompt: int
    """Tokens."""
    max_response: int
    """Tokens."""
    forward_passes: int
    """Log-prob passes per step beside training: old policy, reference."""
    critic: bool
    params: int | None
    """Parameters of the policy; None when the model's architecture is not known."""
    memory_gib: float | None = None
    """Estimated peak per rank; None when it cannot be estimated."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is whole."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Sound:
    """The checkpoint to go on from, its content compared with what was written."""

    saved: Saved | None
    said: tuple[str, ...] = ()
    """What was found corrupted on the way and where it is now, a line each."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The exception that a failure comes from."""

    type: str
    """Without its module: `ValueError`."""
    message: str
    place: str
    """`FILE:LINE in FUNCTION`, the innermost of the user's own code, else of the trainer; empty if none was told."""
    line: int
    """Of the log that was given, from 1."""
    part: str = ""
    """`reward`: it was raised while a response was judged; `data`: while the data was read; empty: elsewhere."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    kind: str
    """`preempted`, `node-lost`, `out-of-memory`, `stalled`, `nan`, `data`, `disk`, `launch` or `bug`."""
    signature: str
    """Equal for the same failure on other data, steps, ranks and folders: what identical failures are counted by."""
    lines: tuple[str, ...]
    """The lines of the log that say why, most telling first; at most a dozen."""
    raised: Raised | None = None
    """The exception that it comes from, where the log has one that is no consequence of something else."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that the placement of a trial can have otherwise, and what it can be set to."""

    name: str
    """In words: `micro-batches`."""
    settings: tuple[Mapping[str, Any], ...]
    """Engine key -> value, first the config's own. Every one can run. One: there is nothing to choose."""
    ordered: bool = False
    """Each goes further in the same direction than the one before: where one is no faster, those after it are not
    either."""


class Engine(Protocol):
    """A training system that a trial can be a run of."""

    name: str
    steps_key: str
    """The engine's key for how many steps a trial trains."""
    validation_key: str
    """The engine's key for every how many steps it is validated; 0 or less: never."""
    saving_key: str
    """The engine's key for every how many steps a checkpoint is written; 0 or less: never."""

    def bind(self, config: Config, explicit: Mapping[str, Any], shape: Shape) -> list[Problem]:
        """Write `lr`, `kl`, `tp`, `seed`, data, model and cluster into the engine's own keys, in place.

        `explicit` holds what the user typed (key -> value): an engine key that was typed wins over a default of
        ours; typing both to different values is a problem.
        """
        ...

    def check(self, config: Config, shape: Shape) -> list[Problem]:
        """Every reason why this config cannot run on that cluster shape; empty when it can."""
        ...

    def gang(self, config: Config) -> Gang:
        """The nodes and ranks that the config asks for."""
        ...

    def workload(self, config: Config, shape: Shape) -> Workload:
        """How much the config asks the engine to compute, and the memory that takes on that shape."""
        ...

    def job(self, config: Config, paths: AttemptPaths) -> Job:
        """The job of one attempt."""
        ...

    def progress(self, line: Mapping[str, Any], config: Config) -> Progress | None:
        """One parsed line of the metrics file; None when it carries no step."""
        ...

    def exact(self, config: Mapping[str, Any]) -> bool:
        """Whether two runs of that bound config are promised to be the same to the last bit."""
        ...

    def of_machine(self, metric: str) -> bool:
        """Whether a metric measures the machine (time, memory, throughput). Every other one is the same to the last bit
        in two runs of the same deterministic config: that is what an exact reproduction is judged by."""
        ...

    def failure(self, log: str, reason: str, code: int | None, detail: str) -> Failure:
        """Why an attempt failed, from its log and how the cluster says it ended (clusters.base.Exit)."""
        ...

    def hung_at(self, log: str) -> list[str]:
        """Where the processes of a stalled attempt were, from the stacks that `Attempt.stop(dump=True)` left in its
        log; at most a dozen lines, the innermost frame outside the standard library first of each process."""
        ...

    def remedies(self, cause: str, config: Mapping[str, Any]) -> list[str]:
        """Override lines that help against a cause (the words of sweeper/diagnose/causes.py) in this config, likeliest
        first; empty: none that this engine has."""
        ...

    def relieve(self, config: Config, times: int) -> tuple[Config, str] | None:
        """The config with less memory needed, for the attempt after the `times`-th (from 1) that ran out of it, and
        what was changed, in one line; placement only, so that its fingerprint stays. None: there is nothing left."""
        ...

    def knobs(self, config: Config) -> dict[str, float]:
        """What `lr`, `kl` (0: no KL term) and `tp` are in a bound config, whoever set them; one that it has not is not
        there."""
        ...

    def emits(self, config: Config) -> list[str]:
        """Names of the metrics that a trial of this config is known to write, sorted; `*` stands for any one part.
        Those of single validation sets are spelled out where the data is known."""
        ...

    def validates(self, config: Config) -> list[int]:
        """Steps at which a trial of this config has a score, in order; 0 is before training. Empty: it never has one,
        or the number of its steps is not known."""
        ...

    def saves(self, config: Config) -> list[int]:
        """Steps at which it leaves a checkpoint, in order. When the progress of such a step can be read, its
        checkpoint is whole."""
        ...

    def idle(self, config: Config, key: str) -> str:
        """Why the value of that key cannot matter in this config (`there is no critic`); empty when it can."""
        ...

    def forkable(self, key: str) -> bool:
        """Whether a trial can go on from a checkpoint that was made under another value of that key."""
        ...

    def checkpoint(self, folder: Path, step: int | None = None) -> Saved | None:
        """The newest whole checkpoint below a trial's checkpoint folder, or of that step where it is there and whole.
        A torn one is passed over."""
        ...

    def sound(self, folder: Path, step: int | None = None) -> Sound:
        """`checkpoint`, but read and compared with its manifest, before it is used: one that is corrupted is moved
        aside in its folder and the one before is taken. Takes as long as reading it. SweeperError if it cannot be
        read."""
        ...

    def kept(self, folder: Path) -> list[Saved]:
        """Every whole checkpoint of a trial's checkpoint folder, by step; a cheap look."""
        ...

    def leftovers(self, folder: Path) -> list[tuple[Path, str]]:
        """What lies in that folder and can never be gone on from, with the reason; of a trial that does not run."""
        ...

    def adopt(self, saved: Saved, folder: Path) -> None:
        """Make that checkpoint of another trial the one that the next attempt of this folder goes on from; what this
        folder had is moved aside. Whole or not at all. SweeperError if it cannot be copied."""
        ...

    def placements(self, config: Config, shape: Shape, typed: Collection[str] = ()) -> list[Knob]:
        """What of the placement of this model on that shape is worth probing, what promises most first; placement keys
        only. `typed`: keys, sections of keys and names (`tp`) that the user set, which are never settings' to change.
        """
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster has, whether or not it can be reached now: enough to plan for."""

    name: str
    device: str
    """`cpu` or `cuda`."""
    nodes: int
    gpus_per_node: int
    """Ranks per node; on a CPU cluster how many ranks fit at once."""
    gpu: str = ""
    """The accelerator's name, as people say it: `H100`."""
    gpu_memory_gib: float = 0.0
    """Memory per accelerator; on a CPU cluster, memory per rank."""
    launchable: bool = True
    """Whether this release can start jobs there (else it can only be planned for)."""
    notes: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.gpus_per_node
