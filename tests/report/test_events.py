"""What the displays print."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

from sweeper.errors import Problem
from sweeper.report import events
from sweeper.report.events import JsonDisplay, PlainDisplay, duration

TRIALS = {"000": "algorithm=grpo", "001": "algorithm=ppo"}


def feed(display: events.Display) -> None:
    display.event("sweep_started", name="s", folder="/r/s", trials=TRIALS)
    display.event("trial_started", trial="000", label="algorithm=grpo", attempt=1, total=20, folder="/r/s/0")
    for step in range(1, 21):
        display.event(
            "progress",
            trial="000",
            step=step,
            total=20,
            reward=0.25,
            score=0.5 if step == 10 else None,
            tokens_per_s=100.0,
            elapsed_s=float(step),
            eta_s=20.0 - step,
        )
    display.event(
        "trial_ended",
        trial="000",
        state="failed",
        step=20,
        total=20,
        score=0.5,
        elapsed_s=61.0,
        root_cause=["ValueError: no"],
    )
    display.close()


def test_plain_output_says_each_tenth_and_each_validation_and_why_a_trial_failed() -> None:
    out = io.StringIO()
    feed(PlainDisplay(out))
    text = out.getvalue()
    assert "\x1b" not in text
    assert text.count(": step ") == 11  # ten tenths and the step that was validated
    assert "000 algorithm=grpo: step 10 of 20, reward 0.25, score 0.5, tokens/s 100, 10s left" in text
    assert "000 algorithm=grpo: failed after 1m01s, score 0.5, step 20 of 20\n         ValueError: no" in text


def test_json_output_is_one_object_a_line_with_every_event() -> None:
    out = io.StringIO()
    feed(JsonDisplay(out))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e["event"] for e in lines] == ["sweep_started", "trial_started", *["progress"] * 20, "trial_ended"]
    assert lines[0]["trials"] == TRIALS
    assert all(isinstance(e["time"], float) for e in lines)


def test_json_output_carries_problems_as_objects() -> None:
    out = io.StringIO()
    JsonDisplay(out).event("error", problems=[Problem("tp=3", valid="1, 2")])
    assert json.loads(out.getvalue())["problems"] == [{"what": "tp=3", "valid": "1, 2"}]


def test_json_output_is_strict_json_whatever_a_trainer_reports() -> None:
    out = io.StringIO()
    JsonDisplay(out).event("progress", reward=float("nan"), more=[float("inf")], problems=(Problem("tp=3"),))

    def bare(word: str) -> None:
        raise AssertionError(word)

    line = json.loads(out.getvalue(), parse_constant=bare)
    assert (line["reward"], line["more"], line["problems"]) == ("NaN", ["Infinity"], [{"what": "tp=3"}])


def test_the_live_table_shows_every_trial_and_its_score_and_leaves_the_terminal_clean() -> None:
    from rich.console import Console

    from sweeper.report.live import LiveDisplay

    out = io.StringIO()
    display = LiveDisplay(out)
    display.event("sweep_started", name="s", folder="/r/s", trials=TRIALS)
    display.event("trial_started", trial="000", label="algorithm=grpo", attempt=1, total=20, folder="/r/s/0")
    display.event("progress", trial="000", step=0, total=20, score=0.25)
    display.event("progress", trial="000", step=10, total=20, reward=0.5, score=0.75, tokens_per_s=1234.0, eta_s=9)
    console = Console(file=io.StringIO(), width=120)
    console.print(display._table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    display.close()
    assert "0.250 > 0.750" in shown
    assert "10/20" in shown
    assert "1,234" in shown
    assert "001 algorithm=ppo" in shown
    assert "waiting" in shown


def test_the_live_table_of_thousands_shows_what_runs_the_best_and_counts() -> None:
    from rich.console import Console

    from sweeper.report.live import LiveDisplay

    display = LiveDisplay(io.StringIO())
    display.event("sweep_started", name="s", folder="/r/s", trials={}, planned=3000, mode="min")
    for i in range(2000):
        trial = f"{i:04d}"
        display.event("trial_planned", trial=trial, label=f"x={i}", arm="0", candidate=trial)
        display.event("trial_started", trial=trial, label=f"x={i}", attempt=1, total=20, folder="/r")
        display.event("progress", trial=trial, step=20, total=20, score=i / 1000)
        if i < 1950:
            display.event("trial_ended", trial=trial, **ENDED, state="pruned" if i % 2 else "finished")
    console = Console(file=io.StringIO(), width=140)
    console.print(display._table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    display.close()
    assert len(shown.splitlines()) < 40
    assert "3000 trials: " in shown
    for figure in ("975 finished", "975 pruned", "50 running", "1000 waiting"):
        assert figure in shown
    assert "0000 x=0 " in shown and "0008 x=8 " in shown and "0010 x=10 " not in shown, "the five lowest"


ENDED = {
    "step": 20, "total": 20, "score": 0.5, "elapsed_s": 61.0, "exit_code": 0, "reason": "", "detail": "",
    "root_cause": (), "folder": None,
}  # fmt: skip


def test_plain_output_tells_what_a_search_does_with_its_trials() -> None:
    out = io.StringIO()
    display = PlainDisplay(out)
    display.event("sweep_started", name="s", folder="/r/s", trials={}, planned=40)
    display.event("points_refused", arm="0", points=3, why="tp=3 does not divide 28 heads")
    display.event("sweep_waiting", message="the sweep other holds 8 of 8 ranks")
    display.event("trial_planned", trial="000", label="lr=0.1", arm="0", candidate="000")
    display.event("trial_reused", trial="000", score=0.5, source="monday/004")
    display.event("attempt_reattached", trial="001", label="lr=0.2", attempt=2, total=20, folder="/r")
    display.event("trial_paused", trial="001", **ENDED, state="paused")
    display.event("trial_forked", trial="001", donor="004", step=10, changed={"lr": 0.05})
    display.event(
        "trial_retried", trial="001", failure="out-of-memory", why="needs less memory now", change="micro-batch 4",
        root_cause=["CUDA out of memory"],
    )  # fmt: skip
    display.event(
        "trial_ended", trial="001", **{**ENDED, "reason": "kl-blow-up", "detail": "KL is 3, above 1"}, state="pruned"
    )
    text = out.getvalue()
    for line in (
        "sweep s: 40 trials, records in /r/s",
        "3 points refused: tp=3 does not divide 28 heads",
        "waiting: the sweep other holds 8 of 8 ranks",
        "000 lr=0.1: finished earlier as monday/004, score 0.5",
        "001 lr=0.2: still running, followed again (attempt 2)",
        "001 lr=0.2: paused at step 20",
        "001 lr=0.2: goes on from 004 at step 10 with lr=0.05",
        "001 lr=0.2: out-of-memory, once more, with micro-batch 4 (needs less memory now)\n         CUDA out of memory",
        "001 lr=0.2: pruned after 1m01s, score 0.5, step 20 of 20 (kl-blow-up: KL is 3, above 1)",
    ):
        assert line in text
    assert "planned" not in text


def test_both_displays_take_every_kind_of_event() -> None:
    from sweeper.report.live import LiveDisplay

    values = {
        "trials": {"000": "x=1"}, "planned": None, "changed": {"lr": 0.1}, "attempt": 1, "total": 20, "step": 1,
        "score": None, "reward": None, "tokens_per_s": None, "eta_s": None, "elapsed_s": 1.0, "root_cause": [],
        "points": 2,
    }  # fmt: skip
    for display in (PlainDisplay(io.StringIO()), LiveDisplay(io.StringIO()), JsonDisplay(io.StringIO())):
        for kind, fields in events.KINDS.items():
            display.event(kind, **{f: values.get(f, "000" if f == "trial" else "text") for f in fields})
        display.close()


ROOT = Path(__file__).resolve().parents[2]


def test_every_event_that_is_emitted_is_of_a_known_kind_with_known_fields() -> None:
    wrong = []
    for path in (ROOT / "sweeper").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event"):
                continue
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                kind = node.args[0].value
                fields = {k.arg for k in node.keywords if k.arg}
                if kind != "error" and (kind not in events.KINDS or fields - set(events.KINDS[kind])):
                    wrong.append((path.name, node.lineno, kind, fields - set(events.KINDS.get(kind, ()))))
    assert not wrong


def test_the_page_on_events_lists_every_kind_and_every_field() -> None:
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", (ROOT / "docs/events.md").read_text(encoding="utf-8"), re.M)
    page = {kind: set(re.findall(r"`(\w+)`", text)) for kinds, text in rows for kind in re.findall(r"`(\w+)`", kinds)}
    page["trial_paused"] |= page["trial_ended"]
    for kind, fields in events.KINDS.items():
        assert kind in page, kind
        assert set(fields) <= page[kind], (kind, set(fields) - page[kind])


def test_output_auto_is_plain_where_there_is_no_terminal() -> None:
    assert isinstance(events.choose("auto", io.StringIO()), PlainDisplay)


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 187, 7500)] == ["0s", "59s", "1m00s", "3m07s", "2h05m"]
