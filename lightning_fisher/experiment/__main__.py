"""``python -m lightning_fisher.experiment``: ``lightning-fisher``, with modules of the current folder importable."""

from lightning_fisher.experiment import main

if __name__ == "__main__":
    main()
