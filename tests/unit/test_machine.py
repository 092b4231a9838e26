"""What a machine has: files of a made-up kernel, a made-up nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.machine import this_machine

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 1024000 kB\nMemFree: 5 kB\nMemAvailable: 512000 kB\n")
    (folder / "self" / "cgroup").write_text("0::/outer/inner\n")
    return folder


def test_a_machine_without_limits(proc: Path, tmp_path: Path) -> None:
    found = this_machine(proc, tmp_path / "none")
    assert (found.memory, found.free) == (1024000 * 1024, 512000 * 1024)


def test_the_tightest_group_counts_without_what_it_can_drop(proc: Path, tmp_path: Path) -> None:
    outer, inner = tmp_path / "cg" / "outer", tmp_path / "cg" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "cpu.max").write_text("100000 100000\n")
    (outer / "memory.max").write_text(f"{300 * MIB}\n")
    (outer / "memory.current").write_text(f"{200 * MIB}\n")
    (outer / "memory.stat").write_text(f"anon 5\ninactive_file {150 * MIB}\n")
    found = this_machine(proc, tmp_path / "cg")
    assert (found.cpus, found.memory, found.free) == (1.0, 300 * MIB, 250 * MIB)


def test_limits_of_version_1(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("4:cpu:/x\n3:memory:/job\n")
    job = tmp_path / "cg" / "memory" / "job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text(str(64 * MIB))
    (job / "memory.usage_in_bytes").write_text(str(16 * MIB))
    found = this_machine(proc, tmp_path / "cg")
    assert (found.memory, found.free) == (64 * MIB, 48 * MIB)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    found = this_machine(tmp_path / "no", tmp_path / "none")
    assert (found.memory, found.free) == (None, None)
    assert found.cpus >= 1


def test_gpus_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0, GPU-aa, 81559\\n1, GPU-bb, 40960\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert this_machine().gpus == (81559 * MIB, 40960 * MIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert this_machine().gpus == (40960 * MIB,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().gpus == ()
    assert len(this_machine(hidden_gpus=True).gpus) == 2
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert this_machine(hidden_gpus=True).gpus == ()
