"""``wearon status`` names the causes of incidents that take few seconds. All: ``make incidents``.

How soon is measured there, because here the tests of other files take their share of the machine.
"""

from collections.abc import Iterator

import pytest

from tests.incidents.night import PATIENCE_SECONDS, Night
from tests.incidents.table import SAMPLE, Incident
from tests.system.deployment import Deployment, eventually


@pytest.fixture(scope="module")
def night(deployed: Deployment) -> Iterator[Night]:
    with Night.begun(deployed) as night:
        yield night


@pytest.mark.parametrize("incident", SAMPLE, ids=lambda incident: incident.name)
def test_cause_is_named(night: Night, incident: Incident) -> None:
    """While it is there. What has to wait for more than the next look, such as the end of an
    alarm, is tried by ``make incidents``."""
    night.wait_for_rest()

    with incident.provoke(night):
        sighting = eventually(lambda: incident.look(night), seconds=PATIENCE_SECONDS)

    assert sighting is not None
    assert sighting.sentence
