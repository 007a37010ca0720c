"""``python -m mrt_cli``, and so ``torchrun ... -m mrt_cli``."""

from mrt_cli.app import main

main()
