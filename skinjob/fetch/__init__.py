"""Pretrained weights: brought down, checked and made ready to copy across the air gap."""
