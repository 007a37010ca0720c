"""Faster ways to compute what the other modules of ``mrt.models`` define.

========================  ==============================================================================
``precision``             tokens stay in 16 bits through norms and residual sums under autocast
``lean``                  functions that keep fewer activations for the backward pass
``same_conv``             TensorFlow's "SAME" convolution without a padded copy of its input
``carried_norms``         a frozen batch norm applied by the convolution before it
``packed``                products and convolutions by oneDNN, for prediction on a CPU
========================  ==============================================================================

Each is exact: it computes the same function as the plain PyTorch code it replaces, and its results differ
from that code's by float rounding only. A test holds each against the plain code.

Of ``mrt.models``, only this folder uses private PyTorch functions or changes the class of an existing module,
so it is the place to look when a new PyTorch release breaks something. Nothing depends on it for what it
computes: with plain PyTorch in its place everything works, but takes more time or memory.
"""
