"""What the networks of zuko need to be part of a model here.

Floor 1.
"""

from torch import nn


def stateless(network: nn.Module) -> nn.Module:
    """The network with its masks and orders out of its state: they follow from the configuration."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return network
