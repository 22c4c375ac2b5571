"""Whether the first node of an attempt shows life, by its beat in the attempt's folder (gang/listen.py).

Guarantees: the clock of the node does not matter, only whether the beat changes while we look; what cannot be read,
and time in which we did not look, says nothing. A beat that stands still may be a filesystem that stalls: it takes a
second sign for a node to be gone.
"""

from __future__ import annotations

from pathlib import Path

from sweeper.clusters.gang.listen import BEAT
from sweeper.clusters.gang.node import GANG

STILL_S = 5.0
"""A beat that has stood still for so long means something; it changes every second."""
LOOK_S, HELD_S = 1.0, 4.0
"""Between two looks at the beat, and when they were so far apart that we did not look."""


class Pulse:
    """Of one attempt."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / GANG / BEAT
        self._beat: bytes | None = None
        self._looked_at = float("-inf")
        self.still_s = 0.0
        """For how long we have looked at a beat that stood still."""

    @property
    def begun(self) -> bool:
        """Whether there ever was a beat."""
        return self._beat is not None

    def look(self, now: float) -> None:
        """Look at the beat, if it is time."""
        since = now - self._looked_at
        if since < LOOK_S:
            return
        self._looked_at = now
        try:
            beat: bytes | None = self._path.read_bytes()  # opening it is what makes a network filesystem look again
        except OSError:
            self.still_s = 0.0
            return
        self.still_s = self.still_s + since if beat == self._beat and since < HELD_S else 0.0
        self._beat = beat
