"""Train a model: python train.py --config configs/quickstart.yaml"""

from lior_jax.cli.train import main

if __name__ == "__main__":
    main()
