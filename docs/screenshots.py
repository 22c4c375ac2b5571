"""Makes the pictures of docs/mlflow.md: fake trials in an MLflow store, its UI in a headless Chromium.

    apt-get install chromium; pip install playwright     (in an environment of its own: --python says which)
    python docs/screenshots.py [--folder /tmp/demo] [--out docs/images] [--python PYTHON]

The trials are fakes: their curves are formulas, no model was trained. What writes them is the tracker of every sweep.
The part that drives the browser runs in the interpreter that has playwright; it fails if something that the page
promises is not on the screen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve()
WIDTH, HEIGHT = 1280, 900
SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
"""What a person chooses once in the browser: the pages of model training, no assistant beside them."""


def main() -> None:
    """Write the store, run the UI, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/demo"), help="for the store; made anew")
    parser.add_argument("--out", type=Path, default=HERE.parent / "images")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has playwright")
    parser.add_argument("--address", help=argparse.SUPPRESS)  # the second half: of a UI that runs
    args = parser.parse_args()
    if args.address:
        pictures(args.address, args.out)
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    args.out.mkdir(parents=True, exist_ok=True)
    page = fake_sweep(args.folder)
    with ui(args.folder) as server:
        address = server + page.partition("5000")[2]
        command = [args.python, str(HERE), "--address", address, "--out", str(args.out)]
        subprocess.run(command, check=True, timeout=1800)
    from PIL import Image

    for picture in args.out.glob("mlflow-*.png"):  # 32 shades a colour: half the size, no difference to be seen
        Image.open(picture).convert("RGB").point(lambda v: round(v / 255 * 31) * 255 // 31).save(picture, optimize=True)


def fake_sweep(folder: Path) -> str:
    """Two arms of six fake trials each; returns the address of their comparison."""
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "tests" / "support")]
    from fake_lineage import write_fake

    from sweeper.tracking.mlflow import MlflowTracker

    os.chdir(folder)
    sweep = folder / "runs" / "grid"
    sweep.mkdir(parents=True)
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", warn=sys.exit)
    tracker.sweep_started("grid", "demo", {"sweeper.folder": str(sweep)}, {"overrides": "fake"})
    best = (0.0, "", Path())
    grid = [(a, lr, kl) for a in ("grpo", "ppo") for lr in (5e-5, 2e-4, 1e-3) for kl in (0.0, 0.01)]
    for number, (arm, lr, kl) in enumerate(grid):
        trial, tp = f"{number:03d}", 1 + (number + number // 2) % 2  # not the order of lr or kl
        attempt = sweep / "trials" / trial / "attempt-1"
        attempt.mkdir(parents=True)
        label = f"lr={lr:g} kl={kl:g}"
        files = write_fake(attempt, label=label, arm=arm)
        params = {"algorithm": arm, "lr": lr, "kl": kl, "tp": tp, "config": {"seed": 1}}
        tags = {"sweeper.arm": f"algorithm={arm}", "sweeper.seed": "1", "attempt": "1"}
        tracker.trial_started(trial, f"{arm} {label}", params, tags, files)
        height = (0.8 if arm == "grpo" else 0.7) * math.exp(-((math.log10(lr) + 3.7) ** 2)) - 3 * kl
        score = 0.0
        for step in range(0, 21):
            score = height * (1 - math.exp(-step / 7)) + 0.01 * math.sin(step + number)
            values = {"reward": score - 0.02, "actor/entropy": 2 - step / 20, "critic/score/mean": score}
            tracker.metrics(trial, step, {**values, **({"score": score} if step % 4 == 0 else {})}, time.time())
        files = write_fake(attempt, label=label, arm=arm, steps=[10, 20])
        tracker.trial_ended(trial, "finished", {"step": 20, "final_score": score, "best_score": score}, files)
        best = max(best, (score, trial, files[0]))
    tracker.best(best[1], 20, best[0], "max", best[2])
    tracker.sweep_ended("finished")
    assert tracker.close(300), "the store did not take everything"
    return tracker.page()


@contextlib.contextmanager
def ui(folder: Path) -> Iterator[str]:
    """`mlflow ui` on a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                if server.poll() is not None:
                    raise SystemExit((folder / "ui.log").read_text()[-2000:])
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its own session
            server.wait()


def pictures(address: str, out: Path) -> None:
    """Open the pages, see that what they promise is there, and keep them as pictures."""
    from playwright.sync_api import sync_playwright

    server, _, rest = address.partition("/#")
    experiment = rest.split("/")[2]
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        page.set_default_timeout(600_000)  # machines are busy
        stores = ";".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(v)})" for k, v in SETTINGS.items())
        page.add_init_script(f"try {{ {stores} }} catch {{}}")  # an empty page has no storage

        def shot(name: str, url: str, *texts: str, wait: float = 4.0) -> None:
            page.goto("about:blank")
            page.goto(url)
            for text in texts:
                page.get_by_text(text, exact=False).first.wait_for()
            page.wait_for_function("document.querySelectorAll('[role=progressbar], .ant-spin').length === 0")
            time.sleep(wait)  # charts are drawn in steps
            page.screenshot(path=out / f"{name}.png")
            print(name, "ok", flush=True)

        shot("mlflow-charts", address, "Parallel Coordinates", "grpo lr=0.0002", "Sweep", wait=8)
        shot("mlflow-runs", address.replace("CHART", "TABLE"), "grpo lr=0.0002", "algorithm=ppo")
        shot(
            "mlflow-arms",
            address.replace("=sweeper&", "=sweeper-arms&"),
            "Parallel Coordinates",
            "Sweep",
            "sweeper.arm",
            wait=8,
        )
        api = f"{server}/api/2.0/mlflow/registered-models/get?name=demo"
        model = json.loads(page.request.get(api).text())["registered_model"]
        run = model["latest_versions"][0]["run_id"]
        shot("mlflow-run", f"{server}/#/experiments/{experiment}/runs/{run}", "arithmetic-train", "sweeper.commit")
        shot("mlflow-record", f"{server}/#/experiments/{experiment}/runs/{run}/artifacts/lineage.json", "fingerprint")
        shot("mlflow-model", f"{server}/#/models/demo", "sweep-grid")
        browser.close()


if __name__ == "__main__":
    main()
