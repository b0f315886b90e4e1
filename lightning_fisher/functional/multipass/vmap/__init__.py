"""The sub-batches of Algorithm 1 in one pass by ``torch.func.vmap``, instead of M small ones.

A GPU takes as long to be told of a pass of 16 samples as of one of 128; with small networks that is all the time there
is. The price is what vmap asks of a loss, the memory of M gradients four times over, and weights that differ from
sub-batch to sub-batch: on a CPU a loop is faster for all but the smallest networks (`benchmarks`).
"""
