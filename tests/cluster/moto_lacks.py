"""Marks of tests that cannot pass where the environment selects moto as the object store."""

from __future__ import annotations

import os

import pytest

USES_MOTO = os.environ.get("AIMAGESTORE_TEST_OBJECTS") == "moto"
"""Whether the object store is moto's, and not SeaweedFS."""

durability = pytest.mark.skipif(USES_MOTO, reason="moto's objects do not survive a restart")
authentication = pytest.mark.skipif(USES_MOTO, reason="moto accepts any keys")
