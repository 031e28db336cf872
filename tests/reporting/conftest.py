from __future__ import annotations

import pytest
import report_samples


@pytest.fixture(params=sorted(report_samples.SAMPLES))
def sample(request):
    """Each sample report in turn."""
    return report_samples.sample_report(request.param)
