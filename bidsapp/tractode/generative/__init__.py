"""Generative tractography: whole streamlines drawn from a model that was trained, given a subject's orientation field.

``from tractode.generative import GENERATORS`` gives the methods by name; nothing is loaded before it is asked for.
"""

from tractode.registry import Registry

GENERATORS = Registry("generative tracker", {"gentract": "tractode.generative.gentract:GenTract"})
