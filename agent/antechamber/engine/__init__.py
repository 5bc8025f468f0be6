"""Inference engines: catalogue, processes, and a small built-in one."""
