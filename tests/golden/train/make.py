"""Golden numbers of backbone, DeepLab head and losses from PyTorch and torchvision, written from the equations.

usage: make.py RESNET50.safetensors OUT.safetensors

Needs torch, torchvision, safetensors. Inputs are waves both sides can make; what is kept are outputs and gradients,
sub-sampled. All is in f64, of inputs rounded to f32. Losses: S2C paper, section 3 (SSC: eq. of section 3.2, CPM: section 3.3); DeepLab-v2: the sum of four
dilated convolutions.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50

weights, out = sys.argv[1:]
state = {name: tensor.float() for name, tensor in load_file(weights).items()}
golden = {}
torch.set_default_dtype(torch.float64)


def rounded(x):
    """To f32, which is what the test has."""
    return x.float().double()


def wave(shape, step):
    n = 1
    for side in shape:
        n *= side
    return rounded((torch.arange(n, dtype=torch.float64) * step).sin()).view(shape)


def slices(x, n=64):
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // n)][:n].clone()


def backbone(stride_in, output_stride):
    dilate = {8: [False, True, True], 16: [False, False, True]}[output_stride]
    net = resnet50(replace_stride_with_dilation=dilate)
    net.load_state_dict(state, strict=False)
    net.eval()
    if stride_in == "v1":
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)
    return net


def features(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


image = wave((2, 3, 96, 64), 0.37)
for stride_in in ("v1", "v1.5"):
    for output_stride in (8, 16):
        name = f"resnet.{stride_in}.{output_stride}"
        net = backbone(stride_in, output_stride)
        feat = features(net, image)
        golden[f"{name}.feat"] = slices(feat, 256)
        feat.square().mean().backward()
        for part, value in net.named_parameters():
            trained = part.startswith(("layer2", "layer3", "layer4")) and value.dim() == 4
            if trained:
                golden[f"{name}.grad.{part}"] = slices(value.grad, 8)
        if (stride_in, output_stride) == ("v1", 16):
            head = [(rounded(wave((3, 2048, 3, 3), 0.11 + i).float() * 0.01), wave((3,), 0.5 + i)) for i in range(4)]
            rates = [rate * 8 // output_stride for rate in (6, 12, 18, 24)]
            logits = sum(
                F.conv2d(feat.detach(), weight, bias, padding=rate, dilation=rate)
                for (weight, bias), rate in zip(head, rates))
            golden["deeplab.logits"] = slices(logits, 64)


# L_CLS
cam = (wave((2, 3, 6, 5), 0.7) * 2).requires_grad_()
labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
loss = F.binary_cross_entropy_with_logits(cam.mean((2, 3)), labels)
golden["cls.value"], golden["cls.grad"] = loss.detach().view(1), torch.autograd.grad(loss, cam)[0]

# L_SSC
ids = (torch.arange(2 * 24 * 20).view(2, 24, 20) * 7 // 50) % 5
for temperature in (0.5, 0.1):
    for stopgrad in (True, False):
        for negative in (True, False):
            feat = (wave((2, 8, 6, 5), 0.3) + 1.1).requires_grad_()
            up = F.interpolate(feat, size=(24, 20), mode="bilinear", align_corners=False)
            total, count = 0.0, 0
            for b in range(2):
                pixels = F.normalize(up[b].flatten(1), dim=0).t()  # (HW, D)
                of = ids[b].flatten()
                used = [k for k in range(5) if (of == k).any() and (k > 0 or negative)]
                source = pixels.detach() if stopgrad else pixels
                protos = torch.stack([F.normalize(source[of == k].mean(0), dim=0) for k in used])
                logits = pixels @ protos.t() / temperature
                for k in used:
                    if k > 0:
                        rows = logits[of == k]
                        total = total - F.log_softmax(rows, 1)[:, used.index(k)].sum()
                        count += len(rows)
            loss = total / count
            name = f"ssc.{temperature}.{int(stopgrad)}.{int(negative)}"
            golden[f"{name}.value"] = loss.detach().view(1)
            golden[f"{name}.grad"] = torch.autograd.grad(loss, feat)[0]

# L_CPM
cam = (wave((2, 3, 6, 5), 0.9) * 3).requires_grad_()
pseudo = (torch.arange(2 * 24 * 20).view(2, 24, 20) * 3 // 40) % 5
pseudo[pseudo == 4] = 255
norm = F.relu(cam)
norm = norm / (norm.amax((2, 3), keepdim=True) + 1e-5)
norm = F.interpolate(norm, size=(24, 20), mode="bilinear", align_corners=False) * labels[:, :, None, None]
scores = torch.cat([1 - norm.amax(1, keepdim=True), norm], 1)
loss = F.cross_entropy(scores, pseudo, ignore_index=255)
golden["cpm.value"], golden["cpm.grad"] = loss.detach().view(1), torch.autograd.grad(loss, cam)[0]

# L_ER of SEAM
cams = [(wave(shape, step) * 3).requires_grad_() for shape, step in (((2, 3, 10, 8), 0.9), ((2, 3, 3, 2), 0.4))]
norms = [F.relu(cam) / (F.relu(cam).amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None] for cam in cams]
norms[0] = F.interpolate(norms[0], size=(3, 2), mode="bilinear", align_corners=True)
loss = (norms[0] - norms[1]).abs().mean()
golden["er.value"], (golden["er.grad"], golden["er.small.grad"]) = loss.detach().view(1), torch.autograd.grad(loss, cams)

# SEAM's pixel correlation module: each pixel of the CAM becomes the mean of the others, by how alike their features are
cam, image = wave((2, 3, 3, 4), 0.9) * 3, wave((2, 3, 24, 32), 0.37)
near, deep = wave((2, 6, 6, 8), 0.23), wave((2, 10, 3, 4), 0.51)
layers = [
    (wave(shape, step) * 0.3).requires_grad_()
    for shape, step in (((64, 6, 1, 1), 0.7), ((128, 10, 1, 1), 0.31), ((192, 195, 1, 1), 0.13))]
norm = F.relu(cam)
norm = F.relu(norm - 1e-5) / (norm.amax((2, 3), keepdim=True) + 1e-5)
best = norm.amax(1, keepdim=True)
norm = torch.cat([1 - best, torch.where(norm < best, 0.0, norm)], 1)
parts = [image, F.relu(F.conv2d(near, layers[0])), F.relu(F.conv2d(deep, layers[1]))]
parts = torch.cat([F.interpolate(part, size=(6, 8), mode="bilinear", align_corners=True) for part in parts], 1)
feat = F.conv2d(parts, layers[2]).flatten(2)
feat = feat / (feat.norm(dim=1, keepdim=True) + 1e-5)
alike = F.relu(torch.einsum("bdi,bdj->bij", feat, feat))
alike = alike / (alike.sum(1, keepdim=True) + 1e-5)
norm = F.interpolate(norm, size=(6, 8), mode="bilinear", align_corners=True).flatten(2)
revised = torch.einsum("bci,bij->bcj", norm, alike).view(2, 4, 6, 8)
golden["pcm.revised"] = revised.detach()
grads = torch.autograd.grad((revised * wave(revised.shape, 0.77)).sum(), layers)
golden.update({f"pcm.grad.{i}": slices(grad, 256) for i, grad in enumerate(grads)})

# L_ECR of SEAM
revised = [(wave(shape, step) + 1.2).requires_grad_() for shape, step in (((2, 4, 9, 7), 0.6), ((2, 4, 5, 4), 1.7))]


def resized(x):
    return F.interpolate(x, size=(5, 4), mode="bilinear", align_corners=True)


def target(cam):
    cam = F.relu(cam.detach())
    cam = resized(cam / (cam.amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None])
    best = cam.amax(1, keepdim=True)
    return torch.cat([1 - best, torch.where(cam == best, cam, 0.0)], 1)


def stretched(cam):
    low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    labels_of_all = torch.cat([torch.ones(2, 1), labels], 1)[:, :, None, None]
    return resized(F.relu(cam - low - 1e-5) / (high - low + 1e-5)) * labels_of_all


loss = sum(
    (target(one) - stretched(other)).abs().flatten(1).topk(int(4 * 5 * 4 * 0.2), dim=1)[0].mean()
    for one, other in ((cams[1], revised[0]), (cams[0], revised[1])))
golden["ecr.value"] = loss.detach().view(1)
golden["ecr.grad"], golden["ecr.small.grad"] = torch.autograd.grad(loss, revised)

# Segmentation
logits = (wave((2, 4, 6, 5), 0.4) * 2).requires_grad_()
up = F.interpolate(logits, size=(24, 20), mode="bilinear", align_corners=False)
loss = F.cross_entropy(up, pseudo, ignore_index=255)
golden["seg.value"], golden["seg.grad"] = loss.detach().view(1), torch.autograd.grad(loss, logits)[0]

# Two steps of SGD
value = wave((10,), 0.5).requires_grad_()
sgd = torch.optim.SGD([value], lr=0.1, momentum=0.9, weight_decay=5e-4)
for _ in range(2):
    sgd.zero_grad()
    (value * value * value).sum().backward()
    sgd.step()
golden["sgd"] = value.detach()

save_file({name: tensor.float().contiguous() for name, tensor in golden.items()}, out)
print(len(golden), "tensors")
