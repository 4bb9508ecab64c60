"""`optimize serve --triton`: the model repository of a finished artifact, in a folder of its own, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optimize.architectures.artifact import as_written, verify_network
from optimize.errors import UserError, shown
from optimize.serving._drawing import find_artifact
from optimize.serving._repository import Serving, write_repository
from optimize.storage.commit import commit
from optimize.storage.ours import refuse_foreign, settled
from optimize.storage.swap import restore
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import read_json

MARK = "triton"  # field of a repository's manifest


def make_repository(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The manifest of the repository written to `out` from the artifact, or the run's final one, at `path`.

    Every file of the artifact is compared with its manifest first. `options` are those of `Serving`; the model is named
    after the run. Raises UserError for options or a folder that will not do, and what `write_repository` raises.
    """
    artifact = find_artifact(path)
    serving = _serving({"model": name_of(artifact)} | {k: v for k, v in options.items() if v is not None})
    _check_out(out)
    made_from = verify_network(artifact)
    about = {"id": made_from.get("id", ""), "source": made_from.get("source", {}), "serving": serving.to_json()}

    def write(folder: Path) -> dict[str, Any]:
        with as_written(artifact):
            return about | {MARK: write_repository(artifact, folder, serving)}

    return commit(out, write)


def name_of(artifact: Path) -> str:
    """The run's name; for another artifact than its final one with that one's name."""
    run, own = artifact.resolve().parent.name, artifact.resolve().name
    return run if own == "final" else f"{run}-{own}"


def _serving(options: dict[str, Any]) -> Serving:
    try:
        return Serving(**options)
    except ValidationError as error:
        raise UserError(f"serve: {'; '.join(_problem(dict(e)) for e in error.errors())}.") from None


def _problem(error: dict[str, Any]) -> str:
    """One problem of a validation: of a field with its name and what was given, or of several together."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    return f"{'.'.join(str(x) for x in error['loc'])}: {error['msg']}, given {shown(error['input'])}"


def _check_out(out: Path) -> None:
    """A folder that is not a repository of ours, as it was written, is never replaced."""
    restore(out)
    if out.is_dir() and any(out.iterdir()):
        earlier = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
        if not isinstance(earlier, dict) or MARK not in earlier:
            raise UserError(
                f"--triton: {out} holds other files. Give a new folder, or one that was written by this command."
            )
    settled(refuse_foreign, out)
