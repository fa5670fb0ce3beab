"""Reproducible measurements that the docs quote; run each as a module from the repository root."""
