"""Our own packages as they travel to a cluster: what the distribution ships, so that driver and workers run the code of whoever submits.

They go into Ray's runtime environment of a job (`py_modules`), which is put in front of what a node has installed. Ray names them by
their contents, and a head that has them is not sent them again. The distribution's name and version travel too, as a node need not
have Stockpot at all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

NAMES = ("cluster", "evaluators", "pipelines", "sweeps")
DATA = {"sweeps/report": ("assets/*.html", "assets/*.css", "assets/js/*.js", "assets/vendor/*")}
"""Files beside Python's, as in pyproject.toml."""
CODE = "STOCKPOT_CODE"
"""Environment variable of a job: hash of the packages that travelled with it."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_READ_BYTES = 1 << 20


def files() -> dict[str, Path]:
    """What the distribution ships, by its name below the packages' folder: modules of packages, and `DATA`; sorted."""
    found = {}
    for name in NAMES:
        home = _folder(name)
        for path in _modules(home):
            found[f"{name}/{path.relative_to(home).as_posix()}"] = path
    for below, patterns in DATA.items():
        top, _, inner = below.partition("/")
        for path in (path for one in patterns for path in (_folder(top) / inner).glob(one) if path.is_file()):
            found[f"{top}/{path.relative_to(_folder(top)).as_posix()}"] = path
    return dict(sorted(found.items()))


@functools.cache
def code_hash() -> str:
    """SHA-256 (hex, 16 digits) over names and contents of the packages, as they were when first asked for."""
    return hash_files(files())


def hash_files(named: Mapping[str, Path]) -> str:
    """SHA-256 (hex, 16 digits) over names and contents of files, in the order given."""
    whole = hashlib.sha256()
    for name, path in named.items():
        written = os.fsencode(name)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        whole.update(len(written).to_bytes(8, "big") + written + content)
    return whole.hexdigest()[:16]


def stage(into: Path) -> list[str]:
    """Copy the packages into a new folder; the folders that are to be Ray's `py_modules`.

    They are copied because Ray would take what else lies in a checkout, and leave out what a `.gitignore` there names.
    """
    for name, path in files().items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / name)
    told = into / f"stockpot-{_version()}.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stockpot\nVersion: {_version()}\n", encoding="utf-8")
    return [str(into / name) for name in (*NAMES, told.name)]


def has_travelled(environment: Mapping[str, str]) -> bool:
    """Whether this process is of a job that our packages came with, so that its workers have them too."""
    return environment.get(CODE) == code_hash()


def not_unpacked(message: str) -> str:
    """What to tell of a node that could not set up what travelled, from what Ray says of it: the first sentence of the last line."""
    why = (message.strip().splitlines() or ["no reason given"])[-1].partition(". ")[0]
    return f"can't unpack what travels with every sweep ({why}): look at the disk of its Ray folder, and at logs/runtime_env_agent.log in it"


def pack(folder: Path, into: Path) -> Path:
    """A folder as one zip file with the same bytes for the same content.

    Ray's own packing leaves out what a `.gitignore` or `.rayignore` in the folder names.
    """
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _READ_BYTES)
    return into


def _folder(package: str) -> Path:
    """Where a package lies; those that travelled lie in a folder each."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"Stockpot's package {package} is not beside the others", name=package)
    return Path(os.path.abspath(found.submodule_search_locations[0]))


def _modules(package: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(package):
        inner[:] = sorted(name for name in inner if (Path(folder) / name / "__init__.py").is_file())
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stockpot")
    except PackageNotFoundError:
        return "0"
