"""What training is made of: the loop that resumes exactly, and the objectives of step distillation.

Read `loop.py` first. The passes are `passes/recover.py` and `passes/distill.py`.
Not here: what is trained for; a pass brings its loss.
"""
