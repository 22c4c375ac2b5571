"""The `sweeper` command: what is done with a sweep besides starting it.

Guarantees: each subcommand imports only what it needs; a user's mistake never shows a traceback; exit codes as in
`sweeper.app.run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sweeper.errors import SweeperError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `sweeper` console script; returns the exit code."""
    args = parse(argv)
    from sweeper import app

    try:
        return _run(args)
    except SweeperError as error:
        if getattr(args, "json", False):
            return app.report(error, "json")
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return app.reader_gone(harmless=args.command in ("plan", "status", "logs", "diff"))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line; exits with 2 on those that no subcommand takes.

    Overrides may stand before and after the options. argparse gives a list of positionals what comes before the first
    option only, and has no `parse_intermixed_args` for subcommands.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "overrides" in args and not word.startswith("-")]
    if strange := [word for word in rest if word not in late]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def _run(args: argparse.Namespace) -> int:
    from sweeper.cli import commands

    code = int(getattr(commands, args.command)(args))
    sys.stdout.flush()  # a reader who has gone is found out here, not when the interpreter ends
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sweeper", description="Plan, follow and continue sweeps.")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, text in (
        ("run", "run a sweep; the same as `python sweep.py -m OVERRIDE ...`"),
        ("plan", "show the trials of a sweep, what each needs and what is wrong with it; launch nothing"),
    ):
        p = sub.add_parser(name, help=text, description=text)
        p.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as after `python sweep.py -m`")
        p.add_argument("--json", action="store_true", help="for machines: JSON lines")

    text = "go on with a sweep that was stopped, whose controller died, or that has failed trials"
    p = sub.add_parser("resume", help=text, description=text + "; attempts that still run are taken up again")
    p.add_argument("name", help="the sweep's name, as shown by `sweeper status`")
    p.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="what may differ: max_concurrent=..., stop.*=...")
    p.add_argument("--fork", metavar="NEW", help="a new sweep of that name, which may differ in anything")
    p.add_argument("--json", action="store_true", help="for machines: JSON lines")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    text = "give a sweep more trials, or its finished trials more steps from their checkpoints"
    p = sub.add_parser("extend", help=text, description=text)
    p.add_argument("name", help="the sweep's name")
    p.add_argument("--trials", type=int, help="candidates an arm, in all")
    p.add_argument("--steps", type=int, help="training steps a trial, in all")
    p.add_argument("--json", action="store_true", help="for machines: JSON lines")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    text = "end what runs of a sweep, also where its controller has died; `sweeper resume` goes on with it"
    p = sub.add_parser("stop", help=text, description=text)
    p.add_argument("name", help="the sweep's name")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    _reading(sub)

    _kept(sub)

    p = sub.add_parser("plot", help="draw the curves of a sweep")
    p.add_argument("name", help="the sweep's name")
    p.add_argument("--out", default="curves.png", help="the picture (default: curves.png)")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    p = sub.add_parser("sync", help="send to MLflow what it has not got yet of a sweep's records")
    p.add_argument("name", help="the sweep's name")
    p.add_argument("--uri", default=None, help="tracking URI (default: the one of the sweep)")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")
    _health(sub)
    _lineage(sub)
    return parser


def _kept(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "show which checkpoints can be freed and why the others stay; free them with --yes"
    p = sub.add_parser("gc", help=text, description=text)
    p.add_argument("name", nargs="?", help="a sweep; without it all of the store")
    p.add_argument("--yes", action="store_true", help="free what can go; without it nothing is changed")
    p.add_argument("--last", type=int, help="keep so many newest ones of a trial (default: the sweep's keep.last)")
    p.add_argument("--top-k", type=int, help="of so many best candidates an arm (default: the sweep's keep.top_k)")
    p.add_argument("--gb", type=float, help="so many GB of a sweep (default: the sweep's keep.gb)")
    p.add_argument("--json", action="store_true", help="for machines: one JSON object")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    text = "keep a checkpoint of a trial, whatever its sweep's budget and `sweeper gc` say"
    p = sub.add_parser("pin", help=text, description=text)
    p.add_argument("run", metavar="SWEEP/TRIAL", help="whose checkpoint")
    p.add_argument("step", metavar="STEP", type=int, help="of the checkpoint")
    p.add_argument("--by", default="me", help="who needs it (default: me)")
    p.add_argument("--why", default="", help="what for; `sweeper gc` shows it")
    p.add_argument("--name", help="of the pin (default: BY-STEP)")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    text = "take a pin of a trial away; without a name its pins are listed"
    p = sub.add_parser("unpin", help=text, description=text)
    p.add_argument("run", metavar="SWEEP/TRIAL", help="whose pin")
    p.add_argument("name", metavar="NAME", nargs="?", help="of the pin")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")


def _reading(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "what a detached sweep says, or a trial"
    p = sub.add_parser("logs", help=text, description=text)
    p.add_argument("run", metavar="RUN", help="SWEEP (started with detach=true), SWEEP/TRIAL or SWEEP/TRIAL/ATTEMPT")
    p.add_argument("-f", "--follow", action="store_true", help="go on until nothing more can come")
    p.add_argument("-n", "--lines", type=_count, default=40, help="begin with so many last lines (default: 40)")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")

    p = sub.add_parser("status", help="the sweeps of a store, or the trials of one sweep")
    p.add_argument("name", nargs="?", help="a sweep; without it all are listed")
    p.add_argument("--json", action="store_true", help="for machines: one JSON object")
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0")
    return int(text)


def _health(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "say what happened to a run that failed or went badly, and what to change"
    p = sub.add_parser("diagnose", help=text, description=f"{text}; exit code 0 nothing found, 1 something")
    p.add_argument("run", metavar="RUN", help="SWEEP, SWEEP/TRIAL[/ATTEMPT], a folder of these, or an MLflow run id")
    p.add_argument("--json", action="store_true", help="for machines: one JSON list")
    _where(p)

    text = "check every node that a sweep would use: software, GPUs, disk, network, clocks"
    p = sub.add_parser("doctor", help=text, description=f"{text}; exit code 0 all is well, 1 something is wrong")
    p.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as after `python sweep.py -m`: cluster=... model=..."
    )
    p.add_argument("--timeout", type=_seconds, default=120.0, help="seconds that a node may take for each look (120)")
    p.add_argument("--json", action="store_true", help="for machines: one JSON object")
    _cluster(sub)


def _cluster(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "a Ray cluster over the hosts of cluster=ssh, for several sweeps to share"
    p = sub.add_parser("cluster", help=text, description=text)
    what = p.add_subparsers(dest="what", required=True, metavar="WHAT")
    up = what.add_parser("up", help="start it, and say how it is used")
    up.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="cluster=ssh cluster.ssh.hosts=[...] cluster.name=..."
    )
    up.add_argument("--port", type=int, default=6379, help="of Ray on the first host (default: 6379)")
    up.add_argument("--dashboard-port", type=int, default=8265, help="on the first host's loopback (default: 8265)")
    for name, text in (
        ("status", "which of its hosts are up; exit code 0 all, 1 not all"),
        ("down", "end it; no process of it is left on any host"),
    ):
        other = what.add_parser(name, help=text, description=text)
        other.add_argument("name", nargs="?", default="ssh", help="its cluster.name (default: ssh)")
    for each in what.choices.values():
        each.add_argument("--store", default="runs", help="a folder that all hosts share (default: runs)")


def _lineage(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = "an MLflow run id, SWEEP/TRIAL, SWEEP/TRIAL/ATTEMPT, or the path of a lineage.json"
    text = "run a trial again from its record alone: its code, its data, its config"
    p = sub.add_parser("reproduce", help=text, description=text)
    p.add_argument("run", metavar="RUN", help=run)
    _anew(p)

    text = "judge what a record claims: run it again and compare; exit code 0 pass, 1 fail, 2 cannot be judged"
    p = sub.add_parser("verify", help=text, description=text)
    p.add_argument("run", metavar="RUN", help=run)
    p.add_argument(
        "--tier",
        choices=("config", "exact", "statistical"),
        help="default: exact where the record says that the run was deterministic, else statistical",
    )
    p.add_argument("--seeds", type=_two_or_more, help="new runs of the statistical tier (default: 5)")
    p.add_argument("--allow-env", action="store_true", help="tier exact also where the engine, Python or torch differ")
    p.add_argument("--against", metavar="RUN2", help="judge by this run, which is there already; nothing is run")
    p.add_argument("--json", action="store_true", help="for machines: one JSON object")
    _anew(p)

    text = "what differs between two runs; exit code 0 nothing, 1 something, 2 curves that could not be compared"
    p = sub.add_parser("diff", help=text, description=text)
    p.add_argument("run", metavar="RUN_A", help=run)
    p.add_argument("other", metavar="RUN_B", help="likewise")
    p.add_argument("--json", action="store_true", help="for machines: one JSON object")
    _where(p)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is given; valid: a number of seconds above 0")
    return seconds


def _two_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} is given, and an interval needs at least 2 runs")
    return int(text)


def _where(p: argparse.ArgumentParser) -> None:
    p.add_argument("--store", default="runs", help="where the records are (default: runs)")
    p.add_argument("--uri", default=None, help="tracking URI, for an MLflow run id (default: as of `mlflow ui` here)")


def _anew(p: argparse.ArgumentParser) -> None:
    p.add_argument("--name", help="of the new sweep (default: again-SWEEP-TRIAL)")
    p.add_argument("--here", action="store_true", help="with the code of this checkout, not the recorded one")
    _where(p)


if __name__ == "__main__":
    sys.exit(main())
