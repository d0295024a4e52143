"""nanoGPT's model and training step in PyTorch: LayerNorm, learned positions, fused attention, dropout 0.2, AdamW, bf16."""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.dropout = heads, 0.2
        self.attention_norm, self.norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.rise, self.fall = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.attention_norm(x)).split(width, 2)
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in split)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        x = x + F.dropout(self.output(mixed.transpose(1, 2).reshape(x.shape)), self.dropout, self.training)
        return x + F.dropout(self.fall(F.gelu(self.rise(self.norm(x)))), self.dropout, self.training)


class GPT(nn.Module):
    """Mean cross-entropy of tokens and targets `[B, L]`."""

    def __init__(self, vocab_size: int, context: int, width: int, layers: int, heads: int):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.readout = nn.LayerNorm(width, bias=False), nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.readout(self.norm(x)).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def steps(
    batch: int, context: int, compiled: bool, width: int = 384, layers: int = 6, heads: int = 6
) -> Iterator[tuple[str, float, int]]:
    """Name, seconds of a training step, and parameters, of the model as it is and compiled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    net = GPT(65, context, width, layers, heads).to(device)
    count = sum(x.numel() for x in net.parameters())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=device == "cuda")
    tokens = torch.randint(0, 65, (batch, context), device=device)
    for name, run in [("bf16 eager", net)] + [("bf16 compiled", torch.compile(net))] * compiled:
        for _ in range(5):
            _step(run, net, optimizer, tokens)
        seconds = []
        for _ in range(3):
            _wait(device)
            begin = time.perf_counter()
            for _ in range(20 if device == "cuda" else 1):
                _step(run, net, optimizer, tokens)
            _wait(device)
            seconds.append((time.perf_counter() - begin) / (20 if device == "cuda" else 1))
        yield f"{name}, {count:,} parameters", sorted(seconds)[1], count


def _step(run: nn.Module, net: GPT, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        loss = run(tokens, tokens)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
