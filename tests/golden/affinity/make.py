"""Golden numbers of AffinityNet (PSA) and IRN in PyTorch, written from the papers' equations.

usage: make.py RESNET50.safetensors OUT.safetensors      needs torch, torchvision, numpy, safetensors

All is in f64, of inputs and weights rounded to f32. Losses, pair by pair: pairs of pixels nearer than a radius whose first has its whole half-disc in the map.
    PSA    a_ij = exp(-mean_d |f_i - f_j|);   bg/4 + fg/4 + neg/2
    IRN    a_ij = 1 - max of the edges less than one pixel from the line;   ((bg + fg)/2 + neg)/2 + (dp_fg + dp_bg)/2
    bg, fg: mean of -log(a + 1e-5) over pairs of background, of one class; neg: of -log(1 + 1e-5 - a) over other pairs;
    dp_fg: mean over both parts of |D_i - D_j - (j - i)|, dp_bg: of |D_i - D_j|; every count has 1e-5 added.
Networks: PSA and IRN on ResNet-50 (stride in the first convolution, output stride 16), PSA on ResNet38d. Weights of the
new layers, and all of ResNet38d's, by the formula of tests/golden/backbone/make.py. Outputs and gradients are kept
sub-sampled.
"""
import math
import sys
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50

weights, out = sys.argv[1:]
golden = {}
torch.set_default_dtype(torch.float64)


def wave(shape, step):
    n = math.prod(shape)
    return (torch.arange(n, dtype=torch.float64) * step).sin().float().double().view(shape)


def uniform(name, shape):
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    values = (x >> np.uint32(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return torch.from_numpy(values).view(shape)


def weight(name, shape):
    of = uniform(name, shape)
    if len(shape) == 4:
        return of * float(np.float32(math.sqrt(3 / math.prod(shape[1:]))))
    if name.endswith("running_var"):
        return 1 + of * 0.5
    return of * 0.25 + (1 if name.endswith("weight") else 0)


def slices(x, n):
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // n)][:n].clone()


# Losses

def label_map(height, width):
    ids = (torch.arange(2 * height * width).view(2, height, width) * 7 // 30) % 4
    ids[ids == 3] = 255
    return ids


def pairs(labels, radius):
    _, height, width = labels.shape
    margin = radius - 1
    for b in range(2):
        for y in range(height - margin):
            for x in range(margin, width - margin):
                for dy in range(radius):
                    for dx in range(-margin, radius):
                        if (dy > 0 or dx > 0) and dy * dy + dx * dx < radius * radius:
                            one, other = int(labels[b, y, x]), int(labels[b, y + dy, x + dx])
                            if one != 255 and other != 255:
                                kind = "neg" if one != other else "bg" if one == 0 else "fg"
                                yield kind, b, (y, x), (dy, dx)


def mean(values):
    return sum(values) / (len(values) + 1e-5)


def pair_losses(labels, radius, affinity):
    terms = {"bg": [], "fg": [], "neg": []}
    for kind, b, place, way in pairs(labels, radius):
        a = affinity(b, place, way)
        terms[kind].append(-torch.log(1 + 1e-5 - a) if kind == "neg" else -torch.log(a + 1e-5))
    return [mean(terms[kind]) for kind in ("bg", "fg", "neg")]


def keep_loss(name, terms, weights, inputs):
    total = sum(weight * term for weight, term in zip(weights, terms))
    golden[f"{name}.terms"] = torch.stack([term.detach() for term in terms])
    golden[f"{name}.total"] = total.detach().view(1)
    for which, grad in zip(inputs, torch.autograd.grad(total, list(inputs.values()))):
        golden[f"{name}.grad.{which}"] = grad


for radius in (3, 5):
    labels = label_map(11, 13)
    feat = wave((2, 6, 11, 13), 0.37).double().requires_grad_()

    def alike(b, at, way):
        (y, x), (dy, dx) = at, way
        return torch.exp(-(feat[b, :, y, x] - feat[b, :, y + dy, x + dx]).abs().mean())

    keep_loss(f"psa.{radius}", pair_losses(labels, radius, alike), (1 / 4, 1 / 4, 1 / 2), {"feat": feat})

    edge = (wave((2, 1, 11, 13), 0.61).double() * 3).requires_grad_()
    way_out = (wave((2, 2, 11, 13), 0.23).double() * 4).requires_grad_()
    probability = torch.sigmoid(edge)

    def on_line(b, at, way):
        (y, x), (dy, dx) = at, way
        near = [probability[b, 0, y + py, x + px] for py in range(dy + 1) for px in range(min(0, dx), max(0, dx) + 1)
                if (dy * px - dx * py) ** 2 < dy * dy + dx * dx]
        return 1 - torch.stack(near).max()

    terms = pair_losses(labels, radius, on_line)
    dp_fg, dp_bg = [], []
    for kind, b, (y, x), (dy, dx) in pairs(labels, radius):
        differ = way_out[b, :, y, x] - way_out[b, :, y + dy, x + dx]
        if kind == "fg":
            dp_fg += list((differ - torch.tensor([dy, dx], dtype=torch.float64)).abs())
        elif kind == "bg":
            dp_bg += list(differ.abs())
    terms += [mean(dp_fg), mean(dp_bg)]
    keep_loss(f"irn.{radius}", terms, (1 / 4, 1 / 4, 1 / 2, 1 / 2, 1 / 2), {"edge": edge, "displacement": way_out})


# Networks

class Layers:
    """1x1 convolutions and group norms by name."""

    def __init__(self):
        self.p = {}

    def get(self, name, *shape):
        if name not in self.p:
            self.p[name] = weight(name, shape).double().requires_grad_()
        return self.p[name]

    def conv(self, name, x, to, bias=False):
        of = self.get(f"{name}.weight", to, x.shape[1], 1, 1)
        return F.conv2d(x, of, self.get(f"{name}.bias", to) if bias else None)

    def normed(self, name, x, to, groups, up=1):
        x = self.conv(f"{name}.0", x, to)
        x = F.group_norm(x, groups, self.get(f"{name}.1.weight", to), self.get(f"{name}.1.bias", to))
        if up > 1:
            x = F.interpolate(x, scale_factor=up, mode="bilinear", align_corners=False)
        return F.relu(x)

    def psa(self, sides):
        f8 = [F.elu(self.conv(f"f8_{3 + i}", x, (64, 128, 256)[i])) for i, x in enumerate(sides)]
        size = sides[0].shape[2:]
        f8 = [x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in f8]
        return F.elu(self.conv("f9", torch.cat(f8, 1), 448))

    def irn(self, x):
        cut = lambda x, to: x[..., : to.shape[2], : to.shape[3]]
        edges = [cut(self.normed(f"fc_edge{i + 1}", x[i], 32, 4, up), x[0]) for i, up in enumerate((1, 1, 2, 4, 4))]
        edge = self.conv("fc_edge6", torch.cat(edges, 1), 1, bias=True)
        shapes = ((64, 8, 1), (128, 16, 1), (256, 16, 1), (256, 16, 2), (256, 16, 2))
        dp = [self.normed(f"fc_dp{i + 1}", x[i], *shapes[i]) for i in range(5)]
        deep = self.normed("fc_dp6", torch.cat([cut(d, x[2]) for d in dp[2:]], 1), 256, 16, 2)
        last = self.normed("fc_dp7", torch.cat([dp[0], dp[1], cut(deep, x[1])], 1), 256, 16)
        return edge, self.conv("fc_dp7.3", last, 2)

    def keep(self, name, outputs, more={}):
        for which, output in outputs.items():
            golden[f"{name}.{which}"] = slices(output, 256)
        loss = sum(output.square().mean() for output in outputs.values())
        parts = {**self.p, **more}
        for part, grad in zip(parts, torch.autograd.grad(loss, list(parts.values()))):
            golden[f"{name}.grad.{part}"] = slices(grad, 16)


state = {name: tensor.float() for name, tensor in load_file(weights).items()}
net = resnet50(replace_stride_with_dilation=[False, False, True])
net.load_state_dict(state, strict=False)
net.eval()
for layer in (net.layer2, net.layer3, net.layer4):
    layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)


def levels(x):
    found = [net.maxpool(net.relu(net.bn1(net.conv1(x))))]
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        found.append(layer(found[-1]))
    return found


image = wave((2, 3, 75, 52), 0.37)
found = levels(image)
layers = Layers()
trained = {name: net.get_parameter(name) for name in ("layer2.0.conv1.weight", "layer4.2.conv3.weight")}
layers.keep("psa.resnet50", {"feat": layers.psa(found[2:])}, trained)

layers = Layers()
edge, displacement = layers.irn([x.detach() for x in found])
layers.keep("irn.resnet50", {"edge": edge, "displacement": displacement})
one = image[:1]
both = torch.cat([one, one.flip(3)])
edge, _ = layers.irn([x.detach() for x in levels(both)])
golden["irn.resnet50.edges"] = slices(torch.sigmoid(edge[0] / 2 + edge[1].flip(-1) / 2), 256)


# ResNet38d (Wu et al. 2019, table 1, model A1 at stride 8): level, widths of the two convolutions, blocks.
LEVELS = ((2, 128, 128, 3), (3, 256, 256, 3), (4, 512, 512, 6), (5, 512, 1024, 3))


def conv38(name, x, to, side, stride=1, dilation=1):
    of = weight(f"{name}.weight", (to, x.shape[1], side, side)).double()
    return F.conv2d(x, of, stride=stride, padding=side // 2 * dilation, dilation=dilation)


def norm38(name, x):
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, gamma, beta = (weight(f"{name}.{part}", (x.shape[1],)).double() for part in parts)
    return F.relu(F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5))


def sides38(x):
    x, sides = conv38("conv1a", x, 64, 3), []
    for level, between, to, n in LEVELS:
        for i in range(n):
            name = f"b{level}" if i == 0 else f"b{level}_{i}"
            stride = 2 if i == 0 and level < 5 else 1
            second = 2 if level == 5 else 1
            y = norm38(f"{name}.bn_branch2a", x)
            if name == "b5":
                sides.append(y)
            shortcut = x if i else conv38(f"{name}.conv_branch1", y, to, 1, stride)
            y = conv38(f"{name}.conv_branch2a", y, between, 3, stride, 1 if i == 0 else second)
            x = shortcut + conv38(f"{name}.conv_branch2b1", norm38(f"{name}.bn_branch2b1", y), to, 3, 1, second)
    for name, widths in (("b6", (512, 1024, 2048)), ("b7", (1024, 2048, 4096))):
        y = norm38(f"{name}.bn_branch2a", x)
        if name == "b6":
            sides.append(y)
        shortcut = conv38(f"{name}.conv_branch1", y, widths[2], 1)
        y = norm38(f"{name}.bn_branch2b1", conv38(f"{name}.conv_branch2a", y, widths[0], 1))
        y = norm38(f"{name}.bn_branch2b2", conv38(f"{name}.conv_branch2b1", y, widths[1], 3, 1, 4))
        x = shortcut + conv38(f"{name}.conv_branch2b2", y, widths[2], 1)
    return sides + [norm38("bn7", x)]


with torch.no_grad():
    sides = sides38(wave((1, 3, 36, 28), 0.37))
layers = Layers()
layers.keep("psa.resnet38d", {"feat": layers.psa(sides)})

save_file({name: value.float().contiguous() for name, value in golden.items()}, out)
print(len(golden), "tensors")
