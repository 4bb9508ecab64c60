"""Networks by class: how each is built from its config, what it is fed and what that means; a Model to files and back.

Read `known.py` first: the table of classes. `artifact.py` saves and loads a Model, `any_module.py` takes any nn.Module by
import path, `components.py` the other parts of a pipeline, `lora.py` merges or keeps a LoRA (`adapters/` reads it).
Not here: what a pass needs to know of a network's inside, which belongs to its own room.
"""
