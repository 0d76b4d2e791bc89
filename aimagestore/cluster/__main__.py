"""``python -m aimagestore.cluster``: the demo."""

from ._demo import main

main()
