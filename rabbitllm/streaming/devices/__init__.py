"""The types of devices that models compute on: what moves weights there, a file each."""

from rabbitllm.streaming.devices.cpu import CpuTransfer
from rabbitllm.streaming.devices.cuda import CudaTransfer
from rabbitllm.streaming.devices.transfer import Transfer

DEVICES: dict[str, type[Transfer]] = {"cpu": CpuTransfer, "cuda": CudaTransfer}
"""torch's name of a type -> its part of streaming."""
