"""Dated records of measurements: a JSON list of runs `{date, command, environment, rows}` in `benchmarks/records/`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from optimize.hardware.environment import environment
from optimize.storage.commit import write_text_atomically

FOLDER = Path(__file__).parent / "records"


def append(name: str, command: str, rows: list[dict[str, Any]], folder: Path = FOLDER) -> Path:
    """Put a run's rows at the end of the record `<name>.json`; returns its path."""
    run = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "command": command, "environment": environment()}
    return put(folder / f"{name}.json", run | {"rows": rows})


def put(path: Path, run: dict[str, Any]) -> Path:
    """Put a run at the end of a record, or in the place of its own earlier state where it tells its `start`; the file is
    replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.is_file() else []
    others = [r for r in held if "start" not in run or r.get("start") != run["start"]]
    write_text_atomically(path, json.dumps([*others, run], indent=1) + "\n")
    return path
