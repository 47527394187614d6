"""The recipe that made the embedded model: one module a stage, each resumable and seeded.

    python -m latentwire.training.tokenizer     # a second
    python -m latentwire.training.autoencoder   # pictures <-> latents
    python -m latentwire.training.base          # text encoder and UNet

Run the stages in this order; `training/README.md` says what each one needs, takes and gives.
"""
