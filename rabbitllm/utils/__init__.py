"""What does not belong to one part: memory, sizes, the platform, and splitting ahead of time."""

from rabbitllm.utils.split import find_or_create_local_splitted_path

__all__ = ["find_or_create_local_splitted_path"]
