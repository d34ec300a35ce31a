"""The dynamic anchor in closed form: weighted MAXVAR generalised CCA, chosen by cross-validation, in seconds.

features    a modality's values -> numbers that a linear map can use, whatever the kind
moments     sums of their products, streamed over the data
gcca        sums -> one linear map per modality into a shared space
choose      ridge, spectrum, dimension and weights by cross-validation
bind        all of it: samples -> ClosedForm
"""
