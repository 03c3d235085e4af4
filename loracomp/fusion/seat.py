"""Putting a hook of ours on a module and taking it off without a trace.

diffusers' registry replaces the module's ``forward``; accelerate's offloading does the same on its own. This
file knows how they stack: whoever came last calls the others.
"""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

NAME = "loracomp"


def install(module: Any, hook: ModelHook) -> None:
    """Registers the hook on the module."""
    hook.registry_was_there = "_diffusers_hook" in vars(module)
    hook.forward_was_set = "forward" in vars(module)
    offloader = vars(module)["forward"] if "_old_forward" in vars(module) else None
    if offloader is not None:
        # accelerate takes its hooks off after every image, back to what it found here, and puts them on
        # again: whoever wraps them is lost then. So we stand inside.
        module.forward = module._old_forward
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
    hook.own_forward = vars(module)["forward"]
    if offloader is not None:
        module._old_forward, module.forward = module.forward, offloader


def installed(module: nn.Module) -> Any:
    """The module's hook, or None."""
    registry = vars(module).get("_diffusers_hook")
    return registry.get_hook(NAME) if registry is not None else None


def streams(model: nn.Module) -> bool:
    """Whether group offloading copies the model's weights in streams of its own.

    It has listed the tensors that it moves by then, and fails on any that come later.
    """
    registries = [vars(module).get("_diffusers_hook") for module in model.modules()]
    hooks = [registry.get_hook("group_offloading") for registry in registries if registry is not None]
    return any(hook is not None and hook.group.stream is not None for hook in hooks)


def remove(module: Any, hook: Any) -> None:
    """Takes the hook off, and with it the registry that diffusers made for it, unless others use that."""
    registry: Any = module._diffusers_hook
    wrapper = vars(module)["forward"]
    wrapped = vars(module).get("_old_forward") is hook.own_forward
    registry.remove_hook(NAME, recurse=False)
    if wrapped:
        # accelerate came after us and calls what stood here before it.
        module._old_forward = module.forward
        module.forward = wrapper
    if not registry.hooks and not hook.registry_was_there:
        del module._diffusers_hook
    if not registry.hooks and not hook.forward_was_set and not wrapped:
        del module.forward
