"""Spoiled results of this program that come back to it: artifacts, ONNX files, build kits, summaries, measurements.

Artifacts are sealed again after they were spoiled, so that their manifest names every file as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from corpus import tensors
from corpus.cases import A100, OUT, SEED, Asked, Input, Spoiling, at, text, turns
from corpus.documents import Document, Place, Raw, Spoiled, spoiled, written
from corpus.files import INSTEAD, Spoil, put
from corpus.given import UNET
from corpus.inputs import Base, measured


def reseal(folder: Path) -> None:
    """The manifest names the files as they are now."""
    from optimize.storage.commit import hash_files

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    text("manifest.json", json.dumps(manifest | {"files": hash_files(folder)}))(folder)


def sealed(path: str, spoil: Spoil) -> Spoiling:
    """A file of the artifact is spoiled, and the manifest names it as it is; in both copies."""

    def change(place: Path) -> None:
        for folder in (place / "in" / "final", place / "out" / "final"):
            spoil(folder / path)
            if path != "manifest.json":
                reseal(folder)

    return change


BENCH = ("--rounds", "1", "--seconds", "0.001", "--warm-up", "0", "--threads", "1")


def artifacts(base: Base) -> Iterator[Input]:
    """Artifacts that are sealed again after they were spoiled."""
    documents = {
        n: json.loads((base.part("final") / n).read_text()) for n in ("structure.json", "sampler.json", "manifest.json")
    }

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        about = path == "manifest.json"
        asked = (
            Asked(("verify", "../in/final"), refused and about),
            Asked(("plan", "../in/final", *A100), refused),
            Asked(("inspect", "../in/final", "--no-measure", *A100), refused and path != "sampler.json"),
            Asked(("bench", "../in/final", "--runner", "torch", *BENCH), refused),
            Asked(("bench", "../in/final", "--runner", "onnxruntime", *BENCH), refused and path == "sampler.json"),
            Asked(("serve", "../in/final", "--runner", "onnxruntime"), refused and path == "sampler.json"),
            Asked(("serve", "../in/final", "--triton", "../out/triton"), refused and path == "sampler.json"),
            Asked(
                ("export", "../out/final", "--target", "v100", "--batch", "1", "--kits", "../out/kits", *OUT),
                refused and path == "sampler.json",
            ),
        )
        return Input("artifact", f"{path}: {name}", ("final",), sealed(path, spoil), asked, ("final",))

    def values(path: str, typed: Callable[[Place], bool]) -> Iterator[Input]:
        for bad in spoiled(Document(documents[path], typed=typed), f"{SEED} {path}"):
            yield one(path, bad.name, put(bad.text.encode()), bad.refused)

    def files(path: str, spoils: dict[str, Spoil]) -> Iterator[Input]:
        yield from (one(path, name, spoil, True) for name, spoil in spoils.items() if name != "missing")

    sampler = values("sampler.json", _in_sampler)
    yield from turns(
        values("structure.json", _in_structure),
        sampler,
        values("manifest.json", _in_manifest),
        sampler,
        files("model.safetensors", tensors.SPOILED),
        files("structure.json", INSTEAD),
        files("sampler.json", INSTEAD),
        files("manifest.json", INSTEAD),
    )


def edited(base: Base) -> Iterator[Input]:
    """Artifacts of passes: the records that a pruned and quantized network is built again from, and its weights."""
    structure = json.loads((base.part("edited") / "structure.json").read_text())

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        def change(place: Path) -> None:
            spoil(place / "in" / "edited" / path)
            reseal(place / "in" / "edited")

        asked = (
            Asked(("plan", "../in/edited", *A100), refused),
            Asked(("inspect", "../in/edited", "--no-measure", *A100), refused and path == "structure.json"),
            Asked(("bench", "../in/edited", "--runner", "torch", *BENCH), refused),
        )
        return Input("edited", f"{path}: {name}", ("edited",), change, asked)

    def values() -> Iterator[Input]:
        for bad in spoiled(Document(structure["edits"], typed=_in_edits), f"{SEED} edits"):
            text = written(structure | {"edits": Raw(bad.text)})
            yield one("structure.json", bad.name, put(text.encode("utf-8", "surrogatepass")), bad.refused)

    every = values()
    yield from turns(every, every, (one("model.safetensors", n, spoil, True) for n, spoil in tensors.SPOILED.items()))


def _in_edits(place: Place) -> bool:
    """What a network is built again from; the rest of a record is told and not read."""
    rebuilt = ("shapes", "attributes", "quantizers", "kept_dtype")
    return len(place) < 3 or (place[2] in rebuilt)


def _in_structure(place: Place) -> bool:
    own = set(UNET) - {"_class_name"}  # the structure names the architecture itself
    return place[0] != "config" or (len(place) > 1 and place[1] in own)


def _in_sampler(place: Place) -> bool:
    return place[0] not in ("nfe", "steps")  # what others read, and a Model does not


def _in_manifest(place: Place) -> bool:
    return place[0] in ("schema", "files", "passes")


def onnx_files(base: Base) -> Iterator[Input]:
    """ONNX files of an artifact that is sealed again."""
    from corpus.graphs import SPOILED

    for name, spoil in (*SPOILED.items(), *INSTEAD.items()):
        asked = [
            Asked(("bench", "../in/final", "--runner", "onnxruntime", *BENCH), True),
            Asked(("bench", "../in/final", "--runner", "openvino", *BENCH), name != "a value that is no number"),
            Asked(("export", "../out/final", "--target", "v100", "--batch", "1", "--kits", "../out/kits", *OUT)),
            Asked(("serve", "../in/final", "--triton", "../out/triton")),
        ]
        yield Input("onnx", name, ("final",), sealed("onnx/model.onnx", spoil), tuple(asked), ("final",))


def kits(base: Base) -> Iterator[Input]:
    """Finished build kits that are brought back."""
    kit = base.part("kits") / "kit"
    documents = {n: json.loads((kit / n).read_text()) for n in ("kit.json", "result.json")}

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        asked = (Asked(("export", "../out/kits/final", "--adopt", "../in/kits/kit"), refused),)
        return Input("kit", f"{path}: {name}", ("kits",), at(f"in/kits/kit/{path}", spoil), asked, ("kits",))

    def values(path: str) -> Iterator[Input]:
        for bad in spoiled(Document(documents[path], typed=lambda place: False), f"{SEED} {path}"):
            yield one(path, bad.name, put(bad.text.encode()), bad.refused)

    def files(path: str) -> Iterator[Input]:
        yield from (one(path, name, spoil, True) for name, spoil in INSTEAD.items())

    result = values("result.json")
    yield from turns(values("kit.json"), result, files("kit.json"), files("result.json"), result)


def reports(base: Base) -> Iterator[Input]:
    """Summaries and measurements."""
    summary = json.loads((base.part("run") / "summary.json").read_text())

    def of_summary(name: str, spoil: Spoil, refused: bool) -> Input:
        def both(place: Path) -> None:
            for folder in ("in", "out"):
                spoil(place / folder / "run" / "summary.json")

        asked = (Asked(("report", "../out/run"), refused), Asked(("compare", "../in/run", "../in/run"), refused))
        return Input("summary", name, ("run",), both, asked, ("run",))

    def of_measurements(name: str, spoil: Spoil, refused: bool) -> Input:
        file = "../in/measurements.jsonl"
        asked = (
            Asked(("compare", file, file), refused),
            Asked(("plan", "../in/model", *A100, "--measurements", file), refused),
        )
        return Input("measurements", name, ("model", "measurements.jsonl"), at("in/measurements.jsonl", spoil), asked)

    other = json.dumps(measured("final/onnxruntime/2", 0.005))

    def lines(bad: Spoiled) -> bytes:
        return f"{bad.text}\n{other}\n".encode("utf-8", "surrogatepass")

    summaries = spoiled(Document(summary, typed=_in_summary), f"{SEED} summary")
    rows = spoiled(Document(measured("baseline/torch/2", 0.02), typed=_in_measured), f"{SEED} measurements")
    written_so = {
        **INSTEAD,
        "two on a line": put((other + other).encode()),
        "an empty line": put(f"{other}\n\n{other}\n".encode()),
    }
    yield from turns(
        (of_summary(b.name, put(b.text.encode("utf-8", "surrogatepass")), b.refused) for b in summaries),
        (of_measurements(b.name, put(lines(b)), b.refused) for b in rows),
        (of_summary(name, spoil, True) for name, spoil in INSTEAD.items()),
        (of_measurements(name, spoil, name != "an empty line") for name, spoil in written_so.items()),
    )


def _in_summary(place: Place) -> bool:
    return place[0] in ("rows", "gates", "targets") and len(place) == 1


def _in_measured(place: Place) -> bool:
    return place[0] in ("variant", "call_s", "image_s", "nfe", "memory") and len(place) == 1
