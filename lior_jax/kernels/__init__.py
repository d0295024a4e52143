"""Fused kernels for NVIDIA GPUs (Pallas, lowered through Triton), each equal to a plain form in `physics`."""
