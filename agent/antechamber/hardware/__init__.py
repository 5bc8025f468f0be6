"""Adapters to the kernel and to NVML."""
