"""Every point of a finite space, in order.

Guarantees: the point is a function of the number of the ask alone; known points come first and are not run again.
"""

from __future__ import annotations

from sweeper.search.samplers.memory import Entry, Memory
from sweeper.search.samplers.space import Codes, Space


class Grid:
    """The product of the dims' values, the last one fastest. Of no dims: the one point that there is."""

    patience: int | None = None

    def __init__(self, space: Space, first: int) -> None:
        """`first`: how many asks are the known points'. Raises ValueError where the space is not finite."""
        if space.size is None:
            endless = [name for name, axis in space.axes.items() if axis.size is None]
            raise ValueError(f"a grid needs values, and these are intervals: {', '.join(endless)}")
        self._space, self._first, self._size = space, first, space.size

    def propose(self, memory: Memory) -> Codes | None:
        """None: the grid is at its end."""
        index = len(memory) - self._first
        return self._space.encode(self._space.at(index)) if index < self._size else None

    def added(self, entry: Entry) -> None:
        """Nothing is learned."""

    def decided(self, entry: Entry) -> None:
        """Nothing is learned."""

    def reset(self) -> None:
        """Nothing is kept."""
