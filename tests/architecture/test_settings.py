"""Sections of the configuration are told apart by their names, and explain every key."""

from collections import Counter
from collections.abc import Iterator

import avb_service.tuning.space  # noqa: F401  with all sections that there are
from avb_service.config import Config


def sections(base: type[Config] = Config) -> Iterator[type[Config]]:
    """Every section of ours, those of searches too."""
    for section in base.__subclasses__():
        if section.__module__.startswith("avb_service."):
            yield section
        yield from sections(section)


def test_no_two_sections_share_a_name():
    names = Counter(section.__name__ for section in set(sections()))
    assert len(names) > 30 and not [name for name, count in names.items() if count > 1]


def test_every_key_is_explained():
    assert not [f"{s.__name__}.{key}" for s in set(sections()) for key, about in s.explained().items() if not about]
