"""Boopathy and Fiete 2022, "How to Train Your Wide Neural Network Without Backprop": its tables and figures."""
