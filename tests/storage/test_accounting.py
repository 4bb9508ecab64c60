"""Every tensor accounted for: what is missing, unexpected, misshapen, not finite or quantized is one error by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from optimize.errors import ArtifactError
from optimize.storage.accounting import BESIDE, listed, load_state, refuse_quantized

HERE = Path("w.safetensors")


class Plain(nn.Module):
    """A layer, a batch normalization, and a mask that holds infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((2,), -torch.inf))


class Tied(nn.Module):
    """One table under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Embedding(3, 2), nn.Embedding(3, 2)
        self.two.weight = self.one.weight


def tensors(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor | None] = {k: v.clone() for k, v in Plain().state_dict().items()}
    made |= {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in made.items() if v is not None}


def test_all_tensors_are_taken_over() -> None:
    given, module = tensors(), Plain()
    load_state(module, given, HERE)
    assert all(torch.equal(v, given[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer__bias": None}, r"1 missing \(layer.bias\)"),
        ({"more": torch.zeros(1)}, r"1 unexpected \(more\)"),
        ({"layer__bias": torch.zeros(4)}, r"1 of another shape \(layer.bias \[3\] in the network, \[4\] in the file\)"),
        ({"layer__bias": torch.zeros(3, dtype=torch.int8)}, r"layer.bias is int8, and the network wants floating-point"),
        ({"layer__bias": torch.zeros(3, dtype=torch.complex64)}, r"layer.bias is complex64, and the network wants float"),
        ({"norm__num_batches_tracked": torch.zeros(())}, r"num_batches_tracked is F32, and the network wants whole numbers"),
        ({"layer__bias": None, "more": torch.zeros(1)}, r"1 missing \(layer.bias\); 1 unexpected \(more\)"),
        ({"layer__bias": torch.tensor([0.0, torch.nan, 0.0])}, r"1 with NaN or infinities \(layer.bias\)"),
        ({"layer__bias": torch.tensor([0.0, torch.inf, 0.0])}, r"1 with NaN or infinities \(layer.bias\)"),
        ({"mask": torch.full((2,), torch.nan)}, r"1 with NaN or infinities \(mask\)"),
        ({"layer__weight__absmax": torch.zeros(1)}, r"quantized, bitsandbytes: layer.weight.absmax"),
        ({"layer__weight__quant_state__bitsandbytes__nf4": torch.zeros(1)}, r"quantized, bitsandbytes"),
        ({"layer__qweight": torch.zeros(1), "layer__weight": None}, r"quantized, GPTQ or AWQ"),
        ({"layer__weight___data": torch.zeros(1), "layer__weight": None}, r"quantized, optimum-quanto"),
        ({"layer__scale_weight": torch.ones(())}, r"quantized, float8 with scales \(ComfyUI\)"),
        ({"scaled_fp8": torch.zeros(0)}, r"quantized, float8 with scales \(ComfyUI\)"),
        ({"layer__weight_scale": torch.ones(())}, r"quantized, a format with scales: layer.weight_scale"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, torch.Tensor | None], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        load_state(Plain(), tensors(**changes), HERE)


def test_a_counter_of_batches_may_be_missing_and_a_mask_may_hold_infinities() -> None:
    module = Plain()
    load_state(module, tensors(norm__num_batches_tracked=None), HERE)
    assert int(module.norm.num_batches_tracked) == 0 and bool(module.mask.isinf().all())


def test_a_table_under_two_names_may_be_stored_under_either_or_both_if_they_are_equal() -> None:
    table = torch.randn(3, 2)
    for given in ({"one.weight": table}, {"two.weight": table}, {"one.weight": table, "two.weight": table.clone()}):
        module = Tied()
        load_state(module, given, HERE)
        assert torch.equal(module.one.weight, table) and torch.equal(module.two.weight, table)
    with pytest.raises(ArtifactError, match=r"one.weight and two.weight are one tensor in the network, and differ"):
        load_state(Tied(), {"one.weight": table, "two.weight": table + 1}, HERE)


class CLIPTextModel(Plain):
    """By its name one of transformers', whose files have a level that comes and goes."""


class AutoencoderKL(nn.Module):
    """By its name one of diffusers', whose attention had other names."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"to_q": nn.Linear(2, 2), "to_out": nn.ModuleList([nn.Linear(2, 2)])})


def test_names_of_other_versions_are_known_for_their_classes_alone() -> None:
    given = {f"text_model.{k}": v for k, v in tensors().items()} | {"position_ids": torch.arange(3)}
    load_state(CLIPTextModel(), given, HERE)
    with pytest.raises(ArtifactError, match=r"missing .*unexpected"):
        load_state(Plain(), given, HERE)
    old = {f"attention.{k}": torch.ones(2, 2) if "weight" in k else torch.ones(2) for k in ("query.weight", "query.bias", "proj_attn.weight", "proj_attn.bias")}  # fmt: skip
    module = AutoencoderKL()
    load_state(module, old, HERE)
    assert all(bool((v == 1).all()) for v in module.state_dict().values())


def test_a_name_that_two_spellings_of_the_file_stand_for_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"1 there twice \(text_model.layer.bias\)"):
        load_state(CLIPTextModel(), tensors(text_model__layer__bias=torch.zeros(3)), HERE)


def test_at_most_ten_names_are_shown_and_each_is_short() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(40))

    names = {f"{'long' * 200}.{i}": torch.zeros(1) for i in range(300)}
    with pytest.raises(
        ArtifactError, match=r"80 missing \(.* and 75 more\); 300 unexpected \(.* and 295 more\)"
    ) as raised:
        load_state(Wide(), names, HERE)
    assert len(str(raised.value)) < 2000 and str(raised.value).count("…") == 5


def test_names_that_cannot_be_printed_are_escaped() -> None:
    assert listed(["a\n\x1b[31mb"]) == "'a\\n\\x1b[31mb'"


@pytest.mark.parametrize("about", [{"quant_method": "bitsandbytes"}, "torchao", {"x": 1}])
def test_a_config_of_quantized_weights_is_refused(about: object) -> None:
    with pytest.raises(ArtifactError, match=r"quantization_config: .*quantized weights are not read"):
        refuse_quantized({"quantization_config": about}, HERE)
    refuse_quantized({"quantization_config": None}, HERE)


def test_everything_a_file_may_hold_beside_its_network_has_a_reason() -> None:
    assert all(len(reason) > 10 and isinstance(kinds, tuple) for _, kinds, reason in BESIDE)
