"""The recipe that made the embedded model: one module a stage, each resumable and seeded.

    python -m latentwire.training.tokenizer     # a second
    python -m latentwire.training.autoencoder   # pictures <-> latents
    python -m latentwire.training.base          # text encoder and UNet
    python -m latentwire.training.previewer     # latents -> small pictures
    python -m latentwire.training.controlnet    # outlines; with --lora, a ControlLoRA
    python -m latentwire.training.lora          # --style pixel-art, --style pencil

`training/README.md` says what each one needs, takes and gives. `evaluate` measures what came out, `gallery` draws it.
"""
