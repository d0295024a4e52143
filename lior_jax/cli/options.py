"""Write the page of all options: python -m lior_jax.cli.options > docs/options.md"""

import sys

from lior_jax import options


def main() -> None:
    """Print the page, in UTF-8 regardless of the terminal's encoding."""
    sys.stdout.buffer.write(options.page().encode())


if __name__ == "__main__":
    main()
