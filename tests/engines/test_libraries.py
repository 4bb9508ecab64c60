"""What is refused before anything is built, by name, with the reason and what works instead."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

import pytest

from optimize.engines import libraries
from optimize.engines.libraries import Wish, refuse
from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.hardware import environment

FP16, INT8, FP8 = frozenset({"fp16"}), frozenset({"int8", "fp16"}), frozenset({"fp8", "fp16"})


@pytest.mark.parametrize("sm", [(7, 0), (9, 0), (10, 0)])
def test_tensorrt_rtx_cannot_target_some_gpus(sm: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"SM {sm[0]}.{sm[1]}: TensorRT-RTX cannot target it, only 7.5, 8.0.*kit"):
        refuse("tensorrt_rtx", "1.7.1", Wish(sm, FP16), None)


@pytest.mark.parametrize(
    ("module", "wish", "gpu", "kind", "said"),
    [
        ("tensorrt_rtx", Wish((8, 6), FP8), None, UserError, "SM 8.6: it has no FP8.*Quantize to int8"),
        ("tensorrt", Wish((8, 0), FP8), (8, 0), UserError, "SM 8.0: it has no FP8"),
        ("tensorrt_rtx", Wish((7, 5), INT8), None, UserError, "SM 7.5: TensorRT-RTX falls back or fails on INT8"),
        ("tensorrt", Wish((7, 5), frozenset({"bf16"})), (7, 5), UserError, "no BF16.*Export in fp16"),
        ("tensorrt_rtx", Wish((7, 5), FP16, ("sparse_weights",)), None, UserError, "2:4 sparse weights need SM 8.0"),
        ("tensorrt", Wish((7, 0), FP16, (), True), (7, 0), UserError, "compatibility begins with SM 8.0"),
        ("tensorrt_rtx", Wish((8, 6), FP16, (), True), None, UserError, "has no hardware-compatible plans"),
        ("tensorrt_rtx", Wish((8, 6), FP16, ("refit",)), None, UserError, "without a GPU .refit: use refit_individual"),
        ("tensorrt_rtx", Wish((8, 6), FP16, ("strip_weights",)), None, UserError, "refuses strip_weights.*without a GPU"),
        ("tensorrt", Wish((8, 6), FP16, ("refit", "refit_identical")), (8, 6), UserError, "exclude each other"),
        ("tensorrt", Wish((8, 6), FP16), None, EnvironmentLacks, "there is no GPU here. Use a build kit"),
        ("tensorrt", Wish((8, 6), FP16), (9, 0), EnvironmentLacks, "the GPU here is SM 9.0"),
        ("tensorrt", Wish((7, 0), FP16), (7, 0), EnvironmentLacks, "10.4 is the last. pip install 'tensorrt==10.4"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_reason(module: str, wish: Wish, gpu: Any, kind: type[OptimizeError], said: str) -> None:
    with pytest.raises(kind, match=said):
        refuse(module, "11.4.0" if module == "tensorrt" else "1.7.1", wish, gpu)


def test_versions_that_are_too_old_or_have_a_known_fault_are_refused() -> None:
    with pytest.raises(EnvironmentLacks, match=r"TensorRT 10.3.0 is too old"):
        refuse("tensorrt", "10.3.0", Wish((8, 6), FP16), (8, 6))
    with pytest.raises(UserError, match=r"11.3 can drop a GEMM bias.*refit_identical"):
        refuse("tensorrt", "11.3.0", Wish((8, 6), FP16, ("refit",)), (8, 6))


@pytest.mark.parametrize(
    ("module", "version", "wish", "gpu"),
    [
        ("tensorrt_rtx", "1.7.1", Wish((8, 0), INT8), None),
        ("tensorrt_rtx", "1.7.1", Wish((8, 9), FP8), None),
        ("tensorrt_rtx", "1.7.1", Wish((12, 0), FP16, ("refit_individual", "stream_weights", "sparse_weights")), None),
        ("tensorrt_rtx", "1.7.1", Wish((8, 6), FP16, ("refit",)), (8, 6)),
        ("tensorrt", "10.4.0", Wish((7, 0), FP16), (7, 0)),
        ("tensorrt", "11.4.0", Wish((8, 0), INT8, (), True), (9, 0)),
        ("tensorrt", "11.4.0", Wish((8, 6), INT8, ("refit", "strip_weights")), (8, 6)),
    ],
)
def test_what_works_is_not_refused(module: str, version: str, wish: Wish, gpu: Any) -> None:
    assert refuse(module, version, wish, gpu) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("module", "installed", "found"),
    [
        ("tensorrt", {"tensorrt": "11.4.0"}, "11.4.0"),
        ("tensorrt", {"tensorrt-cu12": "10.4.0", "tensorrt-rtx": "1.7.1"}, "10.4.0"),  # the pin of a V100's kit
        ("tensorrt_rtx", {"tensorrt-rtx-cu13": "1.7.1.116"}, "1.7.1.116"),
        ("tensorrt", {"tensorrt-rtx": "1.7.1"}, None),
    ],
)
def test_a_module_is_found_under_every_name_pip_knows_it_by(
    module: str, installed: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(environment, "version", version)
    environment.versions.cache_clear()
    try:
        assert libraries.found_version(module) == found
    finally:
        environment.versions.cache_clear()


def test_the_first_gpu_is_the_one_that_engines_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, sm, name in (
        (({"name": "A10", "sm": (8, 6)}, {"name": "T4", "sm": (7, 5)}), (8, 6), "A10"),
        (({"name": "H200"}, {"name": "T4", "sm": (7, 5)}), None, "H200"),  # told without its capability
        ((), None, ""),
    ):
        monkeypatch.setattr(libraries, "gpus", lambda found=found: found)
        assert (libraries.gpu_sm(), libraries.gpu_name()) == (sm, name)


def test_an_artifacts_folder_is_not_taken_for_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(
        EnvironmentLacks, match=r"does not load here \(there is a folder tensorrt alone\)\. pip install"
    ):
        libraries.load_module("tensorrt")
