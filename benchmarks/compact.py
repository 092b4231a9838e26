"""Compacting one layer of a soup to a smaller rank: QR and a small SVD, against a dense SVD as PEFT makes it, in one run.

    python benchmarks/compact.py [--size 4096] [--summed 80] [--rank 16] [--turns 5] [--no-dense]

Ours takes turns and the median is printed; the dense SVD (`torch.linalg.svd` of the product with full matrices, what
`add_weighted_adapter` calls by default) is made once. Both give the best approximation of that rank: the difference of the
two results is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pipelines.soups.compact import compact


def main() -> None:
    """Print seconds a layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of the layer")
    parser.add_argument("--summed", type=int, default=80, help="ranks of the soup")
    parser.add_argument("--rank", type=int, default=16, help="ranks kept")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-dense", action="store_true", help="leave the dense SVD out")
    given = parser.parse_args()
    torch.manual_seed(0)
    down, up = torch.randn(given.summed, given.size), torch.randn(given.size, given.summed)
    seconds, busy = [], []
    for _ in range(given.turns):
        begun, used = time.perf_counter(), time.process_time()
        kept = compact(down, up, given.rank)
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - used)
    threads = torch.get_num_threads()
    print(f"{given.size} x {given.size}, rank {given.summed} to {given.rank}, {threads} threads")
    print(
        f"  ours       {statistics.median(seconds):8.3f} s (median of {given.turns}, worst {max(seconds):.3f}; CPU {statistics.median(busy):.3f})"
    )
    if given.no_dense:
        return
    delta = up @ down
    begun, used = time.perf_counter(), time.process_time()
    u, singular, vh = torch.linalg.svd(delta, full_matrices=True)
    best = (u[:, : given.rank] * singular[: given.rank]) @ vh[: given.rank]
    taken, cpu = time.perf_counter() - begun, time.process_time() - used
    apart = float((kept.up @ kept.down - best).norm() / best.norm())
    print(f"  dense SVD  {taken:8.3f} s (CPU {cpu:.1f}, {cpu / statistics.median(busy):.0f} times)")
    print(f"  relative difference of the results {apart:.1e}, residual {kept.residual:.4f}")


if __name__ == "__main__":
    main()
