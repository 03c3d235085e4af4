"""Compiled code has to notice adapters that come after it.

``torch.compile`` takes for granted that a module's hooks stay as they were. Unless
``torch._dynamo.config.skip_nnmodule_hook_guards`` is off, graphs of a model without adapters are used again
with adapters, and on any other model of its class, and the adapters are dropped in silence.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def watch_hooks(load: bool = False) -> None:
    """Lets every graph that is made from now on check the hooks, and forgets those that do not.

    Does nothing from the second time on, and before the compiler is loaded.

    Args:
        load: Load the compiler if need be.
    """
    if load:
        import_module("torch._dynamo")
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None or not dynamo.config.skip_nnmodule_hook_guards:
        return
    dynamo.config.skip_nnmodule_hook_guards = False
    dynamo.reset_code_caches()
