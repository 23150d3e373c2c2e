"""Lip-sync nodes for ComfyUI: lipstream behind ComfyUI's V3 node interface."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
