"""The arguments of stock's `from_pretrained`, and what each becomes where layers stream."""

import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig
from transformers.integrations.accelerate import check_and_set_device_map

from rabbitllm.errors import nearest
from rabbitllm.streaming.placement import pick_device

ONE_DEVICE = (
    "One device computes and layers come to it: device= names it, device_memory= and host_memory= "
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
    "device_mesh": Refused(ONE_DEVICE),
    "disable_mmap": Refused("Copy the checkpoint to a local disk, where mapped files are safe."),
    "distributed_config": Refused(ONE_DEVICE),
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
    "tp_plan": Refused(ONE_DEVICE),
    "tp_size": Refused(ONE_DEVICE, (None, 1)),
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
"""Values of `device_map` that leave the choice; layers stream to one device whichever it is."""


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


def device_of(device: str | torch.device, device_map: Any) -> torch.device:
    """The one device that the arguments of these names mean.

    Raises:
        ValueError: they mean several devices, none, or one that is not there.
        RuntimeError: torch's default device is the meta device, which can hold no weights.
    """
    wanted = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if len({str(place) for place in wanted}) > 1 or "disk" in wanted:
        raise ValueError(
            f"device_map={device_map!r} places modules one by one. {ONE_DEVICE} What fits neither "
            "stays on disk."
        )
    place = wanted[0] if wanted and wanted[0] not in WHOLE else None
    if place is None:
        # In a `with torch.device(...)`, or after `torch.set_default_device`, that one, as in stock.
        default: Any = check_and_set_device_map(None) or {"": "auto"}
        return pick_device(default[""] if device == "auto" else device)
    try:
        mapped = pick_device(f"cuda:{place}" if isinstance(place, int) else place)
    except ValueError as error:
        raise ValueError(f"device_map={device_map!r} is understood as device=. {error}") from error
    if device == "auto":
        return mapped
    return torch.device(pick_one({"device": pick_device(device), "device_map": mapped}))


def budgets_of(
    device_memory: int | str,
    host_memory: int | str,
    max_memory: Mapping[int | str, int | str] | None,
    device: torch.device,
) -> dict[str, int | str]:
    """`device_memory` and `host_memory`, which `max_memory` may give as well.

    What it allows on other devices than the one that computes is not used.

    Raises:
        ValueError: it names no device, or another size than the argument itself.
    """
    asked: dict[str, int | str] = {"device_memory": device_memory, "host_memory": host_memory}
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
        if named.type == "cpu":
            setting = "host_memory"
        elif (named.type, named.index or 0) == (device.type, device.index):
            setting = "device_memory"
        else:
            continue
        asked[setting] = pick_one({setting: asked[setting], f"max_memory[{place!r}]": size})
    return asked
