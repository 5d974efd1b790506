"""Golden numbers of the random walks of AffinityNet and IRN, with matrices of all pairs of pixels in float64 numpy:

    T_ij = a_ij^beta / sum_i a_ij^beta,    scores T^(2^k)

a_ii = 1; pairs nearer than the radius have exp(-mean |f_i - f_j|) (AffinityNet, only those whose upper pixel has the whole
half-disc in the map), or 1 - the highest edge of the pixels less than one pixel from the line between them (IRN).

usage: make.py OUT.safetensors      (needs numpy, safetensors)
"""
import itertools
import sys

import numpy as np
from safetensors.numpy import save_file

H, W = 12, 14


def wave(*shape, step):
    n = int(np.prod(shape))
    return np.sin(np.arange(n) * step).astype(np.float32).astype(np.float64).reshape(shape)


FEAT, EDGE, SCORES = wave(6, H, W, step=0.37), (wave(H, W, step=0.61) + 1) / 2, (wave(3, H, W, step=0.23) + 1) / 2


def pairs(radius):
    for y, x, other_y, other_x in itertools.product(range(H), range(W), range(H), range(W)):
        dy, dx = other_y - y, other_x - x
        if (dy > 0 or dy == 0 and dx > 0) and dy * dy + dx * dx < radius * radius:
            yield (y, x), (other_y, other_x)


def affinity_net(radius):
    a, margin = np.eye(H * W), radius - 1
    for (y, x), (other_y, other_x) in pairs(radius):
        if y + margin < H and margin <= x < W - margin:
            i, j = y * W + x, other_y * W + other_x
            a[i, j] = a[j, i] = np.exp(-np.abs(FEAT[:, y, x] - FEAT[:, other_y, other_x]).mean())
    return a


def irn(radius):
    a = np.eye(H * W)
    for (y, x), (other_y, other_x) in pairs(radius):
        length = np.hypot(other_y - y, other_x - x)
        near = [EDGE[py, px] for py in range(y, other_y + 1) for px in range(min(x, other_x), max(x, other_x) + 1)
                if abs((other_y - y) * (px - x) - (other_x - x) * (py - y)) / length < 1 - 1e-9]
        i, j = y * W + x, other_y * W + other_x
        a[i, j] = a[j, i] = 1 - max(near)
    return a


def walk(a, beta, k):
    transitions = a ** beta
    transitions /= transitions.sum(0)
    for _ in range(k):
        transitions = transitions @ transitions
    return (SCORES.reshape(3, -1) @ transitions).reshape(3, H, W).astype(np.float32)


save_file({"affinity_net": walk(affinity_net(5), 8, 8), "affinity_net.2": walk(affinity_net(3), 2, 2),
           "irn": walk(irn(5), 10, 8), "irn.2": walk(irn(4), 2, 2)}, sys.argv[1])
