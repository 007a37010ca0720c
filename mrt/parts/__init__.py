"""The parts of a method, one idea of the paper per file. A stage is a list of them
(:mod:`mrt.engine.stages`).

base           what a part is: what it needs, the networks it adds, its losses, its state
supervise      detection loss on the source's labels
source_record  what only labelled images can tell, kept in the weights' header
pseudo_labels  detection loss on what the teacher finds in target images, with dynamic thresholds
outside_labels labels of somebody else's, alone or fused with the teacher's
distill        soft labels: the teacher's scores and boxes, without a threshold
align          discriminators behind a gradient reversal layer
rebuild        the masked autoencoder
retrain        selective retraining
settings       their sections of the settings, which need no torch
"""

NETWORKS = (
    "mae",
    "discriminators",
)  # names of the built-in parts' networks in a student and in checkpoints, in their order there
