"""Shapes without memory: what functions and operations return on the meta device."""
