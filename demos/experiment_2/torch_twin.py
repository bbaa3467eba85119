"""The network of experiment 2 in PyTorch: the same nodes, kernels, layers and readout, trained by PyTorch's Adam.

Inside the domain it is the same map; at its edge the image is continued by its last value, which is PyTorch's cheapest
relative of ctrlnet's natural boundary condition. Diffusion is solved for by the eigenvectors of the second difference
along each axis: four small matrix products a layer.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F


def _diffusion(nodes: int, side: float, time: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return matrices to the second difference's eigenvectors and back, and 1 / (1 + time (lambda_i + lambda_j))."""
    A = 2 * np.eye(nodes) - np.eye(nodes, k=1) - np.eye(nodes, k=-1)
    A[0, 1] = A[-1, -2] = -2.0  # mirrored ends: half the mass, natural boundary condition
    eigenvalues, vectors = np.linalg.eig(A * ((nodes - 1) / side) ** 2)
    found = np.linalg.inv(vectors), vectors, 1 / (1 + time * (eigenvalues[:, None] + eigenvalues))
    return tuple(torch.as_tensor(np.ascontiguousarray(x.real), dtype=torch.float32) for x in found)


def train(
    images, labels, test_images, test_labels, *, features: int, layers: int, T: float, diffusion: float, readout: int,
    side: float, epochs: int, batch: int, rate: float, seed: int, basis, threads: int,
    report=lambda epoch, accuracy: None,
):
    """Return one (seconds, test accuracy) a pass; nodal images (n, nodes, nodes), evaluation is not timed."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    Y0, test = (torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32) for x in (images, test_images))
    labels, test_labels = (torch.as_tensor(x) for x in (labels, test_labels))
    nodes = Y0.shape[-1]
    x = torch.linspace(0, readout, nodes)
    hats = (1 - (x - torch.arange(readout + 1)[:, None]).abs()).clamp(min=0)
    width = torch.full((nodes,), side / (nodes - 1))
    width[[0, -1]] /= 2
    R = hats * width
    size = (side / readout) ** 2  # the integral of one basis function: W is scaled so that Adam's step suits it
    basis = torch.as_tensor(np.ascontiguousarray(basis), dtype=torch.float32)  # stencils of the operators, (J, 3, 3)
    coefficients = [(0.03 * torch.randn(len(basis), features, features)).requires_grad_() for _ in range(layers)]
    biases = [torch.zeros(features, requires_grad=True) for _ in range(layers)]
    W = torch.zeros(features * (readout + 1) ** 2, 10, requires_grad=True)
    beta = torch.zeros(10, requires_grad=True)
    h = T / layers
    there, back, damping = _diffusion(nodes, side, h * diffusion)

    def scores(images):
        Y = images[:, None].expand(-1, features, -1, -1)
        for kernel, bias in zip(coefficients, biases, strict=True):
            stencils = torch.einsum("joi,jrc->oirc", kernel, basis)
            # Few features: convolutions are faster with them innermost, and compilation adds nothing to that.
            padded = F.pad(Y.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1), mode="replicate")
            Z = F.conv2d(padded, stencils, bias)
            Y = torch.add(Y, torch.tanh(Z), alpha=h)
            if diffusion:
                Y = back @ ((there @ Y @ there.T) * damping) @ back.T
        return (R @ Y @ R.T).flatten(1) @ W / size + beta

    groups = [{"params": [*coefficients, *biases, beta]}, {"params": [W], "lr": 5 * rate}]
    optimiser = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99))
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [rate, 5 * rate], total_steps=steps + 1, pct_start=0.1, anneal_strategy="cos", cycle_momentum=False)
    spent, course = 0.0, []
    for epoch in range(epochs):
        began = time.perf_counter()
        order = torch.randperm(len(labels))
        for k in range(len(labels) // batch):
            chosen = order[k * batch : (k + 1) * batch]
            optimiser.zero_grad()
            F.cross_entropy(scores(Y0[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
        spent += time.perf_counter() - began
        with torch.no_grad():
            guesses = torch.cat([scores(part).argmax(1) for part in test.split(500)])
        course.append((spent, float((guesses == test_labels).float().mean())))
        report(epoch + 1, course[-1][1])
    return course
