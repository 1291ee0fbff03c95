"""Worker of `peer` for biotorch: runs single steps on torch on request through a pipe.

It runs in an environment with torch and biotorch and without this project, so it imports nothing of the project.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable

import torch
from biotorch.module.biomodule import BioModule
from torch import nn

MODES = {"feedback": "fa", "sign_symmetry": "usf", "frsf": "frsf", "brsf": "brsf"}


class Block(nn.Module):
    """A residual block of two 3x3 convolutions. The first block of a group has a projection shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        x = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(self.norm2(self.conv2(x)) + self.shortcut(inputs))


def network(width: int) -> nn.Module:
    """Returns ResNet-18 for small images, with the same layers as `neural_alignment.models.resnet` (stem "cifar")."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for group in range(4):
        outputs = width * 2**group
        layers.append(Block(inputs, outputs, 1 if group == 0 else 2, project=True))
        layers.append(Block(outputs, outputs, 1, project=False))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def stepper(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], dict[str, float]]:
    """Returns a function that runs and times one training step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, nesterov=True)
    model.train()

    def step() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        return {"seconds": time.perf_counter() - wall, "CPU seconds": time.process_time() - cpu}

    return step


def main() -> None:
    """Reports the network's size, then runs and times a step for each name of a contender it reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("width", "image", "batch", "threads"):
        parser.add_argument(f"--{option}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.image, options.image)
    labels = torch.randint(0, 10, (options.batch,))
    plain = network(options.width)
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    steps = {"backpropagation": stepper(plain, images, labels)}
    with contextlib.redirect_stdout(sys.stderr):  # The conversion prints.
        for name, mode in MODES.items():
            steps[name] = stepper(BioModule(network(options.width), mode=mode), images, labels)
    versions = {"torch": torch.__version__, "biotorch": importlib.metadata.version("biotorch")}
    print(json.dumps({"versions": versions, "parameters": parameters, "contenders": list(steps)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
