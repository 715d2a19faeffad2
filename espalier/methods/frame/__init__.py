"""What methods are built on: a method file joins these choices and says which paper it is.

``base`` says what a method is, ``shrinkage`` what one that cuts reports, ``recalibration`` runs models in mid-training. The
rooms are the three ways to prune: ``masking`` zeroes weights, ``cutting`` removes channels, ``splitting`` trains weights
beside pruned twins.
"""
