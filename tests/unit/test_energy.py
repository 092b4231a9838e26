"""Energy: fake sensors with known curves, wrap-around, shares, what is missing, and sums that go on after a restart."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sft_runs import STOP, TOTAL, config, make_place, run

from pipelines.energy import EnergyConfig, Meter, Sensor, added, gpus, open_meter, rapl, stated, telemetry
from pipelines.finetune.group import Group
from pipelines.stage import Devices


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def metered(sensor: Sensor, clock: Clock, seconds: float, hz: float = 1.0) -> float:
    """Joules that a meter reads off a sensor in so many seconds, sampled by hand."""
    meter = Meter([sensor], clock=clock)
    meter.sample()
    end = clock.now + seconds
    while clock.now < end - 1e-9:
        clock.now = min(end, clock.now + 1 / hz)
        meter.sample()
    joules = meter.lap()[sensor.part]
    assert joules is not None
    return joules


@pytest.mark.parametrize(
    ("watts", "joules"),
    [
        (lambda t: 50.0, 3000.0),
        (lambda t: 20 + 2 * t, 20 * 60 + 60**2),
        (lambda t: 100 + 80 * math.sin(t / 5), 6000 + 400 * (1 - math.cos(12))),
    ],
)
def test_a_known_power_curve_integrates_to_half_a_percent(watts: Any, joules: float) -> None:
    clock = Clock()
    assert metered(Sensor("gpu", lambda: watts(clock.now)), clock, 60) == pytest.approx(joules, rel=0.005)


def test_the_thread_samples_a_pulse_between_laps() -> None:
    start = time.monotonic()
    power = Sensor("gpu", lambda: 100.0 if 0.2 < time.monotonic() - start < 0.7 else 0.0)
    with Meter([power], sample_hz=50) as meter:
        time.sleep(1.0)
        joules = meter.lap()["gpu"]
    assert joules == pytest.approx(50, rel=0.2)


def domain(folder: Path, name: str, kind: str, microjoules: int, span: int = 1_000_000_000) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "name").write_text(kind + "\n")
    (place / "max_energy_range_uj").write_text(f"{span}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place


def test_rapl_counts_packages_over_their_wrap_around(tmp_path: Path) -> None:
    packages = [domain(tmp_path, f"intel-rapl:{i}", f"package-{i}", 999_000_000) for i in (0, 1)]
    domain(tmp_path, "intel-rapl:0:0", "core", 5)
    domain(tmp_path, "intel-rapl:2", "psys", 5)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    sensors = rapl(tmp_path, share=0.25)
    assert len(sensors) == 2
    meter = Meter(sensors)
    meter.sample()
    (packages[0] / "energy_uj").write_text("3000000\n")  # 1 J to the end, and 3 J
    (packages[1] / "energy_uj").write_text("999500000\n")  # half a joule
    assert meter.lap()["cpu"] == pytest.approx(0.25 * 4.5)
    (packages[0] / "energy_uj").write_text("5000000\n")
    assert meter.lap()["cpu"] == pytest.approx(0.25 * 2)


@pytest.mark.parametrize("broken", ["none", "unreadable"])
def test_a_missing_sensor_is_unknown_and_never_zero(tmp_path: Path, broken: str) -> None:
    if broken == "unreadable":
        (domain(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").write_text("")
    meter = open_meter(EnergyConfig(ci_g_per_kwh=400), Devices(1.0), powercap=tmp_path)
    with meter:
        spent = meter.lap()
    told = telemetry(spent, EnergyConfig(ci_g_per_kwh=400))
    assert spent["cpu"] is None
    assert math.isnan(told["cost/joules"])
    assert math.isnan(told["cost/co2_grams"])
    assert "cost/estimated_joules" not in told


def test_one_part_missing_leaves_the_whole_unknown_and_the_other_told(tmp_path: Path) -> None:
    told = telemetry({"estimated": 0.0, "cpu": None, "gpu": 5.0}, EnergyConfig())
    assert math.isnan(told["cost/joules"])
    assert math.isnan(told["cost/cpu_joules"])
    assert told["cost/gpu_joules"] == 5.0


def test_what_the_file_states_stands_in_and_is_counted_as_an_estimate(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter([stated("cpu", 10.0 * 2)], clock=clock)
    meter.sample()
    clock.now = 180.0
    spent = meter.lap()
    told = telemetry(spent, EnergyConfig(cpu_watts=10, ci_g_per_kwh=500, pue=1.5))
    assert told["cost/joules"] == told["cost/estimated_joules"] == pytest.approx(3600)
    assert told["cost/co2_grams"] == pytest.approx(0.001 * 1.5 * 500)
    with open_meter(EnergyConfig(cpu_watts=10), Devices(2.0), powercap=tmp_path) as real:
        time.sleep(0.05)
        assert (real.lap()["cpu"] or 0) == pytest.approx(1.0, rel=0.9)


def test_a_measured_cpu_needs_no_statement(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj"
    with open_meter(EnergyConfig(cpu_watts=10), Devices(1.0), powercap=tmp_path) as meter:
        counter.write_text("8000000\n")
        spent = meter.lap()
    assert spent == {"estimated": 0.0, "cpu": pytest.approx(8 / (os.cpu_count() or 1))}


class FakeNVML:
    """The few calls of pynvml that are made, on devices with a known power."""

    class NVMLError(Exception):
        """As pynvml's."""

    class NVMLError_NotSupported(NVMLError):
        """As pynvml's."""

    def __init__(self, counts: bool = True, there: bool = True) -> None:
        self.counts, self.there, self.lost = counts, there, False
        self.millijoules = 7e6

    def nvmlInit(self) -> None:
        if not self.there:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        if not self.counts:
            raise self.NVMLError_NotSupported("Not Supported")
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: str) -> float:
        return 300_000.0


def test_gpus_that_share_a_device_pay_for_their_fraction() -> None:
    nvml = FakeNVML()
    meter = Meter(gpus(0.25, nvml, lambda: ["GPU-1"]))
    meter.sample()
    nvml.millijoules += 100_000
    assert meter.lap()["gpu"] == pytest.approx(25.0)
    clock = Clock()
    assert metered(gpus(0.5, FakeNVML(counts=False), lambda: ["GPU-1"])[0], clock, 10) == pytest.approx(1500)


def test_a_gpu_that_is_lost_or_without_a_driver_is_unknown(tmp_path: Path) -> None:
    nvml = FakeNVML()
    settings = EnergyConfig(cpu_watts=1.0)
    meter = open_meter(settings, Devices(1.0, 1.0), tmp_path, nvml, lambda: ["GPU-1"])
    with meter:
        assert meter.lap()["gpu"] == 0.0
        nvml.lost = True
        assert meter.lap()["gpu"] is None
    with open_meter(settings, Devices(1.0, 1.0), tmp_path, FakeNVML(there=False), lambda: []) as without:
        told = telemetry(without.lap(), settings)
    assert math.isnan(told["cost/joules"])
    assert math.isnan(told["cost/gpu_joules"])
    assert not math.isnan(told["cost/cpu_joules"])


def test_unknown_stays_unknown_in_a_sum() -> None:
    assert added({}, {"cpu": 1.0, "estimated": 0.0}) == {"cpu": 1.0, "estimated": 0.0}
    assert added({"cpu": 1.0}, {"cpu": 2.0, "gpu": 3.0}) == {"cpu": 3.0, "gpu": 3.0}
    assert added({"cpu": None}, {"cpu": 2.0}) == {"cpu": None}
    assert added({"cpu": 2.0}, {"cpu": None}) == {"cpu": None}


def test_a_runs_energy_goes_on_after_a_restart(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    energy = {"cpu_watts": 50.0, "ci_g_per_kwh": 100.0}
    settings = config(place)
    first = run(settings, tmp_path / "first", (STOP, TOTAL), stop=STOP, energy=energy)[-1].telemetry
    assert first["cost/joules"] == first["cost/estimated_joules"] == pytest.approx(50 * first["cost/seconds"], rel=0.2)
    start = tmp_path / "first" / f"checkpoint-{STOP}"
    kept = json.loads((start / "state.json").read_text())["progress"]["energy"]
    assert kept == {"cpu": first["cost/joules"], "estimated": first["cost/joules"]}
    rest = {"start": str(start), "start_resource": STOP}
    last = run(settings, tmp_path / "second", energy=energy, **rest)[-1].telemetry
    assert last["cost/joules"] == pytest.approx(50 * last["cost/seconds"], rel=0.2)
    assert last["cost/joules"] > first["cost/joules"]
    assert last["cost/co2_grams"] == pytest.approx(last["cost/joules"] / 3.6e6 * 100)
    unmeasured = run(settings, tmp_path / "third", **rest)[-1].telemetry
    assert math.isnan(unmeasured["cost/joules"])


def test_stated_watts_need_no_thread() -> None:
    before = threading.active_count()
    with Meter([stated("cpu", 1.0)]):
        assert threading.active_count() == before
    with Meter([Sensor("gpu", lambda: 1.0)]):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_joules_are_those_of_all_workers_also_while_one_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers that draw as much each: as if every text of this one came from all."""
    monkeypatch.setattr(Group, "gather", lambda self, text: [text] * 3)
    settings = config(make_place(tmp_path), max_steps=2)
    energy = {"cpu_watts": 10.0}
    [report] = run(settings, tmp_path / "out", (2,), energy=energy, devices=Devices(cpus=2.0))
    told = report.telemetry
    assert told["cost/evaluation_seconds"] > 0
    assert told["cost/joules"] == pytest.approx(3 * 2 * 10.0 * told["cost/seconds"], rel=0.05)
