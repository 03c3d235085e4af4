"""Watching the gate of an attachment while a pipeline draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from loracomp.errors import UsageError
from loracomp.fusion import regions
from loracomp.fusion.gated.watching import Seen, Watch
from loracomp.pipeline.attachment import Attachment
from loracomp.pipeline.layers import denoiser_of


class Explanation:
    """Watches from the first denoiser call on, until :meth:`seen`.

    Args:
        attachment: With a gate at work.

    Raises:
        UsageError: Its program has none.
    """

    def __init__(self, attachment: Attachment) -> None:
        if attachment.hook.gating is None:
            raise UsageError("--explain shows the gates of --method gated with two adapters or more")
        self.gating, self.adapters = attachment.hook.gating, len(attachment.adapters)
        self._watch: Watch | None = None
        module = denoiser_of(attachment.pipe)[1]
        self._handle = module.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sample: Tensor = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        self._watch = Watch(self.gating, self.adapters, regions.grids(module, sample, kwargs))
        self._handle.remove()

    def seen(self) -> Seen:
        """What the gate did; raises :class:`UsageError` where nothing was drawn."""
        self._handle.remove()
        if self._watch is None:
            raise UsageError("nothing was drawn, so there is nothing to explain")
        return self._watch.stop()
