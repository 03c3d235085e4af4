"""Where in a run a denoiser call is, and at which noise level, as schedulers tell it.

Nothing here asks the device for a number where the answer is known on the host: a scheduler counts its
steps, and the timestep that a pipeline hands on is a view into the scheduler's own list.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def step_of(scheduler: Any, timestep: Tensor | float) -> int:
    """Position in ``scheduler.timesteps`` of the denoiser call with ``timestep``."""
    times: Tensor = scheduler.timesteps
    for name in ("step_index", "begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return min(int(index), len(times) - 1)
    if isinstance(timestep, Tensor) and timestep.numel() and _shares(timestep, times):
        return int(timestep.storage_offset() - times.storage_offset()) // max(times.stride(0), 1)
    return _nearest(times, timestep)


def _shares(timestep: Tensor, times: Tensor) -> bool:
    same_storage = timestep.untyped_storage().data_ptr() == times.untyped_storage().data_ptr()
    return same_storage and (timestep.ndim == 0 or timestep.stride(0) == 0 or len(timestep) == 1)


def _nearest(times: Tensor, timestep: Tensor | float) -> int:
    """By value, which waits for the device where the timestep lies on one."""
    now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    values = times.detach().double().cpu()
    # Some denoisers (FLUX) are called with t / 1000.
    gaps = torch.stack([(values - now).abs(), (values - 1000 * now).abs()])
    best = gaps.min(dim=1)
    return int(best.indices[best.values.argmin()])


def sigmas_of(scheduler: Any) -> Tensor | None:
    """Noise level of each step, shape (steps,), descending; None for a scheduler without any.

    The scheduler's own list, or √((1 − ᾱ) / ᾱ) at its timesteps (Karras et al. 2022, arXiv:2206.00364,
    appendix C.3).
    """
    count = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) >= count:
        return sigmas[:count].detach().float().cpu()
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        return None
    alpha = products.detach().double().cpu()[scheduler.timesteps.detach().long().cpu()]
    return ((1 - alpha) / alpha).sqrt().float()
