"""The served loop draws the library's images bit for bit, without torch, whatever the sampler; bad requests are named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from optimize.architectures.artifact import sampler_json
from optimize.diffusion import parameterization
from optimize.diffusion.denoiser import Conditioning, Denoiser
from optimize.diffusion.model import Model, Structure
from optimize.diffusion.network import TensorSpec
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import ALL_SOLVERS, Guidance, Sampler
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.diffusion.solvers import NEXT
from optimize.serving._loop import Asked, Loop, refusals
from optimize.serving._repository import conditions, write_code

VP = from_diffusers({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})
SIGHTED = from_diffusers({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
INPUTS = (TensorSpec("sample", ("B", 2, 4, 4)), TensorSpec("timestep", ("B",)), TensorSpec("class_labels", ("B",)))


class Wave:
    """A network whose output depends on all its inputs, each sample on its own."""

    inputs = INPUTS
    calls: list[int]

    def __init__(self) -> None:
        self.calls = []

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.calls.append(len(sample))
        labels = torch.zeros(len(sample)) if class_labels is None else class_labels.float()
        return torch.sin(3 * sample + (timestep / 400 + labels / 7).view(-1, 1, 1, 1)).float()


def model(sampler: Sampler, prediction: Any = "v", schedule: Schedule = VP, kind: Any = "class") -> Model:
    conditioning = Conditioning("class", 10, 10) if kind == "class" else Conditioning()
    denoiser = Denoiser(Wave(), Parameterization(prediction), schedule, conditioning)
    return Model(denoiser, sampler, Structure("none", {}), (2, 4, 4))


def loop(of: Model, kept: dict[str, np.ndarray] | None = None) -> Loop:
    """The loop over the same network, from the JSON an artifact holds."""
    network = of.denoiser.network

    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        return network(**{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in feed.items()}).numpy()

    return Loop(sampler_json(of), call, of.denoiser.names, kept)


SEEDS = np.array([3, 0, 12345678901234, 7], np.int64)
SAMPLERS = {
    "ddim": Sampler(steps=4),
    "clipped": Sampler(steps=4, clip=0.8),
    "one step": Sampler(steps=1),
    "own times": Sampler(steps=2, timesteps=(999.0, 499.0), guidance=Guidance(folded=0.5)),
    "guided": Sampler(steps=4, guidance=Guidance(cfg=0.7)),
    "guided in two calls": Sampler(steps=4, clip=1.0, guidance=Guidance(cfg=0.7, batched=False)),
    "guided in an interval": Sampler(steps=6, guidance=Guidance(cfg=2.0, interval=(200.0, 700.0))),
    "heun guided": Sampler(solver="heun", steps=5, guidance=Guidance(cfg=0.3)),
    "dpmpp_2m": Sampler(solver="dpmpp_2m", steps=5, spacing="logsnr"),
    "ipndm": Sampler(solver="ipndm", steps=7, clip=1.0),
    "pndm": Sampler(solver="pndm", steps=5),
    "noise estimate kept": Sampler(steps=4, clip=0.8, use_clipped_model_output=False),
}


LAID = {  # by diffusers' schedulers
    "strides of DDIM": ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "ddim"),
    "scaled noise": ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"}, "ddim"),
    "Karras": ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "dpmpp_2m"),
    "EDM": ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "dpmpp_2m"),
    "EDM's v": ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "ddim"),
    "shifted flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "ddim"),
}


@pytest.mark.parametrize("name", LAID)
def test_the_grid_of_a_scheduler_is_served_bit_for_bit(name: str) -> None:
    config, solver = LAID[name]
    denoiser = Denoiser(Wave(), parameterization.from_diffusers(config), from_diffusers(config))
    of = Model(denoiser, Sampler(solver=solver, spacing="scheduler", steps=5), Structure("none", {}), (2, 4, 4))
    about = json.loads(json.dumps(sampler_json(of)))
    assert not refusals(about, ["sample", "timestep"])
    made = Loop(about, lambda feed: of.denoiser.network(**{k: torch.from_numpy(v) for k, v in feed.items()}).numpy())
    assert np.array_equal(made.draw(Asked(SEEDS)), of.sample(SEEDS.tolist()).numpy())


def test_the_loop_of_diffusers_itself_is_not_served() -> None:
    of = model(Sampler(solver="scheduler"), schedule=from_diffusers({"_class_name": "UniPCMultistepScheduler"}))
    (why,) = refusals(sampler_json(of), ["sample", "timestep", "class_labels"])
    assert why.startswith("solver scheduler is the loop of diffusers; name one in the recipe")


def test_the_library_and_the_loop_have_the_same_solvers() -> None:
    assert set(NEXT) == set(ALL_SOLVERS) - {"scheduler"}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["class", "none"])
def test_every_sampler_draws_the_librarys_images_bit_for_bit(name: str, kind: str) -> None:
    if kind == "none" and SAMPLERS[name].guidance.cfg:
        pytest.skip("no unconditional branch to guide with")
    of = model(SAMPLERS[name], kind=kind, schedule=SIGHTED if name == "pndm" else VP)
    expected = of.sample(SEEDS.tolist()).numpy()
    assert np.unique(expected).size > 50
    assert np.array_equal(loop(of).draw(Asked(SEEDS)), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow"])
@pytest.mark.parametrize(
    "schedule", [VP, Schedule(kind="flow"), Schedule(kind="ve", sigma_max=20.0)], ids=["vp", "flow", "ve"]
)
def test_every_prediction_and_schedule_draws_the_librarys_images(prediction: str, schedule: Schedule) -> None:
    times = (0.9, 0.5, 0.2) if schedule.kind == "flow" else None  # at 1 no epsilon says anything of the image
    of = model(Sampler(solver="heun", steps=3, timesteps=times), prediction, schedule)
    expected = of.sample(SEEDS.tolist()).numpy()
    assert np.isfinite(expected).all() and np.array_equal(loop(of).draw(Asked(SEEDS)), expected)


def test_a_real_network_draws_the_librarys_images_guided_in_one_batch(tiny_model: Model) -> None:
    with torch.inference_mode():
        assert np.array_equal(loop(tiny_model).draw(Asked(np.arange(3))), tiny_model.sample(range(3)).numpy())


def told(name: str, sampler: Sampler) -> Model:
    """A tiny network of that kind with conditions of its own: three rows of what it is told, one of the null branch."""
    of = networks.model(networks.TINY[name], sampler)
    about, drawn = of.denoiser.conditioning, torch.Generator().manual_seed(1)
    normal = [spec for spec in about.tensors if spec.fill == "normal"]
    given = {spec.name: torch.randn(spec.shape(3), generator=drawn) for spec in normal}
    nulls = {f"null.{s.name}": torch.randn(s.shape(1), generator=drawn) for s in normal if s.name in about.nulled}
    return replace(of, conditions={**given, **nulls})


def kept(of: Model, folder: Path) -> dict[str, np.ndarray]:
    """The conditions that a repository of the model holds."""
    folder.mkdir(exist_ok=True)
    save_file(dict(of.conditions), folder / "conditions.safetensors")
    return conditions(folder, sampler_json(of))


@pytest.mark.parametrize("name", ["dit", "pixart", "sd", "sdxl", "inpainting", "controlnet", "sd3", "flux", "unet1d"])
def test_latents_of_every_kind_of_network_are_the_librarys_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Other names of inputs, scaled times, learned variance, further channels, shared inputs; latents are not clipped."""
    guidance = Guidance() if name in ("unet1d", "flux") else Guidance(cfg=1.5)
    of = told(name, Sampler(steps=2, guidance=guidance))
    expected = of.sample(SEEDS.tolist()).numpy()
    assert of.limit is None and np.abs(expected).max() > 1
    assert np.array_equal(loop(of, kept(of, tmp_path)).draw(Asked(SEEDS)), expected)


def test_a_client_gives_its_own_tensors_and_those_of_the_unconditional_branch(tmp_path: Path) -> None:
    of = told("sd", Sampler(steps=2, guidance=Guidance(cfg=1.5)))
    name, null = "encoder_hidden_states", "null.encoder_hidden_states"
    rows = {name: of.conditions[name].flip(0)[:2].contiguous(), null: of.conditions[null] * 2}
    expected = replace(of, conditions=rows).sample([0, 1]).numpy()
    given = {name: rows[name].numpy(), null: rows[null].expand(2, -1, -1).numpy()}
    own = loop(of, kept(of, tmp_path))
    assert np.array_equal(own.draw(Asked(np.arange(2), tensors=given)), expected)
    assert not np.array_equal(own.draw(Asked(np.arange(2))), expected)
    assert np.array_equal(loop(of).draw(Asked(np.arange(2), tensors=given)), expected)  # nothing is kept


def test_tensors_that_will_not_do_are_refused_by_name(tmp_path: Path) -> None:
    of, seeds = told("sd", Sampler(steps=2, guidance=Guidance(cfg=1.5))), np.arange(2)
    name, value = "encoder_hidden_states", np.ones((2, 7, 32), np.float32)
    own, bare = loop(of, kept(of, tmp_path)), loop(of)
    assert own.refusal(Asked(seeds)) is None and own.refusal(Asked(seeds, tensors={name: value})) is None
    assert f"{name}: this model is told it and nothing of it is kept here; give it" in str(bare.refusal(Asked(seeds)))
    wrong = value.copy()
    wrong[1, 2, 3] = np.nan
    assert f"{name}: it holds numbers that are not finite" in str(own.refusal(Asked(seeds, tensors={name: wrong})))
    said = str(own.refusal(Asked(seeds, tensors={name: value[:, :5]})))
    assert f"{name}: its shape is (5, 32) for each sample, and null.{name} (7, 32); give both in the same" in said


def test_samples_are_held_to_the_models_own_limit() -> None:
    of = replace(model(Sampler(steps=1)), limit=0.25)
    drawn = loop(of).draw(Asked(SEEDS))
    assert np.abs(drawn).max() == 0.25 and np.array_equal(drawn, of.sample(SEEDS.tolist()).numpy())
    free = replace(of, limit=None)
    assert np.abs(loop(free).draw(Asked(SEEDS))).max() > 1


def test_each_sample_has_its_own_label_and_weight_and_is_the_one_drawn_alone() -> None:
    of = model(Sampler(steps=4, guidance=Guidance(cfg=0.7)))
    labels, weights = np.array([1, 9, 1, 4]), np.array([0.0, 0.7, 2.5, 0.0])
    together = loop(of).draw(Asked(SEEDS, labels, weights))
    for i in range(4):
        alone = loop(of).draw(Asked(SEEDS, labels, weights)[np.array([i])])
        assert np.array_equal(together[i], alone[0])
    wanted = replace(of, sampler=Sampler(steps=4, guidance=Guidance(cfg=2.5)))
    assert np.array_equal(together[2], loop(wanted).draw(Asked(SEEDS[2:3], labels[2:3]))[0])
    assert not np.array_equal(together[2], loop(of).draw(Asked(SEEDS[2:3], labels[2:3]))[0])


def test_a_guided_batch_is_one_call_a_step_and_an_unguided_sample_is_not_guided() -> None:
    of = model(Sampler(steps=3, guidance=Guidance(cfg=0.7)))
    loop(of).draw(Asked(SEEDS, weights=np.array([0.7, 0.0, 0.7, 0.7])))
    assert of.denoiser.network.calls == [6, 6, 6, 1, 1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": [-1]}, "seed: -1 given, allowed 0 to 9223372036854775807"),
        ({"seeds": [0], "labels": [10]}, "label: 10 given, allowed 0 to 9"),
        ({"seeds": [0, 1], "labels": [3, -2]}, "label: -2 given, allowed 0 to 9"),
        ({"seeds": [0], "weights": [-0.5]}, "guidance: -0.5 given, allowed 0 and above"),
        ({"seeds": [0], "weights": [float("nan")]}, "guidance: nan given"),
    ],
)
def test_a_bad_request_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    asked = {k: np.array(v) for k, v in given.items()}
    assert said in str(loop(model(Sampler(steps=2, guidance=Guidance(cfg=0.5)))).refusal(Asked(**asked)))


def test_what_a_model_does_not_have_is_refused() -> None:
    seeds, one = np.array([0]), np.array([1])
    plain, folded = model(Sampler(steps=2), kind="none"), model(Sampler(steps=2, guidance=Guidance(folded=0.5)))
    assert "not class-conditional" in str(loop(plain).refusal(Asked(seeds, labels=one)))
    assert "no unconditional branch" in str(loop(plain).refusal(Asked(seeds, weights=one)))
    assert "0.5 is folded into this network" in str(loop(folded).refusal(Asked(seeds, weights=one)))
    assert loop(folded).refusal(Asked(seeds, labels=one)) is None


def test_loops_that_cannot_be_served_are_refused_by_name() -> None:
    about = sampler_json(model(Sampler(steps=2)))
    names = [spec.name for spec in INPUTS]
    assert refusals(about, names) == []
    assert (
        'solver "euler_a" is not known. Allowed: ddim'
        in refusals(changed(about, "sampler", solver="euler_a"), names)[0]
    )
    assert 'prediction "x" is not known' in refusals(changed(about, "parameterization", prediction="x"), names)[0]
    assert 'conditioning "text" is not known' in refusals(changed(about, "conditioning", kind="text"), names)[0]
    assert "the loop feeds what is denoised, its time, class_labels" in refusals(about, ["sample", "timestep"])[0]
    guided = changed(about, "sampler", guidance={"cfg": 1.0})
    assert "needs an unconditional branch" in refusals(changed(guided, "conditioning", null=None), names)[0]


def changed(about: dict[str, Any], part: str, **values: Any) -> dict[str, Any]:
    return about | {part: about[part] | values}


def test_the_copied_code_needs_numpy_alone(tmp_path: Path) -> None:
    """In a fresh process without this library, torch and pydantic; drawn by the copies, compared with the library."""
    import json

    of = model(Sampler(solver="dpmpp_2m", steps=4, guidance=Guidance(cfg=0.5)))
    write_code(tmp_path)
    (tmp_path / "sampler.json").write_text(json.dumps(sampler_json(of)))
    code = """
import json, sys
for name in ("optimize", "torch", "pydantic", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from sampling.loop import Asked, Loop
def network(feed):
    shift = feed["timestep"] / np.float32(400) + feed["class_labels"].astype(np.float32) / np.float32(7)
    return np.cos(feed["sample"] + shift.reshape(-1, 1, 1, 1)).astype(np.float32)
images = Loop(json.load(open(sys.argv[1] + "/sampler.json")), network).draw(Asked(np.arange(4)))
np.save(sys.argv[1] + "/images.npy", images)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)

    def same(feed: dict[str, np.ndarray]) -> np.ndarray:
        shift = feed["timestep"] / np.float32(400) + feed["class_labels"].astype(np.float32) / np.float32(7)
        return np.cos(feed["sample"] + shift.reshape(-1, 1, 1, 1)).astype(np.float32)

    assert np.array_equal(np.load(tmp_path / "images.npy"), Loop(sampler_json(of), same).draw(Asked(np.arange(4))))
    assert not [f.name for f in tmp_path.rglob("*.py") if "from optimize" in f.read_text()]
