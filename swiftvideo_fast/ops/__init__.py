"""Fused ops: one name, one meaning, the room chosen by the device."""
