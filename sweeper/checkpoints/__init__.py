"""What is known of a trial's checkpoints beside their files: manifests, pins, what is kept and what may be freed.

Guarantees: no engine is imported here; nothing is deleted that something needs (keep.py says what that is).

- `manifest`: the content of a checkpoint as it was written, and whether it still is that
- `pins`: checkpoints that somebody outside the sweep needs
- `start`: one of another run that a trial starts from
- `keep`: which checkpoints a sweep may free, and why the others stay
- `retention`: frees them while the sweep runs
- `gc`: shows and frees them afterwards (`sweeper gc`)
"""
