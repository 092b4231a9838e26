"""What travels of Stockpot itself: what the distribution ships and nothing else, under the hash of its content."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from cluster.packages import CODE, code_hash, files, has_travelled, not_unpacked, pack, stage

ROOT = Path(__file__).resolve().parents[2]


def shipped() -> set[str]:
    """What pyproject.toml names."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = [path for name in told["packages"] for path in (ROOT / name.replace(".", "/")).glob("*.py")]
    for name, patterns in told["package-data"].items():
        found += [path for one in patterns for path in (ROOT / name.replace(".", "/")).glob(one)]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_what_the_distribution_ships_travels_and_nothing_else() -> None:
    assert set(files()) == shipped()
    assert {"sweeps/report/assets/template.html", "pipelines/soups/methods/__init__.py"} <= set(files())


def test_where_it_has_travelled_to_it_is_the_same_code_and_could_travel_on(tmp_path: Path) -> None:
    """Ray lays each package into a folder of its own; the version is known there too."""
    (tmp_path / "out").mkdir()
    homes = []
    for number, folder in enumerate(stage(tmp_path / "out")):
        homes.append(tmp_path / f"pkg{number}")
        homes[-1].mkdir()
        Path(folder).rename(homes[-1] / Path(folder).name)
    script = (
        "import cluster.packages as p, importlib.metadata as m, sweeps.report.page, os; from pathlib import Path\n"
        "print(p.__file__, p.code_hash(), m.version('stockpot'), p.has_travelled(os.environ), len(p.stage(Path('on'))))"
    )
    (tmp_path / "on").mkdir()
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, homes)), CODE: code_hash()},
        capture_output=True,
        text=True,
        check=True,
    )
    file, code, version, travelled, folders = found.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert (code, travelled, folders) == (code_hash(), "True", "5")
    assert (homes[-1] / f"stockpot-{version}.dist-info").is_dir()
    assert not has_travelled({})
    assert not has_travelled({CODE: "another"})


def test_a_folder_is_packed_whole_and_always_into_the_same_bytes(tmp_path: Path) -> None:
    names = {
        ".gitignore": "*\n",
        ".rayignore": "*\n",
        "a.txt": "1",
        "deep/ with space\nand line.txt": "2",
        "ä.txt": "3",
    }
    for folder in ("one", "two"):
        for name, text in names.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    os.utime(tmp_path / "two" / "a.txt", (1e9, 1e9))
    one, two = (pack(tmp_path / name, tmp_path / f"{name}.zip") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as packed:
        assert {name: packed.read(name).decode() for name in packed.namelist()} == names


def test_a_node_that_can_not_unpack_is_told_of_in_one_line() -> None:
    said = "Failed to set up runtime environment.\nTraceback\nOSError: Failed to download gcs://p.zip from the GCS. Try this."
    assert not_unpacked(said).startswith(
        "can't unpack what travels with every sweep (OSError: Failed to download gcs://p.zip from the GCS): look at"
    )
    assert "(no reason given)" in not_unpacked("\n")
