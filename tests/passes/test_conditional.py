"""Learning passes on a conditional U-Net and on transformers, and feeds of calibration and parity."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import torch

import optimize
from optimize.diffusion.context import Context, Data, conditioned
from optimize.diffusion.model import Model
from optimize.diffusion.parity import noised_inputs, parity
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.passes.distill import Distill
from optimize.passes.prune import Prune
from optimize.passes.recover import Recover
from optimize.quantization.calibration import trajectory_inputs

KINDS = ["sd", "dit", "sd3", "flux"]


def guided(name: str) -> Model:
    return networks.model(networks.TINY[name], Sampler(steps=4, guidance=Guidance(cfg=1.0)))


def data_for(model: Model) -> Data:
    classes = model.denoiser.conditioning.kind == "class"
    return Data(torch.randn(8, *model.shape), torch.arange(8) if classes else None)


@pytest.mark.parametrize("name", KINDS)
def test_a_pruned_network_is_recovered_by_its_teacher(name: str) -> None:
    model = guided(name)
    pruned = optimize.apply(model, Prune(budget={"macs": 0.3}, importance="magnitude"))
    step = Recover(steps=16, batch=8, warmup=0, learning_rate=3e-4, denoising=0.0, ema=0.0, precision="fp32")
    context = Context(data=data_for(model), teacher=lambda name: model)
    recovered, record = step.apply(pruned, context)
    again, twice = step.apply(pruned, context)
    assert record["loss"]["last"] < record["loss"]["first"] and record == twice
    before, after = (parity(model, m.denoiser.network)["relative_l2"] for m in (pruned, recovered))
    assert after < before
    first, second = recovered.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("method", ["multistep_consistency", "trajectory_regression"])
@pytest.mark.parametrize("name", KINDS)
def test_a_student_of_two_calls_comes_nearer_to_its_guided_teacher(name: str, method: str) -> None:
    model = guided(name)
    step = Distill(
        method=method, nfe=2, steps=10, batch=4, warmup=0, teacher_steps=(2, 4), trajectories=8, trajectory_steps=4,
        precision="fp32", learning_rate=1e-3, ema=0.0,
    )  # fmt: skip
    student = optimize.apply(model, step, Context(data=data_for(model), teacher=lambda name: model))
    assert student.nfe == 2 and student.sampler.guidance.folded == 1.0
    assert torch.isfinite(student.sample([1, 2])).all()


@pytest.mark.parametrize("name", KINDS)
def test_calibration_and_parity_feed_what_the_network_is_told(name: str) -> None:
    model = guided(name)
    feeds = trajectory_inputs(model, samples=2, batch=2)
    names = {spec.name for spec in model.inputs}
    assert len(feeds) == 4 and all(set(feed) == names for feed in feeds)
    latents = model.inputs[0].name
    assert feeds[0][latents].shape == (4, *model.shape)  # both branches in one call
    feed = noised_inputs(model, model.denoiser.schedule.noisiest, 3, 0)
    assert set(feed) == names and feed[latents].shape == (3, *model.shape)
    again = parity(model, model.denoiser.network, levels=2, batch=2)
    assert again["relative_l2"] == 0.0


def test_given_conditions_reach_training_samples_in_order() -> None:
    model = networks.model(networks.TINY["sd"])
    text, mine = torch.randn(4, 7, 32), torch.randn(2, 7, 32)
    data = Data(torch.randn(4, *model.shape), conditions={"encoder_hidden_states": text})
    rows = torch.tensor([3, 0])
    assert torch.equal(conditioned(data, model).condition(rows)["encoder_hidden_states"], text[[3, 0]])
    told = replace(model, conditions={"encoder_hidden_states": mine})
    bare = conditioned(replace(data, conditions={}), told)
    assert torch.equal(bare.condition(rows)["encoder_hidden_states"], mine[[1, 0]])
    stand_in = conditioned(replace(data, conditions={}), model).condition(rows)
    assert torch.equal(stand_in["encoder_hidden_states"], model.condition([3, 0])["encoder_hidden_states"])


def test_data_of_a_class_conditional_model_stays_as_it_is(tiny_model: Model, tiny_data: Data) -> None:
    assert conditioned(tiny_data, tiny_model) is tiny_data
    assert torch.equal(tiny_data.condition(torch.tensor([12, 3])), torch.tensor([2, 3]))
