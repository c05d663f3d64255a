"""What holds for everything that can be chosen by name, as functions that a package calls in its own tests.

Floor 9. Each takes one thing, ours or yours, and raises an AssertionError that says what does not hold. Our own tests
call the same functions.

    from avb_service import testing

    def test_my_method():
        testing.check_method("my_preset")
"""

from avb_service.testing.estimators import check_estimator
from avb_service.testing.methods import check_method, small
from avb_service.testing.networks import check_observation, check_trunk
from avb_service.testing.sources import check_source

__all__ = ["check_estimator", "check_method", "check_observation", "check_source", "check_trunk", "small"]
