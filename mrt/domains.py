"""The two domains by name. Batches, losses and logs use these words everywhere."""

SOURCE = "source"  # the labelled images that a stage learns from
TARGET = "target"  # the unlabelled images that it adapts to
DOMAINS = (SOURCE, TARGET)  # in this order they stand in a joint batch
