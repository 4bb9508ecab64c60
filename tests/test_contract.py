"""Contracts that every registered pass, exporter and runner keeps, whatever is registered."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from support.restored import saved

from optimize.diffusion.context import Context, Data
from optimize.diffusion.model import Model
from optimize.registry import EXPORTERS, PASSES, RUNNERS
from optimize.storage.trust import verify

SMALL: dict[str, dict[str, Any]] = {  # the smallest config of a pass that has required fields or would run long
    "prune": {"budget": {"macs": 0.3}, "batch": 8},
    "recover": {"steps": 2, "batch": 4},
    "distill": {"steps": 2, "batch": 4, "nfe": 2},
    "quantize": {"samples": 8},
}
FRESH = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    sys.modules["torch_pruning"] = None
    def refuse(*args, **kwargs): raise AssertionError("torch.load was called")
    torch.load = refuse
    from optimize.architectures.artifact import load_model
    from optimize.diffusion.parity import noised_inputs
    from safetensors.torch import save_file
    model = load_model(Path(sys.argv[1]))
    with torch.inference_mode():
        outputs = {f"{t}": model.denoiser.network(**noised_inputs(model, t, 4, 0)).contiguous() for t in (0.0, 500.0, 999.0)}
    save_file(outputs, sys.argv[2])
    """
)


def make(name: str) -> Any:
    return PASSES.get(name).model_validate(SMALL.get(name, {}))


def context(model: Model, data: Data) -> Context:
    return Context(seed=1, data=data, teacher=lambda name: model)


@pytest.mark.parametrize("name", PASSES.names())
def test_a_pass_config_comes_back_from_json_and_refuses_unknown_keys(name: str) -> None:
    step = make(name)
    assert type(step).model_validate(json.loads(json.dumps(step.to_json()))) == step
    with pytest.raises(ValueError, match="surely_unknown"):
        type(step).model_validate({**SMALL.get(name, {}), "surely_unknown": 1})


@pytest.mark.parametrize("name", PASSES.names())
def test_a_pass_declares_what_the_plan_needs(name: str) -> None:
    step = make(name)
    assert step.name == name
    assert all(isinstance(v, frozenset) for v in (step.requires, step.provides))
    assert all(reason for reason in step.refuses_after.values())


@pytest.mark.parametrize("name", PASSES.names())
def test_a_pass_is_deterministic_leaves_its_input_alone_and_restores_in_a_fresh_process(
    name: str, tiny_model: Model, tiny_data: Data, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in tiny_model.module.state_dict().items()}
    one, record = make(name).apply(tiny_model, context(tiny_model, tiny_data))
    two, again = make(name).apply(tiny_model, context(tiny_model, tiny_data))
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.module.state_dict().items())
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(again))
    files = [verify(saved(m, tmp_path / n))["files"] for n, m in (("one", one), ("two", two))]
    assert files[0] == files[1]

    from safetensors.torch import load_file

    from optimize.diffusion.parity import noised_inputs

    output = tmp_path / "output.safetensors"
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "one"), str(output)], check=True, timeout=240)
    restored = load_file(output)
    with torch.inference_mode():
        for t, got in restored.items():
            assert torch.equal(got, one.denoiser.network(**noised_inputs(one, float(t), 4, 0))), f"{name} at t = {t}"


@pytest.mark.parametrize("registry", [EXPORTERS, RUNNERS], ids=["exporters", "runners"])
def test_exporters_and_runners_have_defaults_and_strict_configs(registry: Any) -> None:
    assert registry.names()
    for name in registry.names():
        plugin = registry.get(name)
        assert plugin.model_validate({}).name == name
        with pytest.raises(ValueError, match="surely_unknown"):
            plugin.model_validate({"surely_unknown": 1})
