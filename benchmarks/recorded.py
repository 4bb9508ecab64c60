"""Dated records of measurements: a JSON list of runs `{date, command, environment, rows}` in `benchmarks/records/`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from optimize.environment import environment

FOLDER = Path(__file__).parent / "records"


def append(name: str, command: str, rows: list[dict[str, Any]], folder: Path = FOLDER) -> Path:
    """Put a run's rows at the end of the record `<name>.json`; returns its path."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.is_file() else []
    run = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "command": command, "environment": environment()}
    path.write_text(json.dumps([*held, run | {"rows": rows}], indent=1) + "\n")
    return path
