"""JSON documents of values that are awkward to write down."""

from __future__ import annotations

import json
import math
import os

from precopy.report.documents import to_json


def test_a_name_that_is_no_utf_8_is_escaped() -> None:
    name = os.fsdecode(b"/tmp/\xff")
    told = to_json({"file": name, name: [{"of": (name, 1)}], "none": math.nan})
    assert json.loads(told) == {
        "file": r"/tmp/\udcff",
        r"/tmp/\udcff": [{"of": [r"/tmp/\udcff", 1]}],
        "none": None,
    }
