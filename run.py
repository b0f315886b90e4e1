"""Train one network, or a study (``-m``): see ``python run.py --help`` and ``conf/``."""

from lightning_fisher.experiment import main

if __name__ == "__main__":
    main()
