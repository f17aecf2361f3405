"""llama.cpp, which computes on the CPU what is not on the GPU, with the same shape of weights."""
