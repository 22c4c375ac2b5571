"""Passes on to the guard of a node what is asked for in a file, and shows by another that the first node is there: for
nodes on which no command can be run from outside.

    python -I -S listen.py FOLDER RANK &        (a container's command, before node.py; or by the agent)

FOLDER/gang/ask is there from the start, empty; a byte that is appended to it is a request (s, k or d: guard.py), and
reaches the guard within two seconds. The file is opened anew for each look, because that, and not a directory listing,
is what a network filesystem promises to answer with what others have written. FOLDER/gang/beat is written anew at each
look of the first node: where it stands still, the node or its way to the filesystem is gone. Guarantees: each request
is passed on once, also one that was made before there was a guard; ends with the guard, whose child it is (`exec` of
node.py by the shell that started both), and by itself if it is not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

LOOK_S = 1.0
BEAT = "beat"


def main() -> None:
    """Look until whoever started us is gone."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import node  # type: ignore[import-not-found]

    folder = Path(sys.argv[1])
    rank = int(os.environ[sys.argv[2][1:]] if sys.argv[2].startswith("$") else sys.argv[2])
    parent, passed = os.getppid(), 0
    while os.getppid() == parent:
        with contextlib.suppress(OSError):
            if rank == 0:
                (folder / "gang" / BEAT).write_text(str(time.time()))
        with contextlib.suppress(OSError):
            asked = (folder / "gang" / "ask").read_bytes()
            if len(asked) > passed and node.ask(folder, rank, asked[passed:]):
                passed = len(asked)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
