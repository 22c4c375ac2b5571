"""verl's checkpoints of one trial: which is whole, and how another trial's becomes this one's.

Guarantees: a checkpoint that is named here can be loaded: every shard of every rank is there and is not cut off; one
that `sound` names has the content that was written, byte by byte, where it has a manifest (saved.py writes one after
each save); what is corrupted is moved aside, never deleted; one is adopted whole or not at all, whenever the process is
killed; nothing that another trial wrote is changed.

Both trainers of verl 0.9.1 save in this order: the actor's shards, the critic's, `data.pt` (the data loader), in the
asynchronous modes `transfer_queue`, then `latest_checkpointed_iteration.txt` (trainer/ppo/v1/trainer_base.py:948,
trainer/ppo/ray_trainer.py:983). They do so *before* they validate and before they log the step (trainer_base.py:481,
:491, :514; ray_trainer.py:1704, :1727, :1802): once the metrics of a step that is saved can be read, its checkpoint is
whole, its number on disk included. That is what pausing and forking rely on. (Not with Megatron's `async_save`, which
writes the number when the background writer is done.)

verl opens every file of a checkpoint anew and writes a step's folder once, so files can be shared by hard links; it
reads a local checkpoint in place (utils/fs.py copy_to_local) and never deletes one it has loaded
(fsdp_checkpoint_manager.py:262 is for copies of remote ones).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sweeper.checkpoints import manifest
from sweeper.engines.base import Saved, Sound
from sweeper.errors import SweeperError

TRACKER = "latest_checkpointed_iteration.txt"
_STEP = re.compile(r"global_step_(\d+)")
_SHARD = re.compile(r"(?P<kind>[a-z_]+)_world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt")
_ADOPTING = "adopting"
_ADOPTED = "adopted"
"""Holds a whole copy on its way in: from the moment it has this name, the adoption has happened."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


GROUPS = ("model", "algorithm", "environment", "engine", "cluster", "model_engine", "experiment")
FIXED = (
    "model.**", "environment.**", "engine.**", "data.**", "trainer.**", "actor_rollout_ref.model.**", "critic.model.**",
    "critic.enable", "algorithm.adv_estimator", "**.strategy", "**.optim.optimizer", "**.optim.optimizer_impl",
    "**.model_dtype", "responses_per_step", "binding.**",
)  # fmt: skip
"""Keys under another value of which a checkpoint is none: its weights, its optimizer's kind, its place in the data.
What else is in it and a config may change, resume.py sets anew."""


def newest(folder: Path, step: int | None = None) -> Saved | None:
    """The newest whole checkpoint of a trial's checkpoint folder, or that of `step` where it is whole; None when there
    is none.

    Looks at names, sizes and the directory at the end of each shard, so it costs milliseconds whatever the model.
    Finishes an adoption that was cut off. A folder newer than verl's own note is taken where its files show that it
    is whole: the note itself may be cut off, and FSDP with `async_save` never writes one.
    """
    _finish_adoption(folder)
    return next((saved for saved, whole in _candidates(folder, step) if whole), None)


def kept(folder: Path) -> list[Saved]:
    """Every checkpoint that can be loaded, by step; as cheap as `newest`, and nothing is changed."""
    return sorted((saved for saved, whole in _candidates(folder) if whole), key=lambda saved: saved.step)


def sound(folder: Path, step: int | None = None) -> Sound:
    """`newest`, but read: a checkpoint whose content is not what its manifest says is moved to `corrupt-global_step_N`,
    and the one before it is taken. Takes as long as reading it.

    Raises:
        SweeperError: A file cannot be read, or what is corrupted cannot be moved.
    """
    said: list[str] = []
    _finish_adoption(folder)
    manifest.forget_retired(folder)
    for saved, whole in list(_candidates(folder, step)):
        try:
            wrong = _wrong(folder, saved.step, said)
            if wrong:
                moved = _set_aside(folder, saved.step)
                more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
                said.append(f"{saved.path} is corrupted: {wrong[0]}{more}; it is kept as {moved.name}")
            elif whole:
                return Sound(saved, tuple(said))
        except OSError as error:
            raise SweeperError(
                f"{saved.path} cannot be checked: {error.filename or saved.path}: {error.strerror or error}\n"
                f"  fix: make {folder} readable and writable for this user, or move {saved.path.name} out of it"
            ) from error
    return Sound(None, tuple(said))


def leftovers(folder: Path) -> list[tuple[Path, str]]:
    """What no run can go on from any more, with the reason. Of a trial that runs some of it may still be in use."""
    found: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if _STEP.fullmatch(path.name) and path.is_dir() and not path.is_symlink() and not (path / "actor").exists():
            found.append((path, "verl has deleted its weights"))
        elif path.name == _ADOPTING:
            found.append((path, "a copy of another trial's checkpoint that was not finished"))
        elif path.name.startswith("aside-"):
            found.append((path, "its own checkpoints before it went on from another trial's"))
    return found


def _wrong(folder: Path, step: int, said: list[str]) -> list[str]:
    """What of a checkpoint differs from its manifest; nothing where verl has deleted it on purpose."""
    try:
        if not (wrong := manifest.verify(folder, step)):
            return []
        known = manifest.read(folder, step)
    except manifest.DamagedError as error:
        path = manifest.path_of(folder, step)
        path.replace(path.with_name(f"corrupt-{path.name}"))
        said.append(f"{error}; only the structure of {manifest.name_of(step)} is checked")
        return []
    return [] if known is None or manifest.retired(folder, known) else wrong


def _set_aside(folder: Path, step: int) -> Path:
    """Move a corrupted checkpoint out of verl's way, then its manifest: never is the one there without the other's say.
    A manifest that a kill leaves behind is forgotten before the next check."""
    name = f"corrupt-{manifest.name_of(step)}"
    number = 1
    while (to := folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    known = manifest.path_of(folder, step)
    (folder / manifest.name_of(step)).rename(to)
    known.replace(to.with_name(f"{to.name}.json"))
    return to


def _candidates(folder: Path, step: int | None = None) -> Iterator[tuple[Saved, bool]]:
    """Every checkpoint's folder, that of `step` first, else the newest, and whether its structure is whole."""
    steps = dict(_steps(folder))
    critic = any((path / "critic").is_dir() for path in steps.values())
    told = _told(folder)
    for at in sorted(steps, key=lambda n: (n == step, n), reverse=True):
        noted = told is not None and at <= told
        yield Saved(at, steps[at]), _whole(steps[at], noted=noted, critic=critic)


def torn(folder: Path) -> bool:
    """Whether verl would find something there and stumble over it: nothing in the folder is whole."""
    return (folder / TRACKER).exists() and newest(folder) is None


def adopt(saved: Saved, folder: Path) -> None:
    """Make that checkpoint the newest of this folder; what the folder had is moved to `aside-<n>` in it.

    Files are linked where the file system can, else copied.

    Raises:
        SweeperError: It could not be copied, or was removed meanwhile; the folder is as it was.
    """
    _finish_adoption(folder)
    partial = folder / _ADOPTING
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(saved.path, partial / f"global_step_{saved.step}", copy_function=_link)
        critic = (saved.path / "critic").is_dir()
        if not _whole(partial / f"global_step_{saved.step}", noted=True, critic=critic):
            raise SweeperError(f"{saved.path} is no whole checkpoint any more")
        known = manifest.path_of(saved.path.parent, saved.step)
        if known.exists():
            shutil.copyfile(known, partial / known.name)
        partial.rename(folder / _ADOPTED)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise SweeperError(f"{saved.path} cannot be copied to {folder}: {error}") from error
    except SweeperError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _finish_adoption(folder)


def _finish_adoption(folder: Path) -> None:
    """Put an adopted checkpoint in its place, then its manifest. May be cut off and done again at any point."""
    waiting = folder / _ADOPTED
    if not waiting.is_dir():
        return
    for step, path in _steps(waiting):
        aside: Path | None = None
        for number, own in list(_steps(folder)):
            if aside is None:
                aside = _aside(folder)
            # Its manifest first: the adopter will write a step of that number again, with other content.
            known = manifest.path_of(folder, number)
            if known.exists():
                known.replace(aside / known.name)
            own.rename(aside / own.name)
        for stale in (folder / manifest.FOLDER).glob("*.json"):  # of what verl deleted: it has no folder here any more
            stale.unlink()
        partial = folder / f"{TRACKER}.partial"
        partial.write_text(str(step))
        partial.replace(folder / TRACKER)
        path.rename(folder / path.name)
    for known in list(waiting.glob("*.json")):
        (folder / manifest.FOLDER).mkdir(exist_ok=True)
        known.replace(folder / manifest.FOLDER / known.name)
    waiting.rmdir()


def _aside(folder: Path) -> Path:
    number = 1 + max((int(p.name.removeprefix("aside-")) for p in folder.glob("aside-*")), default=0)
    made = folder / f"aside-{number}"
    made.mkdir()
    return made


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    if folder.is_dir():
        for path in folder.iterdir():
            if (found := _STEP.fullmatch(path.name)) and path.is_dir():
                yield int(found[1]), path


def _told(folder: Path) -> int | None:
    """The step that verl noted last; None where the note is missing or cut off (verl writes it in place)."""
    try:
        return int((folder / TRACKER).read_text())
    except (OSError, ValueError):
        return None


def _whole(path: Path, *, noted: bool, critic: bool) -> bool:
    """Whether verl can load it. `noted`: verl's note, which it writes last, is this step or a later one."""
    if not _is_archive(path / "data.pt"):  # written when all shards are
        return False
    if not noted and (path / "transfer_queue").exists():
        return False  # it comes after data.pt, and nothing shows whether it is whole
    return all(_part_is_whole(path / part, noted=noted) for part in (("actor", "critic") if critic else ("actor",)))


def _part_is_whole(path: Path, *, noted: bool) -> bool:
    """A model's files: those of all ranks, none cut off; of other training engines only that there are some."""
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError:
        return False
    ranks: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if found := _SHARD.fullmatch(name):
            ranks.setdefault((found["kind"], int(found["world"])), set()).add(int(found["rank"]))
            if not _is_archive(path / name):
                return False
    if not ranks:
        return noted and bool(names)  # Megatron, VeOmni, torchtitan: distributed checkpoints of their own
    return all(found == set(range(world)) for (_, world), found in ranks.items())


def _is_archive(path: Path) -> bool:
    """Whether a file of torch.save is whole: a zip archive, whose directory is its end."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
            zipfile.ZipFile(file).close()
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return True


def _link(source: str, target: str) -> str:
    """A hard link, or a copy where there can be none. verl's note of the last step is never among these files."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)
    return target
