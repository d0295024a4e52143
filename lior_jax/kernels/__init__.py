"""Fused kernels for NVIDIA GPUs (Pallas, lowered through Triton), each beside a plain form in `physics` that it must equal."""
