"""One build in a process of its own, so that its memory is its own:  python -m optimize.engines.worker JOB.json FOLDER

Writes model.engine and facts.json into the folder, or error.json where TensorRT refuses. Exit codes 0 and 2, and 3 where
the disk does not take them, which is said on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from optimize.engines.builder import EngineError, build
from optimize.engines.libraries import load_module
from optimize.engines.plan_text import inspected
from optimize.engines.script import peak_memory


def main(job_file: str, folder: str) -> int:
    """Build what the job file says."""
    asked, out = json.loads(Path(job_file).read_text()), Path(folder)
    trt = load_module(asked["module"])
    try:
        plan, facts = build(trt, asked["job"])
        tells = asked["module"] == "tensorrt_rtx"  # in the plan's text; TensorRT's inspector is asked, on the GPU
        found = None if tells else inspected(trt, plan, asked["job"]["flags"])
    except EngineError as error:
        (out / "error.json").write_text(json.dumps({"error": str(error)}))
        return 2
    try:
        (out / "model.engine").write_bytes(plan)
        (out / "facts.json").write_text(json.dumps(facts | {"peak_memory_bytes": peak_memory(), "found": found}))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
