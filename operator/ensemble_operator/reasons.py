"""Reasons of conditions, one word each; the administrator guide explains every one."""

from __future__ import annotations
