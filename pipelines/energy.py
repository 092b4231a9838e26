"""Joules and grams of CO2 of a trial: sensors read by a thread while a lease runs, and sums that go on after a restart.

A trial pays for the share of a device that it holds, whether it uses it or not: of the machine's CPU packages (RAPL) the
trial's CPUs over the machine's, of each GPU (NVML) the trial's fraction. Counters of joules are read as differences, with
their wrap-around; power in watts is integrated by the trapezoid, E = Σ (P_i + P_{i+1}) / 2 · Δt. Where a sensor can't be
read, watts that the file states stand in, and their joules are counted as an estimate too; without them the energy is
unknown, which is NaN and never 0. CO2 = kWh · PUE · carbon intensity, unknown without an intensity. Nothing is taken from
a table of devices. Measured is what `cost/seconds` counts: training, evaluations and checkpoints, not loading.

Left out: memory beside the CPU's package, disks, the network, and models that several trials share (RAG).

Source: sampling, the trapezoid, PUE and intensity are those of CodeCarbon and its kin; sensors are
`/sys/class/powercap/intel-rapl:*` and `nvmlDeviceGetTotalEnergyConsumption` or `nvmlDeviceGetPowerUsage`.

Example:
    >>> with open_meter(EnergyConfig(cpu_watts=10.0), Devices(cpus=2.0)) as meter:
    ...     train()
    ...     spent = meter.lap()
    >>> telemetry(spent, EnergyConfig())["cost/joules"]
    1234.5
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.fields import Config

if TYPE_CHECKING:
    from pipelines.stage import Devices

_log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
Spent = dict[str, float | None]
"""Joules by part: `cpu`, `gpu` where the trial has GPUs, and `estimated`: how many of them come from stated watts; None is
unknown."""
UNKNOWN: Spent = {"cpu": None, "estimated": 0.0}
"""What a checkpoint has spent that does not say it."""


class EnergyConfig(Config):
    """How the energy of a trial is measured."""

    sample_hz: float = Field(default=1.0, ge=0.1, le=100)
    """Readings of the sensors a second."""
    cpu_watts: float | None = Field(default=None, gt=0)
    """Watts of one CPU of a trial, by your own measurement or data sheet: an estimate where RAPL can't be read."""
    gpu_watts: float | None = Field(default=None, gt=0)
    """Watts of one GPU: an estimate where NVML can't be read."""
    ci_g_per_kwh: float | None = Field(default=None, ge=0)
    """Carbon intensity of the power, in grams of CO2 a kWh; without it grams are unknown."""
    pue: float = Field(default=1.0, ge=1)
    """Power usage effectiveness: what the whole site draws over what its computers draw."""


@dataclass
class Sensor:
    """One source of joules.

    Attributes:
        part: `cpu` or `gpu`.
        read: the present reading; raises OSError or ValueError where there is none.
        share: what of it is the trial's.
        counts: whether readings are joules so far; else they are watts.
        range: at how many joules a counter begins again; infinite where it does not.
        estimated: whether the readings are what the file states.
        joules: the trial's so far.
    """

    part: str
    read: Callable[[], float]
    share: float = 1.0
    counts: bool = False
    range: float = math.inf
    estimated: bool = False
    joules: float = 0.0
    _last: tuple[float, float] | None = field(default=None, repr=False)

    def take(self, now: float) -> bool:
        """Take one reading, at `now` seconds; False where there is none: the next one bridges the gap."""
        try:
            value = self.read()
        except (OSError, ValueError):
            return False
        if self._last is not None:
            before, then = self._last
            if self.counts:
                gained = value - before if value >= before else value - before + self.range
            else:
                gained = (before + value) / 2 * (now - then)
            self.joules += self.share * gained
        self._last = (value, now)
        return True


class Meter:
    """Sensors, read by a thread until it is closed; a context manager.

    Args:
        sensors: sources of joules.
        missing: parts that have none, whose energy is unknown.
        sample_hz: readings a second.
        clock: seconds.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        missing: Sequence[str] = (),
        sample_hz: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sensors = list(sensors)
        self._missing = tuple(missing)
        self._period = 1.0 / sample_hz
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: dict[int, float] = {}

    def __enter__(self) -> Meter:
        """Take the first readings and start the thread; without sensors there is none."""
        self.sample()
        if any(not sensor.estimated for sensor in self._sensors):
            self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def sample(self) -> set[str]:
        """Read every sensor now; the parts of which one gave no reading."""
        with self._lock:
            now = self._clock()
            return {sensor.part for sensor in self._sensors if not sensor.take(now)}

    def lap(self) -> Spent:
        """Joules since the last call, or since the start."""
        lost = self.sample()
        spent: Spent = {"estimated": 0.0, **dict.fromkeys(self._missing)}
        with self._lock:
            for place, sensor in enumerate(self._sensors):
                gained = sensor.joules - self._told.get(place, 0.0)
                if sensor.part in lost:
                    spent[sensor.part] = None
                    continue
                self._told[place] = sensor.joules
                before = spent.get(sensor.part, 0.0)
                spent[sensor.part] = None if before is None else before + gained
                if sensor.estimated:
                    spent["estimated"] = (spent["estimated"] or 0.0) + gained
        return spent

    def _watch(self) -> None:
        while not self._closed.wait(self._period):
            self.sample()


def added(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> Spent:
    """The sum of two, part by part; unknown stays unknown."""
    total: Spent = dict(one)
    for part, joules in other.items():
        before = total.get(part, 0.0)
        total[part] = None if before is None or joules is None else before + joules
    return total


def telemetry(spent: Mapping[str, float | None], config: EnergyConfig) -> dict[str, float]:
    """`cost/joules`, `cost/co2_grams`, `cost/estimated_joules`, and the parts where there are GPUs; NaN is unknown."""
    parts = [part for part in spent if part != "estimated"]
    joules = math.fsum(_known(spent[part]) for part in parts) if parts else math.nan
    grams = math.nan if config.ci_g_per_kwh is None else joules / JOULES_PER_KWH * config.pue * config.ci_g_per_kwh
    found = {"cost/joules": joules, "cost/co2_grams": grams}
    if not math.isnan(joules):
        found["cost/estimated_joules"] = _known(spent.get("estimated", 0.0))
    if "gpu" in parts:
        found |= {f"cost/{part}_joules": _known(spent[part]) for part in ("cpu", "gpu")}
    return found


def _known(joules: float | None) -> float:
    return math.nan if joules is None else joules


def open_meter(
    config: EnergyConfig, devices: Devices, powercap: Path = POWERCAP, nvml: Any | None = None, uuids: Any = None
) -> Meter:
    """The meter of one lease on this machine; what is missing is said in the trial's log.

    Args:
        config: the sweep's settings.
        devices: what the trial holds.
        powercap: the system's folder of RAPL domains.
        nvml: the module `pynvml`; imported where it is None.
        uuids: gives the visible GPUs' UUIDs; asks torch where it is None.
    """
    share = min(1.0, devices.cpus / (os.cpu_count() or 1))
    parts = {"cpu": (lambda: rapl(powercap, share), config.cpu_watts, devices.cpus, "cpu_watts")}
    if devices.gpus > 0:
        fraction = min(1.0, devices.gpus)
        parts["gpu"] = (lambda: gpus(fraction, nvml, uuids), config.gpu_watts, devices.gpus, "gpu_watts")
    sensors: list[Sensor] = []
    missing: list[str] = []
    for part, (measured, watts, count, key) in parts.items():
        try:
            sensors += measured()
        except SensorMissing as reason:
            if watts is None:
                missing.append(part)
                _log.info("energy of the %s is unknown: %s; resources.energy.%s would state it", part, reason, key)
            else:
                sensors.append(stated(part, watts * count))
                _log.info("energy of the %s is an estimate, %g watts as stated: %s", part, watts * count, reason)
    return Meter(sensors, missing, config.sample_hz)


class SensorMissing(Exception):
    """A sensor that can't be read; the message says why."""


def stated(part: str, watts: float) -> Sensor:
    """A part that draws what the file says."""
    return Sensor(part, lambda: watts, estimated=True)


def rapl(folder: Path, share: float) -> list[Sensor]:
    """The CPU packages' counters: `intel-rapl:N`, which AMD's CPUs have too; not their parts, nor the whole platform.

    Raises:
        SensorMissing: if there is none, or it may not be read (most systems let only root).
    """
    domains = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
    packages = [path for path in domains if _text(path / "name").startswith("package")]
    if not packages:
        raise SensorMissing(f"no RAPL package under {folder}")
    found = []
    for path in packages:
        counter, span = path / "energy_uj", path / "max_energy_range_uj"
        try:
            float(counter.read_text())
            limit = float(span.read_text()) / 1e6
        except (OSError, ValueError) as error:
            raise SensorMissing(f"RAPL can't be read: {error}") from None
        found.append(Sensor("cpu", _reader(counter), share, counts=True, range=limit))
    return found


def _reader(counter: Path) -> Callable[[], float]:
    """Joules of a counter of microjoules."""
    return lambda: int(counter.read_text()) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def gpus(share: float, nvml: Any | None = None, uuids: Any = None) -> list[Sensor]:
    """The visible GPUs: their joules where they count them (Volta and later), else their watts.

    Args:
        share: what of each is the trial's.
        nvml: the module `pynvml`; imported where it is None.
        uuids: gives the visible GPUs' UUIDs; asks torch where it is None.

    Raises:
        SensorMissing: if NVML or a device is not there, or tells no power (parts of a GPU under MIG).
    """
    nvml = nvml or _nvml()
    found = []
    try:
        nvml.nvmlInit()
        for uuid in (uuids or _visible)():
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            try:
                nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                found.append(Sensor("gpu", _asking(nvml, "TotalEnergyConsumption", handle), share, counts=True))
            except nvml.NVMLError_NotSupported:
                nvml.nvmlDeviceGetPowerUsage(handle)
                found.append(Sensor("gpu", _asking(nvml, "PowerUsage", handle), share))
    except nvml.NVMLError as error:
        raise SensorMissing(f"NVML can't be read: {error}") from None
    return found


def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        raise SensorMissing("NVML needs a package; pip install 'stockpot[energy]'") from None
    return pynvml


def _asking(nvml: Any, what: str, handle: Any) -> Callable[[], float]:
    """A reading of a device, in thousandths."""
    ask = getattr(nvml, f"nvmlDeviceGet{what}")

    def read() -> float:
        try:
            return float(ask(handle)) / 1e3
        except nvml.NVMLError as error:
            raise OSError(str(error)) from error

    return read


def _visible() -> list[str]:
    """UUIDs of the GPUs that this process sees, as NVML writes them."""
    import torch

    found = [str(torch.cuda.get_device_properties(place).uuid) for place in range(torch.cuda.device_count())]
    return [uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}" for uuid in found]
