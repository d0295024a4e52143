"""Use a trained model: python infer.py --checkpoint runs/quickstart --prompt "The " """

from lior_jax.cli.infer import main

if __name__ == "__main__":
    main()
