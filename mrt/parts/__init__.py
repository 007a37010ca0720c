"""The parts of a method, one idea of the paper per file. A stage is a list of them
(:mod:`mrt.engine.stages`).

base           what a part is: what it needs, the networks it adds, its losses, its state
supervise      detection loss on the source's labels
pseudo_labels  detection loss on what the teacher finds in target images, with dynamic thresholds
align          discriminators behind a gradient reversal layer
rebuild        the masked autoencoder
retrain        selective retraining
settings       their sections of the settings, which need no torch
"""

NETWORKS = (
    "mae",
    "discriminators",
)  # names of the built-in parts' networks in a student and in checkpoints, in their order there
