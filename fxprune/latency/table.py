"""The table of measured times, kept on disk."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch

from fxprune.errors import OutputError
from fxprune.files import write_whole

VERSION = 1
Seconds = dict[str, float]


class Table:
    """Seconds by call, on one machine in one manner; in a file of JSON, beside those of other machines and manners.

    Raises OutputError where there is something else under the path.
    """

    def __init__(self, path: Path, machine: str) -> None:
        self.path, self.machine = path, machine
        self._found: Seconds = self._read().get(machine, {})
        self._new: Seconds = {}

    def seconds(self, call: str, measure: Callable[[], float]) -> float:
        """The time of a call, measured where the table does not have it."""
        if call not in self._found:
            self._found[call] = self._new[call] = measure()
        return self._found[call]

    def save(self) -> None:
        """Add what was measured to the file; what others have put there meanwhile stays."""
        if not self._new:
            return
        machines = self._read()
        machines[self.machine] = self._new | machines.get(self.machine, {})
        text = json.dumps({"version": VERSION, "seconds": machines}, indent=1, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text)
        except OSError as error:
            raise OutputError(
                f"the table of latencies cannot be written to {self.path}: {error}; name another file by Timing(table=)"
            ) from error
        self._new = {}

    def _read(self) -> dict[str, Seconds]:
        try:
            data = json.loads(self.path.read_text())
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            return {
                str(machine): {str(call): float(time) for call, time in times.items()}
                for machine, times in data["seconds"].items()
            }
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"the table of latencies cannot be read from {self.path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{self.path} is no table of latencies ({error}): delete it, or name another file by Timing(table=)"
            ) from error


def machine(device: torch.device) -> str:
    """The device, the threads that torch uses on it, and the version of torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, threads: {torch.get_num_threads()}"
    return f"{name}, torch {torch.__version__}"


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
