"""Which files make up a snapshot: names, the four priorities, and the manifest that a writer leaves beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".pdparams"
SINGLE_LABEL = "snapshot"
TOKEN_KEY, LAST_KEY = "kernbench.snapshot", "kernbench.last_part"
"""In a file's metadata: which snapshot it belongs to, and in the last part how many parts there are."""


class SnapshotError(ValueError):
    """A snapshot that is incomplete, damaged, mixed with another, or of a kind that is not read."""


@dataclass(frozen=True)
class SnapshotFile:
    """One file to load."""

    path: Path
    label: str
    staged: Path | None = None
    """Where the file still is if its writer died between committing and renaming."""
    digests: dict[str, str] | None = None
    """Hash of each tensor (:func:`kernbench.weight_sync.arrays.digest`), from the manifest."""
    nbytes: int | None = None
    """Size of the file, from the manifest."""

    def open(self) -> BinaryIO:
        """The file, where it waits to be renamed or under its own name.

        Raises:
            FileNotFoundError: at neither.
        """
        if self.staged is not None:
            with suppress(FileNotFoundError):
                return open(self.staged, "rb", buffering=0)
        return open(self.path, "rb", buffering=0)


@dataclass(frozen=True)
class Snapshot:
    """The files of a snapshot in the order in which they are loaded."""

    files: Sequence[SnapshotFile]
    token: str | None = None
    """Which snapshot it is, from the manifest; None without one."""
    version: Any = None
    replaces: frozenset[str] = frozenset()
    """Names of older files that its writer removes."""
    may_be_pickle: bool = False


@dataclass(frozen=True)
class Names:
    """File names of one rank's snapshots with one id."""

    rank: int
    id: str
    stem: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.id or re.search(r"[/\\\0]", self.id) or re.search(r"(\.part\d+|\.manifest)$", self.id):
            raise ValueError(f"snapshot id {self.id!r}: it names files, so no '/', and not ending like '.part1'")
        object.__setattr__(self, "stem", f"model_state.tp{self.rank}.{self.id}")

    @property
    def single(self) -> str:
        return self.stem + SUFFIX

    @property
    def legacy(self) -> str:
        """Of old writers: no dot before the id, and rank 0 whatever the rank."""
        return f"model_state.tp0{self.id}{SUFFIX}"

    @property
    def manifest(self) -> str:
        return f"{self.stem}.manifest.json"

    @property
    def lock(self) -> str:
        return f".{self.stem}.lock"

    def part(self, number: int) -> str:
        return f"{self.stem}.part{number}{SUFFIX}"

    def staged(self, token: str, name: str) -> str:
        return f".{name}.{token}.staged"

    def is_file(self, name: str) -> bool:
        return name == self.single or bool(re.fullmatch(rf"{re.escape(self.stem)}\.part[0-9]+\.pdparams", name))

    def is_staged(self, name: str) -> bool:
        return bool(re.fullmatch(rf"\.{re.escape(self.stem)}(\.part[0-9]+)?\.pdparams\.[0-9a-f]+\.staged", name))

    def parts_in(self, folder: Path) -> list[tuple[int, Path]]:
        """(number, path) of the part files, by number: part10 after part2."""
        pattern = re.compile(rf"{re.escape(self.stem)}\.part([0-9]+)\.pdparams")
        found = [(int(m[1]), folder / m[0]) for name in _listing(folder) if (m := pattern.fullmatch(name))]
        return sorted(found)


def locate(folder: Path, rank: int, id: str, shared: Path) -> Snapshot:
    """The snapshot to load, of the first of the four priorities that is there.

    Raises:
        FileNotFoundError: "No snapshot found".
        SnapshotError: a part is missing or doubled, or the manifest does not belong to the files.
    """
    names = Names(rank, id)
    described = read_manifest(folder, names)
    if described is not None:
        return described
    parts = names.parts_in(folder)
    if parts:
        _check_numbers([number for number, _ in parts], folder, names)
        return Snapshot([SnapshotFile(path, f"{SINGLE_LABEL}-part{number}") for number, path in parts])
    for name in (names.single, names.legacy):
        if (folder / name).exists():
            return Snapshot([SnapshotFile(folder / name, SINGLE_LABEL)])
    described = read_manifest(shared, names)
    if described is not None and [file.label for file in described.files] == [SINGLE_LABEL]:
        return described
    last = shared / names.single
    if last.exists():
        return Snapshot([SnapshotFile(last, SINGLE_LABEL)], may_be_pickle=True)
    tried = ", ".join(str(p) for p in (folder / names.part(1), folder / names.single, folder / names.legacy, last))
    raise FileNotFoundError(f"No snapshot found for rank {rank} and id {id}: none of {tried} exists")


def read_manifest(folder: Path, names: Names) -> Snapshot | None:
    """What a writer's manifest says; None if there is none.

    Raises:
        SnapshotError: the manifest is unreadable, or part files lie there that it knows nothing of.
    """
    made = load_manifest(folder, names)
    if made is None:
        return None
    known = {file.path.name for file in made.files} | made.replaces
    strange = [path.name for _, path in names.parts_in(folder) if path.name not in known]
    if not strange:
        return made
    if load_manifest(folder, names) != made:  # a writer has published another snapshot in between
        return read_manifest(folder, names)
    raise SnapshotError(
        f"{folder / names.manifest} does not know {', '.join(strange)}: two snapshots are mixed. Remove the manifest "
        "if another program wrote these files as a whole snapshot, or remove the files"
    )


def load_manifest(folder: Path, names: Names) -> Snapshot | None:
    """The same without looking at the files."""
    path = folder / names.manifest
    try:
        return _from_manifest(folder, names, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise SnapshotError(
            f"{path}: no manifest of a snapshot ({type(wrong).__name__}: {wrong}). If the files are whole, remove it"
        ) from None


def manifest_text(
    token: str, version: Any, files: Iterable[dict[str, Any]], staged: dict[str, str], replaces: Iterable[str]
) -> bytes:
    """A manifest: ``files`` are {"file", "label", "nbytes", "tensors": {name: hash}}, ``staged`` says where each file
    waits to be renamed, and ``replaces`` names older files that are then removed."""
    listed = [file | {"staged": staged[file["file"]]} for file in files]
    document = {"format": 1, "snapshot": token, "version": version, "files": listed, "replaces": sorted(replaces)}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _from_manifest(folder: Path, names: Names, document: Any) -> Snapshot:
    if document["format"] != 1:
        raise ValueError(f"format {document['format']!r}, expected 1")
    replaces = frozenset(document["replaces"])
    for name in (*replaces, *(file["file"] for file in document["files"])):
        if not names.is_file(name):
            raise ValueError(f"{name!r} is no file of such a snapshot")
    if not all(names.is_staged(file["staged"]) for file in document["files"]):
        raise ValueError("a staged file has another name than writers give")
    files = [
        SnapshotFile(folder / f["file"], f["label"], folder / f["staged"], dict(f["tensors"]), int(f["nbytes"]))
        for f in document["files"]
    ]
    return Snapshot(files, str(document["snapshot"]), document["version"], replaces)


def _check_numbers(numbers: list[int], folder: Path, names: Names) -> None:
    first = 0 if numbers[0] == 0 else 1
    for expected, number in enumerate(numbers, first):
        if number < expected:
            raise SnapshotError(f"{folder}: part {number} of {names.stem} is there twice, spelled differently")
        if number > expected:
            raise SnapshotError(
                f"{folder}: {names.part(expected)} is missing: parts {first} to {numbers[-1]} are expected, "
                f"{len(numbers)} of those {numbers[-1] - first + 1} are there"
            )


def _listing(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
