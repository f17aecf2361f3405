"""Which devices compute: what users may call them, and what is refused."""

from collections.abc import Sequence

import torch

from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.plan import own_memory

HOST = torch.device("cpu")
DeviceLike = str | torch.device | Sequence[str | torch.device]
"""What users may call a device, or several."""


def pick_devices(device: DeviceLike) -> tuple[torch.device, ...]:
    """The devices that an argument means, the first of which takes the inputs.

    Args:
        device: one, several as a list or with commas between, or "auto": every CUDA device, or the
            CPU if there is none.

    Raises:
        ValueError: one is neither CPU nor CUDA, not there, or named twice, or the CPU is among
            others.
    """
    if isinstance(device, str) and device == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(torch.device("cuda", index) for index in range(count)) or (HOST,)
    if isinstance(device, str):
        asked: list[str | torch.device] = [name.strip() for name in device.split(",")]
    else:
        asked = [device] if isinstance(device, torch.device) else list(device)
    if not asked:
        raise ValueError(f"device={device!r} names none. Use 'auto', 'cpu' or 'cuda:0'.")
    devices = tuple(map(pick_device, asked))
    for place, each in enumerate(devices):
        if each in devices[:place]:
            raise ValueError(f"device={device!r} names {each} twice. Name each device once.")
        if len(devices) > 1 and own_memory(each) == "host":
            raise ValueError(
                f"device={device!r} has the CPU among others. GPUs compute, or it does: name one "
                "kind. What does not fit on GPUs waits in host memory in any case."
            )
    return devices


def pick_device(device: str | torch.device) -> torch.device:
    """The device that an argument means: "auto" is CUDA when there is one.

    Raises:
        ValueError: neither CPU nor CUDA, or not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not understood. Use 'auto', 'cpu' or 'cuda:0'."
        ) from error
    if target.type not in DEVICES:
        raise ValueError(f"device={device!r} is not supported. Use 'auto', 'cpu' or 'cuda:0'.")
    if own_memory(target) == "host":
        return HOST
    index, count = target.index or 0, DEVICES[target.type].count()
    if index >= count:
        raise ValueError(
            f"device={device!r} is not there: {count} {target.type.upper()} devices. Use 'auto' or "
            "'cpu'."
        )
    return torch.device(target.type, index)
