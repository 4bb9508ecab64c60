"""The model card of the digits example as Markdown, from the figures in `card.json`."""

from typing import Any

Card = dict[str, Any]


def markdown(card: Card) -> str:
    """The whole card; every number in it comes from `card`."""
    parts = (heading, use, training, quality, accuracy, copies)
    return "\n\n".join(part(card) for part in parts) + "\n"


def heading(card: Card) -> str:
    network, data = card["network"], card["data"]
    return f"""# Handwritten digits, class-conditional diffusion

A {network["parameters"] / 1e6:.2f}M-parameter `{network["class"]}` that draws 16x16 grey digits of a given class, in
diffusers' layout. v-prediction, squared-cosine schedule, 1,000 timesteps. Class {network["null_class"]} is the null
class of classifier-free guidance.

- **Data**: {data["name"]};
  {data["authors"]}; doi {data["doi"]}; {data["licence"]}. 8x8 scans resized to 16x16 (bilinear).
  {data["training_scans"]:,} scans trained on, {data["held_out_scans"]} held out, evenly over the classes.
- **Weights**: SHA-256 `{network["sha256"]}`
- **Meant for** trying out and testing model compression; the images are of no other use.

![Samples, a column a class](../samples.png)"""


def use(card: Card) -> str:
    return """## Loading

```python
from diffusers import DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("examples/digits/model/unet")
scheduler = DDPMScheduler.from_pretrained("examples/digits/model/scheduler")
v = unet(z, t, class_labels=labels).sample  # z (B, 1, 16, 16), labels (B,) in 0..10
```"""


def training(card: Card) -> str:
    t = card["training"]
    return f"""## Training

{t["steps"]:,} steps at batch {t["batch"]} in {t["training_seconds"] / 60:.0f} minutes on two CPU cores ({t["dtype"]}).
AdamW, learning rate {t["learning_rate"]:g} with {t["warmup"]} steps of warm-up and a cosine to zero, weight decay
{t["weight_decay"]:g}, gradient norm clipped at {t["gradient_clip"]:g}, dropout 0.1, labels dropped with probability
{t["condition_dropout"]:g}, uniform t, no augmentation, weights averaged (decay {t["ema_decay"]:g}), seed
{t["seed"]}."""


def quality(card: Card) -> str:
    fd, equal, s, clipping = card["fd"], card["equal_count"], card["sampling"], card["clipping"]
    names = {"guided": "guided", "unguided": "unguided", "scans": "scans instead"}
    rows = [f"| {name} | {columns(fd[key])} | {spread(equal[key])} |" for key, name in names.items()]
    variants = "\n".join(f"| {key} | {value:.3f} |" for key, value in clipping.items() if key != "images")
    return f"""## Quality

Fréchet distance (FD) on the 64 features of `examples/digits/features`, so not comparable with FID. {s["images"]:,}
images, DDIM, {s["steps"]} steps, guidance w = {s["guidance"]:g} (x^ = (1 + w) x^_cond - w x^_null), float32. Last
column: {equal["images"]} images against {equal["images"]} scans, a random half of all; mean ± standard deviation over
{equal["splits"]} splits. The last row puts scans in the place of generated images: training scans against the held-out
ones, and one half of all scans against the other.

| | FD to held-out scans | FD to training scans | FD to a random half |
|---|---|---|---|
{chr(10).join(rows)}

What the sampler does about x^ outside [-1, 1] matters ({clipping["images"]} images, guided, FD to training scans):

| clipping of x^ | FD |
|---|---|
{variants}"""


def columns(fd: dict[str, float]) -> str:
    return " | ".join(f"{fd[key]:.3f}" if key in fd else "–" for key in ("held_out", "training"))


def spread(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['std']:.3f}"


def accuracy(card: Card) -> str:
    names = {"guided": "guided", "unguided": "unguided", "held_out": "held-out scans"}
    rows = [
        f"| {name} | {100 * card['class_accuracy'][key]['mean']:.1f} | "
        + " | ".join(f"{100 * value:.0f}" for value in card["class_accuracy"][key]["by_class"])
        + " |"
        for key, name in names.items()
    ]
    return f"""## Class accuracy

Share, in percent, that the independent classifier `examples/digits/classifier` takes for the class asked for.

| | all | {" | ".join(map(str, range(10)))} |
|---|---|{"---|" * 10}
{chr(10).join(rows)}"""


def copies(card: Card) -> str:
    rows = [f"| {key} | {value['ratio']:.3f} | {value['closest']:.3f} |" for key, value in card["memorization"].items()]
    return f"""## Memorization

L2 distance of a generated image to its nearest training scan, over the same distance of a held-out scan: ratio of the
means, and of the smallest. Well below 1 would mean copies. Guidance draws images towards the middle of their class,
which lowers the ratio as well.

| | mean | smallest |
|---|---|---|
{chr(10).join(rows)}"""
