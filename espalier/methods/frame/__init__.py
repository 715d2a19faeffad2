"""What methods are built on: a method file joins these choices and says which paper it is.

``base`` says what a method is. ``scheduled`` is the frame of masks that follow a schedule (``ratios``: a share for each layer).
``splitting`` is the frame of methods with multipliers; ``coupling`` (the twins), ``losses`` (what conditions compare) and
``rounds`` (what they report) are its parts. ``structured`` (settings) with ``traced``, ``choosing`` and ``shrinking`` (the
run) is the frame of methods that cut channels; ``pull``, ``latency`` and ``recalibration`` are their tools, ``shrinkage`` is
what they report.
"""
