"""The arguments of stock's `from_pretrained`, and what each becomes where layers stream."""

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PretrainedConfig
from transformers.integrations.accelerate import check_and_set_device_map

from rabbitllm.errors import nearest
from rabbitllm.streaming.picking import DeviceLike, pick_device, pick_devices
from rabbitllm.streaming.plan import own_memory

STREAMS = (
    "Devices compute and layers come to them: device= names them, device_memory= and host_memory= "
    "say what may lie where."
)
KERNELS = "attn_implementation= chooses the kernels of attention."
SAVED = "Save it with stock transformers once, model.save_pretrained(folder), and load the folder."
PRECISION = (
    "Weights need not be made smaller to fit, for they stream: device_memory= and host_memory= "
    "bound what they take. dtype= chooses another precision, and compression='lossless', '8bit' or "
    "'4bit' reads fewer bytes from disk."
)
ADAPTERS = "Load the base model, then peft's PeftModel.from_pretrained(model, adapter) on top."


@dataclass(frozen=True)
class Refused:
    """An argument that has no meaning here.

    Attributes:
        instead: what to do, a sentence.
        idle: values that ask for nothing, and are accepted.
    """

    instead: str
    idle: tuple[object, ...] = (None, False, {})

    def asked(self, value: object) -> bool:
        """Whether the value asks for something."""
        # By type, too: 0 equals False, and some values cannot be compared at all.
        return not any(type(value) is type(idle) and value == idle for idle in self.idle)


HONOURED = "honoured"
"""A parameter of `AutoModel.from_pretrained`, with stock's meaning."""
ACCEPTED = "accepted"
"""Whatever its value, what it asks for is so already, or stock has no use for it either."""

ARGUMENTS: dict[str, str | Refused] = {
    "pretrained_model_name_or_path": HONOURED,
    "attn_implementation": HONOURED,
    "cache_dir": HONOURED,
    "config": HONOURED,
    "device_map": HONOURED,
    "dtype": HONOURED,
    "experts_implementation": HONOURED,
    "force_download": HONOURED,
    "generation_config": HONOURED,
    "local_files_only": HONOURED,
    "max_memory": HONOURED,
    "output_loading_info": HONOURED,
    "revision": HONOURED,
    "subfolder": HONOURED,
    "token": HONOURED,
    "torch_dtype": HONOURED,
    "trust_remote_code": HONOURED,
    "use_safetensors": HONOURED,
    "variant": HONOURED,
    "_commit_hash": ACCEPTED,
    "_fast_init": ACCEPTED,
    "_from_auto": ACCEPTED,
    "_from_pipeline": ACCEPTED,
    "low_cpu_mem_usage": ACCEPTED,  # weights never are in memory twice
    "mirror": ACCEPTED,
    "offload_folder": ACCEPTED,  # what stays on disk is read where it lies
    "offload_state_dict": ACCEPTED,
    "resume_download": ACCEPTED,  # huggingface_hub always does
    "weights_only": ACCEPTED,  # nothing else ever is unpickled
    "adapter_kwargs": Refused(ADAPTERS),
    "adapter_name": Refused(ADAPTERS, (None, "default")),
    "allow_all_kernels": Refused(KERNELS),
    "code_revision": Refused("Code comes with the checkpoint: revision= chooses that of both."),
    "device_mesh": Refused(STREAMS),
    "disable_mmap": Refused("Copy the checkpoint to a local disk, where mapped files are safe."),
    "distributed_config": Refused(STREAMS),
    "from_flax": Refused(SAVED),
    "from_tf": Refused(SAVED),
    "fusion_config": Refused("The model computes as its class does, unfused."),
    "gguf_file": Refused("Load the safetensors that the GGUF file was made from."),
    "ignore_mismatched_sizes": Refused(
        "Every weight comes from the checkpoint: give one that fits the config, or its config."
    ),
    "kernel_config": Refused(KERNELS),
    "key_mapping": Refused(SAVED),
    "load_in_4bit": Refused(PRECISION),
    "load_in_8bit": Refused(PRECISION),
    "offload_buffers": Refused(
        "Buffers are small and stay on the device; device_memory= counts them."
    ),
    "proxies": Refused("huggingface_hub heeds the environment variables HTTPS_PROXY and NO_PROXY."),
    "quantization_config": Refused(PRECISION),
    "state_dict": Refused("Weights are read from files: " + SAVED[0].lower() + SAVED[1:], (None,)),
    "tp_plan": Refused(STREAMS),
    "tp_size": Refused(STREAMS, (None, 1)),
    "tqdm_class": Refused("huggingface_hub shows its own progress; HF_HUB_DISABLE_PROGRESS_BARS."),
    "use_auth_token": Refused("It is token= now."),
    "use_flash_attention_2": Refused("attn_implementation='flash_attention_2' asks for it."),
    "use_kernels": Refused(KERNELS),
}
"""Parameter of stock's `from_pretrained`, of release 4 or 5 -> what becomes of it."""

OWN = (
    "compression",
    "delete_original",
    "device",
    "device_memory",
    "hf_token",
    "host_compute",
    "host_memory",
    "layer_shards_saving_path",
    "max_seq_len",
    "prefetching",
    "profiling_mode",
    "show_layer_progress",
)
"""Parameters of `AutoModel.from_pretrained` that stock's does not have."""

TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "config": (
        (PretrainedConfig, str, os.PathLike),
        "a config, or the folder or repository of one",
    ),
    "generation_config": ((GenerationConfig,), "a GenerationConfig"),
    "max_memory": ((Mapping,), "a dict, such as {0: '4GiB', 'cpu': '16GiB'}"),
}
"""Of what types an argument may be, and in words."""

WHOLE = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` that leave the choice; blocks are dealt out the same whichever it is."""

Memory = int | str
"""A budget, as users write it."""


def accept_stock(given: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses stock's arguments that ask for what cannot be; returns those that are not stock's.

    Args:
        given: keyword arguments that `AutoModel.from_pretrained` does not have.

    Raises:
        ValueError: one asks for something; the message says what does it here.
    """
    for name, value in given.items():
        rule = ARGUMENTS.get(name)
        if isinstance(rule, Refused) and rule.asked(value):
            raise ValueError(
                f"{name}={reprlib.repr(value)} has no meaning for a streamed model. {rule.instead}"
            )
    return {name: value for name, value in given.items() if name not in ARGUMENTS}


def check_types(given: Mapping[str, object]) -> None:
    """Raises TypeError for a value of another type than `TYPES` has; None is of any."""
    for name, value in given.items():
        types, words = TYPES[name]
        if value is not None and not isinstance(value, types):
            raise TypeError(f"{name}={reprlib.repr(value)} is not {words}.")


def unknown_argument(name: str, attributes: Iterable[str]) -> str:
    """What to say of an argument that is neither one nor an attribute of the config."""
    hint = nearest(name, {*ARGUMENTS, *OWN, *attributes})
    return f"from_pretrained() got an unexpected keyword argument {name!r}.{hint}"


def pick_one(asked: Mapping[str, Any]) -> Any:
    """What arguments that mean the same thing ask for; "auto" if none of them does.

    Args:
        asked: their names -> their values, of which None and "auto" ask for nothing.

    Raises:
        ValueError: two ask for different things.
    """
    given = {name: value for name, value in asked.items() if value not in (None, "auto")}
    if len({str(value).removeprefix("torch.") for value in given.values()}) > 1:
        names = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"{names} contradict each other. Pass one of them.")
    return next(iter(given.values()), "auto")


class Targets(NamedTuple):
    """The devices that compute.

    Attributes:
        devices: the first takes the inputs.
        fewest: nobody named them: the first alone does where all fits there.
    """

    devices: tuple[torch.device, ...]
    fewest: bool = False


def targets_of(device: DeviceLike, device_map: Any) -> Targets:
    """The devices that the arguments of these names mean.

    Raises:
        ValueError: they contradict each other, or mean none, or one that is not there.
        RuntimeError: torch's default device is the meta device, which can hold no weights.
    """
    wanted = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if len({str(place) for place in wanted}) > 1 or "disk" in wanted:
        raise ValueError(
            f"device_map={device_map!r} places modules one by one. {STREAMS} What fits neither "
            "stays on disk."
        )
    place = wanted[0] if wanted and wanted[0] not in WHOLE else None
    unnamed = isinstance(device, str) and device == "auto"
    if place is None:
        # In a `with torch.device(...)`, or after `torch.set_default_device`, that one, as in stock.
        default: Any = check_and_set_device_map(None) or {"": "auto"}
        chosen = default[""] if unnamed else device
        return Targets(pick_devices(chosen), unnamed and str(chosen) == "auto")
    try:
        mapped = pick_device(f"cuda:{place}" if isinstance(place, int) else place)
    except ValueError as error:
        raise ValueError(f"device_map={device_map!r} is understood as device=. {error}") from error
    if not unnamed and pick_devices(device) != (mapped,):
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} contradict each other. Pass one of "
            "them."
        )
    return Targets((mapped,))


def budgets_of(
    device_memory: Memory | Sequence[Memory],
    host_memory: Memory,
    max_memory: Mapping[int | str, Memory] | None,
    devices: Sequence[torch.device],
) -> tuple[dict[torch.device, Memory], Memory]:
    """The budget of each device, and that of the host, which `max_memory` may give as well.

    What it allows on other devices than those that compute is not used.

    Args:
        device_memory: one for each device, or the same for all.
        host_memory: which is that of the device where it is the CPU.
        max_memory: as stock's `from_pretrained` takes it.
        devices: that compute.

    Raises:
        ValueError: it names no device, or another size than the argument itself; or there are more
            or fewer budgets than devices.
    """
    each = _each(device_memory, devices)
    on_host = own_memory(devices[0]) == "host"
    asked = dict(zip(devices, [host_memory] if on_host else each, strict=True))
    for place, size in (max_memory or {}).items():
        if place == "disk":
            continue
        try:
            named = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
        except RuntimeError as error:
            raise ValueError(
                f"max_memory names {place!r}, which is no device. Its keys are indices of GPUs, "
                "'cpu' and 'disk'."
            ) from error
        given = f"max_memory[{place!r}]"
        if named.type == "cpu":
            host_memory = pick_one({"host_memory": host_memory, given: size})
            asked |= {device: host_memory for device in devices if on_host}
        for device in devices:
            if (named.type, named.index or 0) == (device.type, device.index):
                asked[device] = pick_one({"device_memory": asked[device], given: size})
    return asked, host_memory


def _each(
    device_memory: Memory | Sequence[Memory], devices: Sequence[torch.device]
) -> list[Memory]:
    """A budget for each device; raises ValueError if there is another number of them."""
    if isinstance(device_memory, str) and "," in device_memory:
        device_memory = [size.strip() for size in device_memory.split(",")]
    if isinstance(device_memory, int | str):
        return [device_memory] * len(devices)
    if len(device_memory) != len(devices):
        raise ValueError(
            f"device_memory={device_memory!r} has {len(device_memory)} budgets, and device= means "
            f"{len(devices)}: {', '.join(map(str, devices))}. Give one for each, or one for all."
        )
    return list(device_memory)
