"""What a LoRA file holds and which layers of a network it is for, in the namings of the programs that write such files.

Read `to_layers.py` first: a file's names to a network's layers. `contents.py` reads tensors, `strength.py` alphas,
`foreign.py` tells what is no LoRA, `naming.py` and `other_names.py` know the namings. Merging is `architectures/lora.py`.
Not here: building networks; what comes in are the names and shapes of their layers.
"""
