"""Layers to files: trees of whole images and of single layers, and files looked at where they lie, in layers.

Spec: OCI image-spec 1.1, layer.md.
"""
