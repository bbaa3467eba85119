"""The other side: the same network in PyTorch, in the fastest form that a search finds."""

from __future__ import annotations

import itertools
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from channel import serve

_TYPES = {"double": torch.float64, "single": torch.float32}


class TorchNetwork:
    """Answers the benchmark's requests on a given number of threads."""

    def __init__(self, precision: str, threads: int):
        torch.set_num_threads(threads)
        self._type = _TYPES[precision]
        self._form: dict[str, dict] = {}  # the fastest found, for every number of images

    # The network: Y <- Y + h tanh(conv(Y) + b) in every layer, features Rx Y Ry^T, scores W^T features + beta.

    def build(self, side: int, features: int, images: int, layers: int, seed: int, readout: int = 5) -> None:
        """Set up random images on side x side nodes, with the features of a readout x readout grid of nodes.

        The lifted nodal values are made beforehand, and the separable readout is handed over as its two factors.
        """
        rng = torch.Generator().manual_seed(seed)
        shape = (images, features, side, side)
        self._Y = torch.zeros(shape, dtype=self._type)
        self._Y[:, 0] = torch.rand((images, side, side), generator=rng, dtype=self._type)
        self._labels = torch.randint(0, 10, (images,), generator=rng)
        x = torch.linspace(0, readout - 1, side, dtype=self._type)
        hats = (1 - (x - torch.arange(readout, dtype=self._type)[:, None]).abs()).clamp(min=0)
        self._Rx = self._Ry = hats * 28 / (side - 1)
        scale = 0.3 / features**0.5
        self._kernels = [scale * torch.randn((features, features, 3, 3), generator=rng, dtype=self._type)
                         for _ in range(layers)]
        self._biases = [torch.zeros(features, dtype=self._type) for _ in range(layers)]
        self._W = 0.01 * torch.randn((features * readout**2, 10), generator=rng, dtype=self._type)
        self._beta = torch.zeros(10, dtype=self._type)
        self._h, self._circular = 4.0 / layers, False
        self._require()

    def _require(self) -> None:
        self._parameters = [*self._kernels, *self._biases, self._W, self._beta]
        for parameter in self._parameters:
            parameter.requires_grad_()

    def _loss(self, Y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for kernel, bias in zip(self._kernels, self._biases, strict=True):
            if self._circular:
                Z = F.conv2d(F.pad(Y, (1, 1, 1, 1), mode="circular"), kernel, bias)
            else:
                Z = F.conv2d(Y, kernel, bias, padding=1)
            Y = torch.add(Y, torch.tanh(Z), alpha=self._h)
        scores = (self._Rx @ Y @ self._Ry.T).flatten(1) @ self._W + self._beta
        return F.cross_entropy(scores, labels, reduction="sum")

    # Timing.

    def _batches(self, form: dict, images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        layout = torch.channels_last if form["channels_last"] else torch.contiguous_format
        Y = self._Y[:images].contiguous(memory_format=layout)
        return list(zip(Y.split(form["batch"]), self._labels[:images].split(form["batch"]), strict=True))

    def _prepared(self, form: dict, what: str, images: int):
        """Return a callable that runs ``images`` images in one form."""
        loss = torch.compile(self._loss, dynamic=False) if form["compiled"] else self._loss
        batches = self._batches(form, images)
        count = len(self._labels)

        def forward():
            with torch.no_grad():
                return sum(float(loss(Y, labels)) for Y, labels in batches) / count

        def gradient():
            for parameter in self._parameters:
                parameter.grad = None
            for Y, labels in batches:
                (loss(Y, labels) / count).backward()

        return forward if what == "forward" else gradient

    def search(self, what: str, images: int, batches: list[int], compiled: bool, seconds: float) -> list[dict]:
        """Time the candidates on part of the sample and keep the fastest; return all, fastest first.

        Eager forms come first; then the fastest two of them are compiled. Past ``seconds`` nothing new is tried, but
        one eager form of each memory format always is. A candidate runs ``images`` images, or one batch if that is
        more.
        """
        began, tried = time.perf_counter(), []

        def attempt(batch: int, channels_last: bool, compile_it: bool) -> None:
            form = {"batch": batch, "channels_last": channels_last, "compiled": compile_it}
            torch._dynamo.reset()
            count = min(max(images, batch), len(self._labels))
            run = self._prepared(form, what, count)
            run()  # allocation, choice of algorithm, compilation
            tried.append(form | {"images_per_second": count / min(_seconds(run) for _ in range(3))})

        for number, (batch, layout) in enumerate(itertools.product(batches, (False, True))):
            if number < 2 or time.perf_counter() - began < 0.6 * seconds:
                attempt(batch, layout, False)
        if compiled:
            for form in sorted(tried, key=_speed)[:2]:
                if time.perf_counter() - began < seconds:
                    attempt(form["batch"], form["channels_last"], True)
        tried.sort(key=_speed)
        self._form[what] = {key: tried[0][key] for key in ("batch", "channels_last", "compiled")}
        return tried

    def use(self, images: int) -> None:
        """Prepare the chosen forms for this many images, warmed up."""
        torch._dynamo.reset()
        self._run = {what: self._prepared(form, what, images) for what, form in self._form.items()}
        for run in self._run.values():
            run()

    def measure(self) -> dict:
        """Time one forward pass without autograd, and one forward and backward pass."""
        return {"forward": _seconds(self._run["forward"]), "gradient": _seconds(self._run["gradient"])}

    def rates(self) -> dict:
        """Return the matrix-multiply rate in flop/s."""
        a = torch.ones((1024, 1024), dtype=self._type)
        out = a @ a
        return {"matmul": 2 * 1024**3 / float(np.median([_seconds(lambda: torch.mm(a, a, out=out)) for _ in range(3)]))}

    def peak_bytes(self) -> int:
        """Return the largest resident memory of this process so far."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    # The same numbers.

    def check(self, Y, labels, S, b, W, beta, stencils, step: float, mass: float) -> dict:
        """Return loss and derivatives of given data on a periodic grid, in the coefficients S of the operators.

        Y is (images, C, nodes, nodes), S (layers, J, C, C), W (C * nodes * nodes, K).
        """
        tensors = {"S": S, "b": b, "W": W, "beta": beta}
        S, b, W, beta = (torch.tensor(x, dtype=self._type, requires_grad=True) for x in tensors.values())
        basis = torch.tensor(stencils, dtype=self._type)
        side = Y.shape[-1]
        self._kernels, self._biases = list(torch.einsum("kjoi,jxy->koixy", S, basis)), list(b)
        self._W, self._beta, self._h, self._circular = W, beta, step, True
        self._Rx, self._Ry = mass * torch.eye(side, dtype=self._type), torch.eye(side, dtype=self._type)
        loss = self._loss(torch.tensor(Y, dtype=self._type), torch.tensor(labels)) / len(labels)
        gradients = torch.autograd.grad(loss, (S, b, W, beta))
        names = ("gS", "gb", "gW", "gbeta")
        return {"loss": float(loss.detach())} | {n: g.numpy() for n, g in zip(names, gradients, strict=True)}


def _seconds(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _speed(form: dict) -> float:
    return -form["images_per_second"]


if __name__ == "__main__":
    serve(TorchNetwork(sys.argv[1], int(sys.argv[2])), 0, sys.argv[-1])
