"""What the displays print."""

from __future__ import annotations

import io
import json

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


def test_output_auto_is_plain_where_there_is_no_terminal() -> None:
    assert isinstance(events.choose("auto", io.StringIO()), PlainDisplay)


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 187, 7500)] == ["0s", "59s", "1m00s", "3m07s", "2h05m"]
