"""Names of the precisions of matrix products; `numerics.contract` gives them their meaning."""

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16"]
