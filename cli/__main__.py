"""``python -m mrt_cli``, and so ``torchrun ... -m mrt_cli``."""

from .app import main

if __name__ == "__main__":  # worker processes import this module again
    main()
