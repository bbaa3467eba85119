"""The public names: there at first use, listed, and no others."""

from __future__ import annotations

import importlib

import pytest

import ctrlnet
import ctrlnet.public


def test_every_public_name_and_every_room_is_an_attribute():
    assert ctrlnet.__all__ == sorted(ctrlnet.public.__all__) and set(ctrlnet.__all__) <= set(dir(ctrlnet))
    for name in ctrlnet.__all__:
        assert getattr(ctrlnet, name) is getattr(ctrlnet.public, name)
    assert ctrlnet.fields is importlib.import_module("ctrlnet.fields")


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'ctrlnet' has no attribute 'Nothing'"):
        ctrlnet.Nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from ctrlnet import Nothing  # noqa: F401
