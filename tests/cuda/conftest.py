"""Tests that need a GPU: `make test-cuda`. Without one they are not begun."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.exit("tests/cuda needs a GPU that torch can use, and torch sees none here", 4)
